"""For mkdocstrings: the examples in our docstrings, which Markdown would take for quotations, become code blocks."""

from griffe import Docstring, Extension, Object


def fenced(text: str) -> str:
    """A docstring in which every paragraph that begins with `>>>` is a fenced block; neighbours are one block."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        if paragraph.lstrip().startswith(">>> "):
            pieces.append(f"```pycon\n{paragraph}\n```")
        else:
            pieces.append(paragraph)
    return "\n\n".join(pieces).replace("\n```\n\n```pycon\n", "\n\n")


class Doctests(Extension):
    """Asked once for every object that griffe read."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite its docstring."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = fenced(obj.docstring.value)

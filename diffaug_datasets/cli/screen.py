"""What a person sees on the command line: aligned lines, tables and JSON.

The one place where the command line prints. A stranger's text drives no terminal, an address tells no password.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import typer

from diffaug_datasets.core.errors import printable, without_secrets

PATTERN_SIGNS = ("*", "?", "[", "::")  # that `load_dataset` takes for a pattern


def say(text: str = "") -> None:
    """One line, or several."""
    typer.echo(printable(without_secrets(text)))


def note(text: str) -> None:
    """The same on standard error, beside what a verb prints."""
    typer.echo(printable(without_secrets(text)), err=True)


def say_json(value: object) -> None:
    """A value as JSON; what JSON does not know is written as text."""
    say(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def say_facts(facts: Mapping[str, str]) -> None:
    """`name   value`, the values below one another, also those of several lines."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        say(f"{name:<{width}}  {value.replace(chr(10), chr(10) + ' ' * (width + 2))}")


def say_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last one is left alone."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        say("  ".join(cells).rstrip())


def waiting(text: str) -> AbstractContextManager[object]:
    """A spinner while something takes long, on a terminal."""
    return telling(text, quiet=not _is_terminal())


@contextmanager
def telling(text: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says at once what takes long, and what is done next when told: a spinner on a terminal, elsewhere a line each on
    standard error. `quiet`: says nothing.
    """
    if quiet:
        yield lambda _: None
        return
    if not _is_terminal():
        note(f"{text} ...")
        yield lambda step: note(f"{step} ...")
        return
    from rich.console import Console

    with Console().status(printable(without_secrets(text))) as status:
        yield lambda step: status.update(printable(without_secrets(step)))


def _is_terminal() -> bool:
    from diffaug_datasets.run.progress import on_terminal

    return on_terminal(sys.stdout)


def warn_of_patterns(folder: Path) -> None:
    """Say on standard error that `load_dataset` will not find the files of a run folder with such a path."""
    signs = [sign for sign in PATTERN_SIGNS if sign in str(folder.absolute())]
    if signs:
        note(
            f"warning: {folder}: load_dataset takes {' and '.join(signs)} in a path for a pattern and will not find "
            f"this run; diffaug_datasets.load({str(folder)!r}) does, or rename the folder."
        )

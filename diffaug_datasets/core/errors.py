"""What a user can get wrong, as one sentence that anybody may see.

The command line prints the sentence of a `DiffAugError` and leaves with code 2; any other exception is our fault. A
sentence shows addresses without their secrets (`shown`), and characters that drive a terminal spelt out (`printable`).
`install` names the extra that is missing and the line that brings it, from a clone of the project.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from urllib.parse import unquote, unquote_plus

LOCAL = ("file://", "local://")  # what stands behind is a path and nothing else
CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # `container@account`: what stands before @ is no user
PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,2})(.*)", re.S)  # `Path` makes one slash of the two
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/\S+")
CHAINED = re.compile(r"::(?=(?:[A-Za-z0-9+.-]+::)*[A-Za-z0-9+.-]+://)")  # fsspec's sign for one place inside another
CLOSING = re.compile(r"[)\]}>,;:.!?'\"`]*\Z")
BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
SPELT_OUT = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, separators of lines and paragraphs
GENERATING = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "jaxtyping")
EXTRAS = {
    **dict.fromkeys(GENERATING, "generate"),
    **dict.fromkeys(("scipy", "sklearn", "statsmodels"), "eval"),
    "faiss": "retrieval",
    "ray": "ray",
    "submitit": "slurm",
    "obstore": "s3",
}


def shown(address: str) -> str:
    """An address as it may be printed and published: without user, password, query and any `key=value` after #.

    A path, and an address of this machine (`file://`), is what it is.
    """
    if len(parts := CHAINED.split(address)) > 1:
        return "::".join(map(shown, parts))
    match = PROTOCOL.match(address)
    if match is None or address.startswith(("file:", "local:")):
        return address
    protocol, rest = match.groups()
    place = _without_user(protocol, rest).partition("?")[0]
    path, _, fragment = place.partition("#")
    return f"{protocol}{path if '=' in fragment else place}"


def _without_user(protocol: str, rest: str) -> str:
    """What follows `://` without `user:password@`; a password may hold a slash that nobody escaped."""
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, name = host.rpartition("@")
    if at:
        return rest[len(user) + 1 :] if ":" in user or protocol.rstrip(":/") not in CONTAINERS else rest
    name, colon, port = host.rpartition(":")
    if not colon or port.isdecimal() or not port or name.startswith("["):
        return rest
    before, at, after = rest.partition("?")[0].rpartition("@")
    return after + rest[len(before) + 1 + len(after) :] if at else name + rest[len(host) :]


def secrets(address: str) -> tuple[str, ...]:
    """What `shown` leaves out of an address, whole and in parts, as written and unquoted; the longest first."""
    if shown(address) == address:
        return ()
    hidden: set[str] = set()
    for part in CHAINED.split(address):
        rest, kept = (match[2] if (match := PROTOCOL.match(text)) else "" for text in (part, shown(part)))
        place = rest.find(kept)
        for left_out in (rest[:place].rstrip("@"), rest[place + len(kept) :].lstrip("?#")):
            values = [pair.partition("=")[2] for pair in re.split("[&;#]", left_out)]
            hidden |= {left_out, *left_out.split(":", 1), *values}
    hidden |= {decode(text) for text in hidden for decode in (unquote, unquote_plus)}
    return tuple(sorted(filter(None, hidden), key=lambda text: (-len(text), text)))


def without_secrets(text: str, address: str = "") -> str:
    """A text in which every address is as `shown` gives it, and no secret of `address` stands anywhere else."""
    known = shown(address)
    text = text.replace(address, known) if address else text
    text = ADDRESS.sub(lambda match: _closed(match[0]), text)
    words = [rf"(?<!\w){re.escape(word)}(?!\w)" if len(word) < 4 else re.escape(word) for word in secrets(address)]
    if not words:
        return text
    return known.join(re.sub("|".join(words), "***", part) for part in text.split(known))


def _closed(address: str) -> str:
    """The address without secrets; a bracket or stop that the sentence put behind it stays."""
    kept = shown(address)
    if kept == address:
        return address
    tail = CLOSING.search(address)
    return kept.removesuffix(tail[0]) + tail[0] if tail else kept


def printable(text: object) -> str:
    """A text whose characters cannot move a cursor, ring, recolour or reorder: they become `\\u001b`.

    Line ends and tabs stay; what is spelt out in JSON text stays the same JSON.
    """
    plain = str(text)
    if plain.isascii() and plain.replace("\n", "").replace("\t", "").isprintable():
        return plain
    return "".join(f"\\u{ord(char):04x}" if _drives(char) else char for char in plain)


def _drives(char: str) -> bool:
    if char in "\n\t":
        return False
    return char in BIDIRECTIONAL or unicodedata.category(char) in SPELT_OUT


def shown_name(name: str) -> str:
    """A name as it can be shown and found: bytes that are no UTF-8 (`caf\\xe9`) and control characters are escaped."""
    if name.isprintable():
        return name
    parts = (c if c.isprintable() else f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c)[1:-1]
             for c in name)  # fmt: skip
    return "".join(parts)


def one_line(text: object, most: int = 200) -> str:
    """A text on one line, at most its first `most` characters: what a library says, as a part of a sentence."""
    return " ".join(str(text).split())[:most]


def few(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


class DiffAugError(Exception):
    """One clear sentence: what we got, what we expected, what to do.

    Wherever it is printed, it shows no password of an address and no character that drives a terminal.

    >>> from diffaug_datasets import DiffAugError, plan
    >>> try:
    ...     run = plan("fashion_5shot_txt2img", per_class=0)
    ... except DiffAugError as error:
    ...     print(error)
    per_class: got 0, input should be greater than or equal to 1.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(without_secrets(str(sentence))))


class RecipeError(DiffAugError):
    """A recipe or a configuration name that cannot be used.

    >>> from diffaug_datasets import Recipe
    >>> Recipe.from_dict({"builder": "fashion", "methd": "txt2img"})
    Traceback (most recent call last):
    diffaug_datasets.core.errors.RecipeError: methd: unknown key; did you mean 'method'; allowed are ...
    """


class SourceError(DiffAugError):
    """Real images that are missing, unreadable or not what the builder expects.

    >>> from diffaug_datasets import plan
    >>> run = plan("imagefolder_full_img2img", source="no-such-folder")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.SourceError: imagefolder: got '...no-such-folder', where no folder is, expected ...
    """


class PlanError(DiffAugError):
    """A plan that cannot be drawn, or does not belong to the recipe beside it.

    >>> from diffaug_datasets import plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=3, config={"num_inference_steps": 2})
    Traceback (most recent call last):
    diffaug_datasets.core.errors.PlanError: runs/shirts: holds another plan; what differs: recipe.per_class: 2 -> 3. ...
    """


class RunError(DiffAugError):
    """A run folder that is locked, damaged, full or made by something else.

    >>> from diffaug_datasets import Run
    >>> Run.open("runs/none")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.RunError: runs/none: no plan.json here; ...
    """


class BackboneError(DiffAugError):
    """A diffusion model that cannot be reached or does not fit.

    >>> from diffaug_datasets import plan
    >>> run = plan("fashion_5shot_txt2img", backbone="no-such-model")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.BackboneError: backbone 'no-such-model' is neither a folder nor a Hub id: ...
    """


class PublishError(DiffAugError):
    """A release that may not go out, a place that does not take it, or a published set that cannot be trusted.

    >>> from diffaug_datasets import plan, publish
    >>> run = plan("fashion_5shot_txt2img", "runs/unfinished", per_class=1)
    >>> publish(run, "org/name")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.PublishError: runs/unfinished: not finished; ...
    """


def one_of(got: str, known: Iterable[str]) -> str:
    """What was expected in the place of a word, as the end of a sentence.

    >>> one_of("imagefoldr", ["imagefolder", "csv"])
    "expected one of imagefolder, csv; did you mean 'imagefolder'?"
    """
    names = list(known)
    near = difflib.get_close_matches(got.casefold(), names, n=1)
    return f"expected one of {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else ".")


def install(extra: str) -> str:
    """The line for a sentence; the package lies on no index, so no other one is true."""
    return f"`pip install '.[{extra}]'` in your clone of diffaug-datasets"

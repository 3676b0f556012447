"""What a source says about an image's origin: where it is from, who made it, on which terms."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from unicodedata import category

Facts = tuple[tuple[str, str], ...]
"""Pairs of `url`, `author` or `license` and what is stated, in that order; what nobody stated is absent."""

FACTS = ("url", "author", "license")
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {"url": "url", "author": "author", "artist": "author", "creator": "author", "license": "license"}
    | {"licence": "license"}
)
LONGEST = 500


def fact_name(column: str) -> str | None:
    """Which fact a column holds, by its usual spellings in any case; None for every other column."""
    return SPELLINGS.get(column.casefold())


def stated_facts(row: Mapping[str, object]) -> Facts:
    """The facts among the columns of a row: texts on one line, cut at 500 characters; empty ones are absent."""
    found: dict[str, str] = {}
    for column, value in row.items():
        name, text = fact_name(column), _plain(value) if isinstance(value, str) else ""
        if name and text:
            found.setdefault(name, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
    return tuple((name, found[name]) for name in FACTS if name in found)


def _plain(text: str) -> str:
    """On one line, with U+FFFD for control characters and lone surrogates."""
    return "".join("\ufffd" if category(c) in ("Cc", "Cs") else c for c in " ".join(text.split()))


def fact_columns(columns: Iterable[str]) -> list[str]:
    """The columns that hold a fact, in their order."""
    return [column for column in columns if fact_name(column)]

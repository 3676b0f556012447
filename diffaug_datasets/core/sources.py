"""Real images as tables: which image, of which class, in which order; never where it lies.

A builder gives a `Listing`: what is there by name, before any image is opened. Once all are read it becomes a
`SourceTable` for each split, which everything later works on; `Reader` gets their bytes. A pool to retrieve from is a
`PoolTable`, in an order that no machine, folder or file decides. With an image goes its `Attribution`: where it is
from, who made it, on which terms, as its dataset states it.
"""

import hashlib
import ntpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

from diffaug_datasets.core.errors import SourceError, shown_name
from diffaug_datasets.core.files import strange_character
from diffaug_datasets.core.identity import digest

TABLE_SCHEMA = 1
POOL_SCHEMA = 1
TEXT_DTYPES = ("string", "large_string")  # of a column, as Arrow and `datasets` call them
ATTRIBUTION = ("url", "author", "license")
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {name: name for name in ATTRIBUTION} | {"artist": "author", "creator": "author", "licence": "license"}
)
LONGEST = 500  # characters of one statement

Attribution = tuple[tuple[str, str], ...]
"""Pairs of `url`, `author` or `license` and what is stated, in that order; what nobody stated is absent."""

Stated = tuple[tuple[str, str], ...]
"""Pairs of a column of the dataset's own, such as `place`, and its value for one image."""


@dataclass(frozen=True, slots=True)
class Source:
    """One real image. `id`: sha256 (64 hex digits) of its encoded bytes; `label`: class id, from 0.

    `key`: its name inside the dataset, '/'-separated, NFC; for messages only, never a path to open. `attribution`: as
    its dataset states it; like the key it counts in no digest, so the same images elsewhere are the same plan.
    `size`: encoded bytes, 0 where they were not looked at; it follows from the id. `columns`: names and values of
    what the dataset says of the image besides, see `BuilderFacts`; they follow from the builder and the id.
    """

    id: str
    label: int
    key: str
    attribution: Attribution = ()
    size: int = 0
    columns: Stated = ()


@dataclass(frozen=True)
class SourceTable:
    """The real images of one split, in the dataset's own order (order of first appearance decides few-shot draws).

    `class_names` are the labels verbatim, `prompt_names` what a prompt calls them, `metaclass` "bird" or "",
    `revision` the dataset's commit where one is known.

    Raises:
        SourceError: these do not fit together.
    """

    builder: str
    split: str
    class_names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    metaclass: str
    sources: tuple[Source, ...]
    revision: str = ""

    def __post_init__(self) -> None:
        check_class_names(self.builder, self.class_names)
        if len(self.prompt_names) != len(self.class_names):
            got, expected = len(self.prompt_names), len(self.class_names)
            raise SourceError(f"{self.builder}: got {got} prompt names, expected one for each of {expected} classes.")
        for source in self.sources:
            if not 0 <= source.label < len(self.class_names):
                expected = len(self.class_names) - 1
                raise SourceError(f"{self.builder}: {source.key} has label {source.label}, expected 0 to {expected}.")

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def labels(self) -> tuple[int, ...]:
        """The class id of every image, in order."""
        return tuple(source.label for source in self.sources)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that can change a plan: all but the revision, the keys and the attributions."""
        names = {"class_names": self.class_names, "prompt_names": self.prompt_names, "metaclass": self.metaclass}
        images = [(source.id, source.label) for source in self.sources]
        place = {"schema": TABLE_SCHEMA, "builder": self.builder, "split": self.split}
        return digest({**place, **names, "sources": images})

    def by_class(self) -> Mapping[int, tuple[Source, ...]]:
        """Class id -> its images in the table's order; every class is there, also one without images."""
        return self._by_class

    @cached_property
    def _by_class(self) -> Mapping[int, tuple[Source, ...]]:
        groups: dict[int, list[Source]] = {label: [] for label in range(len(self.class_names))}
        for source in self.sources:
            groups[source.label].append(source)
        return MappingProxyType({label: tuple(group) for label, group in groups.items()})

    def subset(self, indices: Iterable[int]) -> "SourceTable":
        """The images at these places, in this order; the classes stay."""
        return replace(self, sources=tuple(self.sources[i] for i in indices))


@dataclass(frozen=True)
class Reader:
    """Encoded bytes of image `index` of a split, read when asked for."""

    tables: Mapping[str, SourceTable]
    keys: Mapping[str, tuple[str, ...]]
    fetch: Callable[[str], bytes]

    def __call__(self, split: str, index: int) -> bytes:
        """The bytes as they are in the source.

        Raises:
            SourceError: the image is gone, or is no longer the one that was listed.
        """
        data = self.fetch(self.keys[split][index])
        source = self.tables[split].sources[index]
        if hashlib.sha256(data).hexdigest() != source.id:
            raise SourceError(f"{source.key}: the image changed since it was listed; start again from a fresh plan.")
        return data


@dataclass(frozen=True, slots=True)
class Listed:
    """One image that a list or a folder names; `key` is what `fetch` needs to find it.

    `columns`: values of columns that the builder declares, see `BuilderFacts`.
    """

    key: str
    label: int
    columns: Stated = ()


@dataclass(frozen=True)
class Survey:
    """What a source turned out to be, for people: nothing of it counts in a digest.

    `layout` in a few words, `left_out` what is not used and why, `warnings` what they should look into.
    """

    layout: str = ""
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a builder finds before any image is opened; `test` is None where there is no test split."""

    class_names: tuple[str, ...]
    train: tuple[Listed, ...]
    test: tuple[Listed, ...] | None = None
    survey: Survey = field(default_factory=Survey, kw_only=True)

    def __len__(self) -> int:
        """All images of both splits."""
        return len(self.train) + len(self.test or ())

    def without(self, keys: Container[str]) -> "Listing":
        """All but some images; the classes stay."""
        train = tuple(item for item in self.train if item.key not in keys)
        test = None if self.test is None else tuple(item for item in self.test if item.key not in keys)
        return replace(self, train=train, test=test)

    def present(self) -> "Listing":
        """Only the classes that have a training image (for partial copies)."""
        return self.only({item.label for item in self.train})

    def only(self, labels: Iterable[int]) -> "Listing":
        """Only these classes, renumbered in their order."""
        kept = sorted(labels)
        new = {label: place for place, label in enumerate(kept)}
        names = tuple(self.class_names[label] for label in kept)
        return Listing(names, _renumbered(self.train, new), None if self.test is None else _renumbered(self.test, new))


@dataclass(frozen=True)
class BuilderFacts:
    """What a builder's fact sheet says; what it leaves out has a conservative default.

    `licence_id`: the Hub's word for the licence. `redistributable`: real images may be published.
    `hub_train`: Hub splits that make up training, all that exist; `hub_test`: the first of these that exists.
    `official`: counts of `classes`, `train`, `test` or `total` images. `embedded`: split -> file inside the package.
    `pool`: images to retrieve from, where they are not the dataset's own. `protocol`: fixed where the dataset is a
    protocol itself. `groups`: the thresholds of `frequency_groups`; `group_counts`: (classes, training images) of the
    many, the medium and the few, where they are published. `columns`: name -> meaning of what is known of an
    image beside its class; each becomes a text column of all rows, made ones have the values of their first source.
    """

    name: str
    title: str
    metaclass: str = ""
    licence: str = "unknown"
    licence_id: str = "unknown"
    licence_url: str = ""
    homepage: str = ""
    redistributable: bool = False
    citation: str = ""
    hub_id: str | None = None
    hub_train: tuple[str, ...] = ("train",)
    hub_test: tuple[str, ...] = ("test", "validation", "val", "valid")
    hub_label: str = "label"
    official: Mapping[str, int] = field(default_factory=dict)
    embedded: Mapping[str, str] = field(default_factory=dict)
    pool: str | None = None
    protocol: str | None = None
    groups: tuple[int, int] = (100, 20)
    group_counts: tuple[tuple[int, int], ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolTable:
    """`ids`: sha256 (64 hex digits) of the encoded bytes, rising, each once; `rows[i]`: where image i lies in the pool.

    Byte-equal images of a pool are one image.
    """

    ids: tuple[str, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, ids: Iterable[str]) -> "PoolTable":
        """The table of a pool whose row i holds the image `ids[i]`; an image that comes again counts once."""
        first: dict[str, int] = {}
        for row, image_id in enumerate(ids):
            first.setdefault(image_id, row)
        return cls(tuple(sorted(first)), tuple(first[image_id] for image_id in sorted(first)))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """sha256 over the ids alone: the same images elsewhere, or in another order, are the same pool."""
        return digest({"schema": POOL_SCHEMA, "images": self.ids})


class Pool(Protocol):
    """A pool that can be read."""

    @property
    def table(self) -> PoolTable:
        """Its images, as they were when the plan was made."""

    def read(self, row: int, image_id: str) -> bytes:
        """The encoded bytes in a row.

        Raises:
            SourceError: they are not the image of that id.
        """

    def attribution(self, row: int) -> Mapping[str, str]:
        """What the pool states of a row: `url`, `author`, `license`, where it has such columns."""


def check_class_names(builder: str, names: Sequence[str]) -> None:
    """Every class has a name that any file and terminal takes, and no two are one and the same Unicode text.

    Raises:
        SourceError: names the class.
    """
    if not names:
        raise SourceError(f"{builder}: found no class; expected at least one.")
    seen: dict[str, str] = {}
    for place, name in enumerate(names):
        if not name.strip():
            raise SourceError(f"{builder}: class {place} has the empty name {name!r}; give it one.")
        if strange := strange_character(name, allowed=""):
            raise SourceError(f"{builder}: class {place}, '{shown_name(name)}', has {strange} in its name; rename it.")
        form = unicodedata.normalize("NFC", name)
        if form in seen:
            raise SourceError(f"{builder}: classes {seen[form]!r} and {name!r} share one name; rename or merge them.")
        seen[form] = name


def check_folder_names(names: Iterable[str]) -> None:
    """Refuse names that some file systems would merge: equal but for case or Unicode form.

    Raises:
        SourceError: names both folders.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    for group in groups.values():
        if len(group) > 1:
            first, second = sorted(group)[:2]
            raise SourceError(
                f"class folders {first!r} and {second!r} differ only in case or Unicode form, which other machines "
                "cannot tell apart; rename or merge them."
            )


def check_key(key: str) -> str:
    """The key, if it can only lie inside the dataset's folder.

    Raises:
        SourceError: absolute, with a drive, a backslash, a NUL or a `..` part.
    """
    absolute = key.startswith("/") or ntpath.splitdrive(key)[0]
    if not key or absolute or "\\" in key or "\0" in key or ".." in key.split("/"):
        raise SourceError(f"got the entry {key!r}, expected a '/'-separated path inside the dataset's folder.")
    return key


def listed_rows(split: str, labels: Sequence[int | None]) -> tuple[Listed, ...]:
    """The rows of a labelled split as entries `<split>/<row>`.

    Raises:
        SourceError: a row without a class id.
    """
    for row, label in enumerate(labels):
        if label is None or label < 0:
            raise SourceError(f"{split}/{row}: got the label {label}, expected a class id; use a labelled split.")
    return tuple(Listed(f"{split}/{row:07d}", label) for row, label in enumerate(labels) if label is not None)


def pairs(text: str, name: str, last: bool = False) -> list[tuple[str, str]]:
    """The two columns of a list file, cut at the first space (`last`: at the last); empty lines do not count.

    Raises:
        SourceError: a line without two columns; names file (`name`) and line.
    """
    columns = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.rsplit(maxsplit=1) if last else line.strip().split(maxsplit=1)
        if len(parts) == 1:
            raise SourceError(f"{name}, line {number}: got {line.strip()!r}, expected two columns; restore the file.")
        columns += [(parts[0], parts[1])] if parts else []
    return columns


def prompt_phrases(names: Sequence[str], prompt_name: Callable[[str], str]) -> tuple[str, ...]:
    """What prompts call the classes; where the phrase is empty or two classes share one, the label stands verbatim."""
    phrases = [" ".join(prompt_name(name).split()) for name in names]
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for name, phrase in zip(names, phrases, strict=True):
        owners[phrase].add(name)
    return tuple(p if p and len(owners[p]) == 1 else name for name, p in zip(names, phrases, strict=True))


def attribution_columns(columns: Iterable[str]) -> list[str]:
    """The columns that state an attribution, by their usual spellings in any case, in their order."""
    return [column for column in columns if column.casefold() in SPELLINGS]


def stated_attribution(row: Mapping[str, object]) -> Attribution:
    """What the columns of a row state: texts on one line, cut at 500 characters; empty ones are absent.

    U+FFFD stands for control characters and lone surrogates.
    """
    stated: dict[str, str] = {}
    for column, value in row.items():
        name = SPELLINGS.get(column.casefold())
        if name is None or not isinstance(value, str):
            continue
        line = " ".join(value.split())
        if text := "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in line):
            stated.setdefault(name, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
    return tuple((name, stated[name]) for name in ATTRIBUTION if name in stated)


def _renumbered(items: Sequence[Listed], new: Mapping[int, int]) -> tuple[Listed, ...]:
    return tuple(replace(item, label=new[item.label]) for item in items if item.label in new)

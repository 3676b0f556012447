"""Reading real images: from data inside the package, a folder, or a Hub dataset, found by the builder's facts.

A builder is a module in `builders/` (or one named by the entry-point group `diffaug_datasets.builders`): a fact sheet
with `prompt_name(label)` and, where the dataset has a layout of its own, `read(folder) -> Listing | None`.
"""

import difflib
import importlib
import json
import os
import pkgutil
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from diffaug_datasets.core import memory
from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import BadImage, check_image, has_long_text, pixels_of, reading_bytes, source_id
from diffaug_datasets.core.memory import in_order
from diffaug_datasets.core.models import local_path, place_of
from diffaug_datasets.core.printable import few, shown_name
from diffaug_datasets.core.protocols import Protocol, episode, parse_protocol
from diffaug_datasets.core.recipe import HUB_KEYS, OnBadImage, Recipe
from diffaug_datasets.core.sources import (
    BuilderFacts,
    Facts,
    Listed,
    Listing,
    Reader,
    Source,
    SourceTable,
    Survey,
    check_counts,
    check_key,
    listed_rows,
    prompt_phrases,
)
from diffaug_datasets.sources.folders import ColumnFetch, folder_facts
from diffaug_datasets.sources.folders import FolderFetch as FolderFetch
from diffaug_datasets.sources.hub import ANY, HubChoice, hub_images

PACKAGE = "diffaug_datasets.builders"
EMBEDDED = "the package"
WHERE = {EMBEDDED: "inside the package"}
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
NAMED = 20  # bad images of one reason in a sentence


@dataclass(frozen=True)
class RealSet:
    """The real images of a builder: tables, bytes on demand, the builder's facts, and what was found on the way.

    `notes`: what was decided where a source leaves a choice. `skipped`: images that cannot be used and were left out
    by the recipe's word.
    """

    train: SourceTable
    test: SourceTable | None
    read: Callable[[str, int], bytes]
    facts: BuilderFacts
    notes: tuple[str, ...] = ()
    survey: Survey = field(default_factory=Survey)
    skipped: tuple[BadImage, ...] = ()

    def table(self, split: str) -> SourceTable:
        """The table of `train`, or of `test` where there is one."""
        return self.train if split == "train" or self.test is None else self.test


@dataclass(frozen=True)
class _Opened:
    """A source before its images are looked at. `facts`: what it says about an image's origin, by key."""

    where: str
    listing: Listing
    fetch: Callable[[str], bytes]
    revision: str = ""
    facts: Mapping[str, Facts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@cache
def discover_builders() -> Mapping[str, ModuleType]:
    """Name -> module of every shipped and plugged-in builder, by name; a shipped one is never replaced."""
    package = importlib.import_module(PACKAGE)
    plugged = [point.load() for point in entry_points(group=PACKAGE)]
    shipped = [importlib.import_module(f"{PACKAGE}.{item.name}") for item in pkgutil.iter_modules(package.__path__)]
    found = {module.NAME: module for module in (*plugged, *shipped) if hasattr(module, "NAME")}
    return {name: found[name] for name in sorted(found)}


def find_builder(name: str) -> ModuleType:
    """The builder of that name.

    Raises:
        SourceError: there is none; suggests the nearest and names all.
    """
    builders = discover_builders()
    if name not in builders:
        near = difflib.get_close_matches(name, builders, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise SourceError(f"builder: got {name!r}, expected one of {', '.join(builders)}{hint}")
    return builders[name]


def builder_facts(name: str) -> BuilderFacts:
    """The fact sheet of a builder: the upper-case constants of its module."""
    module = find_builder(name)
    stated = {fact.name: getattr(module, fact.name.upper(), None) for fact in fields(BuilderFacts)}
    return BuilderFacts(**{"title": name, **{key: value for key, value in stated.items() if value is not None}})


@cache
def class_phrases(table: str) -> Mapping[str, str]:
    """Label -> prompt phrase, in the dataset's order, from `builders/names/<table>.json`."""
    text = (files(PACKAGE) / "names" / f"{check_key(table)}.json").read_text(encoding="utf-8")
    return {entry[0]: entry[-1] for entry in json.loads(text)}


def read_real(
    builder: str,
    source: str | os.PathLike[str] | None = None,
    partial: bool = False,
    protocol: Protocol | None = None,
    choice: HubChoice = ANY,
    on_bad_image: OnBadImage = "refuse",
) -> RealSet:
    """The real images of a builder, every one opened and decoded once; the package's own are only identified.

    `source`: a folder (a relative one is meant from the current folder), a Hub id (`org/name` or `org/name@revision`),
    or None for the embedded data or the builder's own Hub id. `partial`: accept other than the official counts, and
    drop classes without a training image. `protocol`: an episode's leaves its own classes, renumbered, and its queries
    as the test split. `choice`: config, split and columns, where the source is on the Hub. `on_bad_image`: whether
    images that cannot be used are refused, all at once, or skipped (the set then says which).

    Raises:
        SourceError: one sentence: what we got, what we expected, what to do.
        RecipeError: fewer classes than the episode has ways.
    """
    return _read(builder, here(source), partial, protocol, choice, on_bad_image)


def read_recipe_images(recipe: Recipe, copy: str | None = None) -> RealSet:
    """The real images of a recipe, or of a reader's own copy of them, as `read_real` gives them.

    Raises:
        DiffAugError: as `read_real`; also keys of a Hub source beside a folder.
    """
    own = here(copy) if copy else recipe.source
    chosen = [key for key in HUB_KEYS if getattr(recipe, key) is not None]
    inside = own is None and bool(builder_facts(recipe.builder).embedded)
    if chosen and copy is None and (inside or (own and local_path(own) is not None)):
        what = "inside the package" if inside else f"the folder {own!r}"
        raise SourceError(
            f"{chosen[0]}: got {getattr(recipe, chosen[0])!r}, which chooses from a dataset of the Hub, but the source "
            f"is {what}; drop the key, or give the Hub id as source."
        )
    protocol, choice = parse_protocol(recipe.protocol), HubChoice.of(recipe, own)
    return _read(recipe.builder, own, recipe.partial, protocol, choice, recipe.on_bad_image)


def here(source: str | os.PathLike[str] | None) -> str | None:
    """A source as a person names it in the current folder: a folder's absolute path, or a Hub id."""
    if source is None or not isinstance(source, str):
        return None if source is None else str(Path(source).absolute())
    place = place_of(Recipe, "source")
    return place.absolute(source, Path()) if place else source


def _read(
    builder: str,
    source: str | None,
    partial: bool,
    protocol: Protocol | None,
    choice: HubChoice,
    on_bad_image: OnBadImage,
) -> RealSet:
    module, facts = find_builder(builder), builder_facts(builder)
    opened = _open(module, facts, source, choice)
    if not partial and opened.where != EMBEDDED:
        check_counts(facts, opened.listing, opened.where)
    whole, looked = opened.listing, _Looked(opened)
    while True:
        listing = whole.present() if partial else whole
        listing = module.regroup(listing) if hasattr(module, "regroup") else listing
        opened = replace(opened, listing=episode(listing, protocol) if protocol else listing)
        looked.at((*opened.listing.train, *(opened.listing.test or ())))
        if looked.bad and on_bad_image == "refuse":
            raise looked.refusal()
        if len(kept := whole.without(looked.bad)) == len(whole):
            break
        whole = kept
    tables = {
        split: _table(module, facts, opened, split, looked) for split in ("train", "test") if _items(opened, split)
    }
    if "train" not in tables:
        bad = f" that can be used ({in_groups(looked.bad.values())})" if looked.bad else ""
        raise SourceError(f"{builder}: found no training image{bad} in {opened.where}; expected at least one.")
    keys = {split: tuple(item.key for item in _items(opened, split)) for split in tables}
    read, survey = Reader(tables, keys, opened.fetch), looked.survey(tables)
    if empty := len(whole.class_names) - len(whole.present().class_names) if partial else 0:
        survey = replace(
            survey,
            left_out=(*survey.left_out, f"{empty:,} class{'es' * (empty > 1)} without a training image (partial)"),
        )
    train, test, skipped = tables["train"], tables.get("test"), tuple(looked.bad.values())
    return RealSet(train, test, read, facts, opened.notes, survey, skipped)


def _items(opened: _Opened, split: str) -> tuple[Listed, ...]:
    return opened.listing.train if split == "train" else opened.listing.test or ()


def _table(module: ModuleType, facts: BuilderFacts, opened: _Opened, split: str, looked: "_Looked") -> SourceTable:
    names = opened.listing.class_names
    return SourceTable(
        builder=facts.name,
        split=split,
        class_names=names,
        prompt_names=prompt_phrases(names, module.prompt_name),
        metaclass=facts.metaclass,
        sources=tuple(
            Source(
                looked.ids[item.key], item.label, _name(item), opened.facts.get(item.key, ()), looked.sizes[item.key]
            )
            for item in _items(opened, split)
        ),
        revision=opened.revision,
    )


def _cost(read: tuple[Listed, bytes]) -> int:
    return reading_bytes(len(read[1]), pixels_of(read[1]))


def _name(item: Listed) -> str:
    return shown_name(unicodedata.normalize("NFC", item.key))


class _Looked:
    """Every image opened once, a few at a time: `ids` (sha256) and `sizes` (bytes) of the sound ones, faults of others.

    Memory: the encoded and decoded bytes of as many images as the window holds.
    """

    def __init__(self, opened: _Opened) -> None:
        self.opened = opened
        self.ids: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.bad: dict[str, BadImage] = {}
        self.long_texts: list[str] = []

    def at(self, items: Sequence[Listed]) -> None:
        """Look at what was not looked at before.

        Raises:
            SourceError: an image is not there, may not be read or lies outside the source; skipping is no way on.
        """
        new = (item for item in items if item.key not in self.ids and item.key not in self.bad)
        for item, fault, is_long in in_order(self._looked_at, self._read(new), _cost, memory.WINDOW_BYTES):
            if fault:
                self.bad[item.key] = fault
                del self.ids[item.key], self.sizes[item.key]
            elif is_long:
                self.long_texts.append(_name(item))
        self.bad = dict(sorted(self.bad.items()))  # those that could not even be read were found earlier

    def _read(self, items: Iterable[Listed]) -> Iterator[tuple[Listed, bytes]]:
        """The bytes of each item, whose id and size are taken down."""
        for item in items:
            try:
                data = self.opened.fetch(item.key)
            except BadImage as error:
                self.bad[item.key] = error
            else:
                self.ids[item.key], self.sizes[item.key] = source_id(data), len(data)
                yield item, data

    def _looked_at(self, read: tuple[Listed, bytes]) -> tuple[Listed, BadImage | None, bool]:
        item, data = read
        try:
            if self.opened.where != EMBEDDED:
                check_image(data, _name(item))
        except BadImage as error:
            return item, error, False
        return item, None, has_long_text(data)

    def refusal(self) -> SourceError:
        """One sentence that names every image that cannot be used (of many, the first of each kind)."""
        if len(self.bad) == 1:
            [only] = self.bad.values()
            return SourceError(f"{str(only).rstrip('.')}, or leave it out with `on_bad_image: skip`.")
        count, total = len(self.bad), len(self.bad) + len(self.ids)
        return SourceError(
            f"{count:,} of {total:,} images cannot be used: {in_groups(self.bad.values())}. Replace or remove them, or "
            "leave them out with `on_bad_image: skip`."
        )

    def survey(self, tables: Mapping[str, SourceTable]) -> Survey:
        """What the source said of itself, and what its images show: the same one twice, texts that others refuse."""
        said = self.opened.listing.survey
        texts: tuple[str, ...] = ()
        if self.long_texts:
            names = f"{few(self.long_texts)}: carry more text than Pillow reads by itself (PNG metadata)"
            texts = (f"{names}; strip it, or raise PIL.PngImagePlugin.MAX_TEXT_CHUNK where the rows are loaded",)
        doubles = () if self.opened.where == EMBEDDED else repeated_images(tables)
        left_out, warnings = map(shown_name, said.left_out), map(shown_name, (*said.warnings, *doubles, *texts))
        layout = said.layout or WHERE.get(self.opened.where, self.opened.where)
        return Survey(shown_name(layout), tuple(left_out), tuple(warnings))


def in_groups(bad: Iterable[BadImage]) -> str:
    """`empty (0 bytes): a/1.jpg, b/2.jpg; ...`, at most NAMED names of each reason."""
    groups: dict[str, list[str]] = {}
    for image in bad:
        groups.setdefault(image.reason, []).append(image.name)
    return "; ".join(f"{reason}: {few(names, NAMED)}" for reason, names in groups.items())


CLASH = "in more than one class, so its labels contradict each other"
LEAK, TWICE = "in training and in test", "more than once in a class"


def repeated_images(tables: Mapping[str, SourceTable]) -> tuple[str, ...]:
    """Warnings where the same bytes stand in several classes, more than once in one, or in training and test."""
    places: dict[str, list[tuple[str, Source]]] = {}
    for split, table in tables.items():
        for source in table.sources:
            places.setdefault(source.id, []).append((split, source))
    kinds: dict[str, list[str]] = {CLASH: [], LEAK: [], TWICE: []}
    for found in places.values():
        if len(found) > 1:
            splits, labels = {split for split, _ in found}, {source.label for _, source in found}
            kind = CLASH if len(labels) > 1 else LEAK if len(splits) > 1 else TWICE
            kinds[kind].append(" = ".join(source.key for _, source in found[:4]))
    return tuple(
        f"{len(names):,} {'image is' if len(names) == 1 else 'images are'} there {kind}: {few(names)}"
        for kind, names in kinds.items()
        if names
    )


def _open(module: ModuleType, facts: BuilderFacts, source: str | None, choice: HubChoice) -> _Opened:
    if source is None and facts.embedded:
        return _embedded(facts)
    text = source or facts.hub_id or ""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise SourceError(f"{facts.name}: got the source '{shown_name(text)}', whose name is not UTF-8; rename it.")
    folder = Path(text)
    if folder.is_absolute() and folder.is_dir():
        return _folder(module, folder)
    if match := HUB_ID.fullmatch(text):
        found = hub_images(facts, match["name"], match["revision"], choice, _ways(facts))
        where = f"{match['name']} on the Hub"
        return _Opened(where, found.listing, found.fetch, found.commit, facts=found.facts, notes=found.notes)
    raise SourceError(f"{facts.name}: got {_got(text, folder)}, expected {_ways(facts)}.")


def _got(text: str, folder: Path) -> str:
    if not text:
        return "no source"
    if text.startswith("~"):
        return f"{text!r}, but `~` stands for no folder (this user has no home and HOME is not set)"
    return f"the file {text!r}" if folder.exists() else f"{text!r}, where no folder is"


def _ways(facts: BuilderFacts) -> str:
    hub = f"a Hub id such as {facts.hub_id}" if facts.hub_id else "the Hub id of such a dataset (org/name)"
    return f"a folder with {facts.title} in its own layout or as class folders, or {hub}"


def _folder(module: ModuleType, folder: Path) -> _Opened:
    own = module.read(folder) if hasattr(module, "read") else None
    listing = own or find_builder("imagefolder").read(folder)
    fetch = FolderFetch(folder.resolve())
    stated = folder_facts(fetch, [item.key for item in (*listing.train, *(listing.test or ()))])
    said = listing.survey
    layout = ", ".join((said.layout or f"the layout of {module.TITLE}", *stated.files))
    survey = Survey(layout, said.left_out, (*said.warnings, *stated.warnings))
    return _Opened(f"'{folder}'", replace(listing, survey=survey), fetch, facts=stated.facts)


def _embedded(facts: BuilderFacts) -> _Opened:
    import pyarrow.parquet as pq

    paths = {split: Path(str(files("diffaug_datasets") / name)) for split, name in facts.embedded.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise SourceError(f"{facts.name}: the embedded data {missing[0]!r} is not there; install the package again.")
    tables = {split: pq.read_table(path) for split, path in paths.items()}
    features = json.loads(tables["train"].schema.metadata[b"huggingface"])["info"]["features"]
    rows = {split: listed_rows(split, table["label"].to_pylist()) for split, table in tables.items()}
    listing = Listing(tuple(features["label"]["names"]), rows["train"], rows.get("test"))
    return _Opened(EMBEDDED, listing, ColumnFetch({split: table["image"] for split, table in tables.items()}))

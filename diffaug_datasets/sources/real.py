"""Real images in: a builder's facts, the source that a recipe names, and every image of it opened and decoded once.

A builder is a module in `builders/` (or one named by the entry-point group `diffaug_datasets.builders`): a fact sheet
with `prompt_name(label)` and, where the dataset has a layout of its own, `read(folder) -> Listing | None`. A source is
data inside the package, a folder, or a dataset of the Hub. It becomes a `Listing` (what is there by name), then, once
its images were decoded, a `RealSet` (what they are by content).
"""

import difflib
import importlib
import json
import os
import pkgutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType, ModuleType

from diffaug_datasets.core import memory
from diffaug_datasets.core.errors import RecipeError, SourceError, few, shown_name
from diffaug_datasets.core.files import mistyped_folder
from diffaug_datasets.core.images import BadImage, check_image, has_long_text, pixels_of, reading_bytes, source_id
from diffaug_datasets.core.licences import LICENCES
from diffaug_datasets.core.models import local_path, place_of
from diffaug_datasets.core.protocols import Protocol, episode, parse_protocol
from diffaug_datasets.core.recipe import HUB_KEYS, STATED, OnBadImage, Recipe
from diffaug_datasets.core.rows import column_meanings
from diffaug_datasets.core.sources import (
    Attribution,
    BuilderFacts,
    Listed,
    Listing,
    Reader,
    Source,
    SourceTable,
    Survey,
    check_key,
    listed_rows,
    prompt_phrases,
)
from diffaug_datasets.sources.folders import FolderFetch, folder_attributions
from diffaug_datasets.sources.hub import DATASET_ID, ColumnFetch, HubChoice, hub_images
from diffaug_datasets.sources.known_files import Known, State, known_files
from diffaug_datasets.sources.names import code_like
from diffaug_datasets.sources.tables import TABLES, labelled_folder, labelled_table

PACKAGE = "diffaug_datasets.builders"
EMBEDDED = "the package"
OWN_IMAGES = "imagefolder"  # the builder of whatever has no fact sheet
UNKNOWN = "unknown"  # the licence of images of which nobody states one
NAMED = 20  # bad images of one reason in a sentence
COUNTED = MappingProxyType({"classes": "classes", "train": "training images", "test": "test images", "total": "images"})
IN_SEVERAL_CLASSES = "in more than one class, so its labels contradict each other"
IN_BOTH_SPLITS, REPEATED = "in training and in test", "more than once in a class"


@dataclass(frozen=True)
class RealSet:
    """The real images of a builder: tables, bytes on demand, the builder's facts, and what was found on the way.

    `notes`: what was decided where a source leaves a choice. `skipped`: images that cannot be used and were left out
    by the recipe's word. `emptied`: classes without a training image that `partial` left out.
    """

    train: SourceTable
    test: SourceTable | None
    read: Callable[[str, int], bytes]
    facts: BuilderFacts
    notes: tuple[str, ...] = ()
    survey: Survey = field(default_factory=Survey)
    skipped: tuple[BadImage, ...] = ()
    emptied: int = 0

    def table(self, split: str) -> SourceTable:
        """The table of `train`, or of `test` where there is one."""
        return self.train if split == "train" or self.test is None else self.test


class SeenSources:
    """What several readings in a row share: a source is opened once, and each image of it is looked at once.

    The last set is handed out again where the same is asked for. Bytes of images are compared with what was seen
    whenever they are read, as ever.
    """

    def __init__(self) -> None:
        self._opened: dict[str, _Opened] = {}
        self._checked: dict[str, _CheckedImages] = {}
        self._last: tuple[str, RealSet] | None = None

    def read(self, wanted: "_Wanted") -> RealSet:
        """As `read_real`."""
        protocol = wanted.protocol if wanted.protocol and wanted.protocol.ways else None
        key = repr(replace(wanted, protocol=protocol))
        if self._last is None or self._last[0] != key:
            self._last = key, _read(wanted, self)
        return self._last[1]

    def open(self, wanted: "_Wanted") -> "tuple[_Opened, _CheckedImages]":
        """A source, and what is known of its images; where bad ones are skipped, each reading finds its own."""
        key = repr(replace(wanted, protocol=None, phrases={}))
        if key not in self._opened:
            self._opened[key] = _open(find_builder(wanted.builder), builder_facts(wanted.builder), wanted)
        opened = self._opened[key]
        checked = self._checked.get(key) or _CheckedImages(opened, wanted.facts)
        if wanted.on_bad_image == "refuse":
            self._checked[key] = checked
        return opened, checked


@cache
def discover_builders() -> Mapping[str, ModuleType]:
    """Name -> module of every shipped and plugged-in builder, by name; a shipped one is never replaced."""
    package = importlib.import_module(PACKAGE)
    plugged = [point.load() for point in entry_points(group=PACKAGE)]
    names = [item.name for item in pkgutil.iter_modules(package.__path__) if not item.name.startswith("_")]
    shipped = [importlib.import_module(f"{PACKAGE}.{name}") for name in names]
    builders = {module.NAME: module for module in (*plugged, *shipped) if hasattr(module, "NAME")}
    return {name: builders[name] for name in sorted(builders)}


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
    """The fact sheet of a builder: the upper-case constants of its module.

    Raises:
        SourceError: no such builder, or it declares a column that every set has.
    """
    module = find_builder(name)
    stated = {fact.name: getattr(module, fact.name.upper(), None) for fact in fields(BuilderFacts)}
    facts = BuilderFacts(**{"title": name, **{key: value for key, value in stated.items() if value is not None}})
    if taken := facts.columns.keys() & column_meanings().keys():
        raise SourceError(f"{name}: declares the column {min(taken)!r}, which every set has; call it otherwise.")
    return facts


def recipe_facts(recipe: Recipe) -> BuilderFacts:
    """The fact sheet of a recipe's images: the builder's, or for images of one's own what the recipe states of them."""
    facts = builder_facts(recipe.builder)
    own_metaclass = facts.metaclass if recipe.metaclass is None else recipe.metaclass
    if recipe.builder != OWN_IMAGES:
        return replace(facts, metaclass=own_metaclass)
    licence = LICENCES[recipe.licence or "unknown"]
    on_hub = DATASET_ID.fullmatch(recipe.source or "")
    return replace(
        facts,
        title=recipe.title or recipe.name or facts.title,
        metaclass=own_metaclass,
        licence=licence.title,
        licence_id=licence.id,
        licence_url=licence.url,
        homepage=recipe.homepage or "",
        redistributable=licence.is_open,
        citation=recipe.citation or "",
        hub_id=on_hub["name"] if on_hub else None,
    )


def check_identity(recipe: Recipe) -> None:
    """Refuse what a recipe says of images that are not one's own, or would pass them off as others.

    Raises:
        RecipeError: a key beside a builder with a fact sheet of its own, or the name of a builder.
    """
    stated = [key for key in STATED if getattr(recipe, key) is not None]
    if recipe.builder != OWN_IMAGES and stated:
        title = builder_facts(recipe.builder).title
        raise RecipeError(
            f"{stated[0]}: is for images of your own (builder: {OWN_IMAGES}); {title} has its own, so leave it out."
        )
    taken = recipe.name in discover_builders() and recipe.name != recipe.builder
    if recipe.name and taken:
        raise RecipeError(f"name: got {recipe.name!r}, which is a dataset of this package; choose another name.")


@cache
def class_phrases(table: str) -> Mapping[str, str]:
    """Label -> prompt phrase, in the dataset's order, from `builders/names/<table>.json`."""
    text = (files(PACKAGE) / "names" / f"{check_key(table)}.json").read_text(encoding="utf-8")
    return {entry[0]: entry[-1] for entry in json.loads(text)}


def read_recipe_images(recipe: Recipe, copy: str | None = None, seen: SeenSources | None = None) -> RealSet:
    """The real images of a recipe, or of a reader's own copy of them, as `read_real` gives them.

    `seen`: what readings before have opened and looked at.

    Raises:
        DiffAugError: as `read_real`; also keys of a Hub source beside a folder.
    """
    source = here(copy) if copy else recipe.source
    chosen = [key for key in HUB_KEYS if getattr(recipe, key) is not None]
    is_inside = source is None and bool(builder_facts(recipe.builder).embedded)
    if source and Path(source).suffix.lower() in TABLES:
        chosen = [key for key in chosen if key not in ("image_column", "label_column")]
    if chosen and copy is None and (is_inside or (source and local_path(source) is not None)):
        what = "inside the package" if is_inside else f"the folder {source!r}"
        raise SourceError(
            f"{chosen[0]}: got {getattr(recipe, chosen[0])!r}, which chooses from a dataset of the Hub, but the source "
            f"is {what}; drop the key, or give the Hub id as source."
        )
    check_identity(recipe)
    wanted = _Wanted(
        builder=recipe.builder,
        source=source,
        partial=recipe.partial,
        protocol=parse_protocol(recipe.protocol),
        choice=hub_choice(recipe, source),
        on_bad_image=recipe.on_bad_image,
        facts=recipe_facts(recipe),
        phrases=recipe.classes,
    )
    real = (seen or SeenSources()).read(wanted)
    codes = [n for n, p in zip(real.train.class_names, real.train.prompt_names, strict=True) if code_like(p)]
    if recipe.builder == OWN_IMAGES and codes:
        survey = replace(real.survey, warnings=(*real.survey.warnings, _nameless(codes)))
        return replace(real, survey=survey)
    return real


def read_real(
    builder: str,
    source: str | os.PathLike[str] | None = None,
    partial: bool = False,
    protocol: Protocol | None = None,
    choice: HubChoice | None = None,
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
    facts = builder_facts(builder)
    wanted = _Wanted(builder, here(source), partial, protocol, choice or HubChoice(), on_bad_image, facts)
    return SeenSources().read(wanted)


def here(source: str | os.PathLike[str] | None) -> str | None:
    """A source as a person names it in the current folder: a folder's absolute path, or a Hub id."""
    if source is None or not isinstance(source, str):
        return None if source is None else str(Path(source).absolute())
    place = place_of(Recipe, "source")
    return place.absolute(source, Path()) if place else source


def hub_choice(recipe: Recipe, source: str | None) -> HubChoice:
    """What a recipe says about its Hub source; nothing about another source, whose splits and columns differ."""
    return HubChoice(*(getattr(recipe, key) for key in HUB_KEYS)) if source in (None, recipe.source) else HubChoice()


def check_counts(facts: BuilderFacts, listing: Listing, where: str) -> None:
    """Compare a listing with the dataset's official counts; `where` is for the message.

    Raises:
        SourceError: they differ; says how, and how to go on all the same.
    """
    train, test = len(listing.train), len(listing.test or ())
    found = {"classes": len(listing.class_names), "train": train, "test": test, "total": train + test}
    if any(found[key] != count for key, count in facts.official.items()):
        expected = ", ".join(f"{count} {COUNTED[key]}" for key, count in facts.official.items())
        got = ", ".join(f"{found[key]} {COUNTED[key]}" for key in facts.official)
        raise SourceError(
            f"{facts.name}: expected {expected}, found {got} in {where}; complete the copy, or pass partial=True "
            "(`partial: true` in a recipe) to use it as it is."
        )


def by_reason(bad_images: Iterable[BadImage]) -> str:
    """`empty (0 bytes): a/1.jpg, b/2.jpg; ...`, at most NAMED names for each reason."""
    names: dict[str, list[str]] = {}
    for image in bad_images:
        names.setdefault(image.reason, []).append(image.name)
    return "; ".join(f"{reason}: {few(group, NAMED)}" for reason, group in names.items())


def repeated_images(tables: Mapping[str, SourceTable]) -> tuple[str, ...]:
    """Warnings where the same bytes stand in several classes, more than once in one, or in training and test."""
    places: dict[str, list[tuple[str, Source]]] = {}
    for split, table in tables.items():
        for source in table.sources:
            places.setdefault(source.id, []).append((split, source))
    names: dict[str, list[str]] = {IN_SEVERAL_CLASSES: [], IN_BOTH_SPLITS: [], REPEATED: []}
    for same in places.values():
        if len(same) > 1:
            splits, labels = {split for split, _ in same}, {source.label for _, source in same}
            kind = IN_SEVERAL_CLASSES if len(labels) > 1 else IN_BOTH_SPLITS if len(splits) > 1 else REPEATED
            names[kind].append(" = ".join(source.key for _, source in same[:4]))
    return tuple(
        f"{len(group):,} {'image is' if len(group) == 1 else 'images are'} there {kind}: {few(group)}"
        for kind, group in names.items()
        if group
    )


@dataclass(frozen=True)
class _Wanted:
    """What is to be read, as the arguments of `read_real`. `facts`: what cards say of it; `phrases`: of a recipe."""

    builder: str
    source: str | None
    partial: bool
    protocol: Protocol | None
    choice: HubChoice
    on_bad_image: OnBadImage
    facts: BuilderFacts
    phrases: Mapping[str, str] = field(default_factory=dict)


def _read(wanted: _Wanted, seen: SeenSources) -> RealSet:
    builder, protocol, facts = wanted.builder, wanted.protocol, wanted.facts
    module = find_builder(builder)
    opened, checked = seen.open(wanted)
    if not wanted.partial and opened.where != EMBEDDED:
        check_counts(facts, opened.listing, opened.where)
    _check_phrases(wanted.phrases, opened.listing.class_names)
    whole = opened.listing
    while True:  # an image that cannot be used is left out, which may move an episode's draw to others
        listing = whole.present() if wanted.partial else whole
        listing = module.regroup(listing) if hasattr(module, "regroup") else listing
        listing = episode(listing, protocol) if protocol else listing
        checked.add((*listing.train, *(listing.test or ())))
        if checked.bad and wanted.on_bad_image == "refuse":
            raise checked.refusal()
        if len(kept := whole.without(checked.bad)) == len(whole):
            break
        whole = kept
    if not listing.train:
        bad = f" that can be used ({by_reason(checked.bad.values())})" if checked.bad else ""
        raise SourceError(f"{builder}: found no training image{bad} in {opened.where}; expected at least one.")
    splits = {"train": listing.train} | ({"test": listing.test} if listing.test else {})
    tables = {
        split: SourceTable(
            builder=facts.name,
            split=split,
            class_names=listing.class_names,
            prompt_names=_phrases(listing.class_names, module, wanted.phrases),
            metaclass=facts.metaclass,
            sources=tuple(map(checked.source, items)),
            revision=opened.revision,
        )
        for split, items in splits.items()
    }
    survey = checked.survey(tables)
    if empty := len(whole.class_names) - len(whole.present().class_names) if wanted.partial else 0:
        left_out = f"{empty:,} class{'es' * (empty > 1)} without a training image (partial)"
        survey = replace(survey, left_out=(*survey.left_out, left_out))
    keys = {split: tuple(item.key for item in items) for split, items in splits.items()}
    return RealSet(
        train=tables["train"],
        test=tables.get("test"),
        read=Reader(tables, keys, opened.fetch),
        facts=facts,
        notes=opened.notes,
        survey=survey,
        skipped=tuple(checked.bad.values()),
        emptied=empty,
    )


@dataclass(frozen=True)
class _Opened:
    """A source before its images are looked at. `where`: in words; `attributions`: by key of an image."""

    where: str
    listing: Listing
    fetch: Callable[[str], bytes]
    revision: str = ""
    attributions: Mapping[str, Attribution] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _check_phrases(phrases: Mapping[str, str], class_names: Sequence[str]) -> None:
    """Refuse phrases of classes that are not there: they may be misspelt."""
    known = {unicodedata.normalize("NFC", name): name for name in class_names}
    for label in phrases:
        if unicodedata.normalize("NFC", label) not in known:
            near = difflib.get_close_matches(label, known, n=1)
            guess = f"did you mean {near[0]!r}?" if near else f"there are {few(class_names, 10)}."
            raise RecipeError(f"classes: the real images have no class {label!r}; {guess}")


def _phrases(names: Sequence[str], module: ModuleType, stated: Mapping[str, str]) -> tuple[str, ...]:
    """What prompts call the classes: the recipe's phrases, else the builder's.

    Raises:
        RecipeError: a phrase of the recipe is that of another class too.
    """
    plain = {unicodedata.normalize("NFC", label): phrase for label, phrase in stated.items()}
    own = prompt_phrases(names, module.prompt_name)
    phrases = tuple(
        plain.get(unicodedata.normalize("NFC", name), phrase) for name, phrase in zip(names, own, strict=True)
    )
    owner: dict[str, str] = {}
    for name, phrase in zip(names, phrases, strict=True):
        if (other := owner.setdefault(phrase, name)) != name and stated:
            raise RecipeError(f"classes: {other!r} and {name!r} are both called {phrase!r}; give each its own phrase.")
    return phrases


def _nameless(labels: Sequence[str]) -> str:
    """The warning where prompts would say a code."""
    count = "1 class has" if len(labels) == 1 else f"{len(labels):,} classes have"
    shown = few([repr(label) for label in labels], 5)
    return (
        f"{count} a code for a name, which no model knows ({shown}); say under `classes:` in the recipe what prompts "
        "are to call them"
    )


def _open(module: ModuleType, facts: BuilderFacts, wanted: _Wanted) -> _Opened:
    source, choice = wanted.source, wanted.choice
    if source is None and facts.embedded:
        return _open_embedded(facts)
    text = source or facts.hub_id or ""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise SourceError(f"{facts.name}: got the source '{shown_name(text)}', whose name is not UTF-8; rename it.")
    folder = Path(text)
    if folder.is_absolute() and folder.is_dir():
        return _open_folder(module, folder, wanted.partial)
    if folder.is_absolute() and folder.is_file() and folder.suffix.lower() in TABLES:
        return _open_table(folder, choice)
    hub = f"a Hub id such as {facts.hub_id}" if facts.hub_id else "the Hub id of such a dataset (org/name)"
    table = ", a table of paths and labels (.csv)" if facts.name == OWN_IMAGES else ""
    ways = f"a folder with {facts.title} in its own layout or as class folders{table}, or {hub}"
    if meant := mistyped_folder(text):
        raise SourceError(f"{facts.name}: got {text!r}, where no folder is; did you mean {meant!r}?")
    if match := DATASET_ID.fullmatch(text):
        images = hub_images(facts, match["name"], match["revision"], choice, ways)
        where = f"{match['name']} on the Hub"
        return _Opened(
            where, images.listing, images.fetch, images.commit, attributions=images.attributions, notes=images.notes
        )
    if not text:
        got = "no source"
    elif text.startswith("~"):
        got = f"{text!r}, but `~` stands for no folder (this user has no home and HOME is not set)"
    else:
        got = f"the file {text!r}" if folder.exists() else f"{text!r}, where no folder is"
    raise SourceError(f"{facts.name}: got {got}, expected {ways}.")


def _open_table(path: Path, choice: HubChoice) -> _Opened:
    """A table of paths and labels; the images lie in the table's own folder, or below it."""
    fetch = FolderFetch(path.parent.resolve())
    found = labelled_table(fetch, path.name, choice.image, choice.label)
    return _Opened(f"'{path}'", found.listing, fetch, attributions=found.attributions)


def _open_folder(module: ModuleType, folder: Path, partial: bool) -> _Opened:
    if module.NAME == OWN_IMAGES:
        if found := labelled_folder(folder):
            return _Opened(f"'{folder}'", found.listing, FolderFetch(folder.resolve()), attributions=found.attributions)
        listing = module.read(folder, partial=partial)
    else:
        own = module.read(folder) if hasattr(module, "read") else None
        listing = own or find_builder(OWN_IMAGES).read(folder, partial=partial)
    fetch = FolderFetch(folder.resolve())
    stated = folder_attributions(fetch, [item.key for item in (*listing.train, *(listing.test or ()))])
    own_survey = listing.survey
    layout = ", ".join((own_survey.layout or f"the layout of {module.TITLE}", *stated.files))
    survey = Survey(layout, own_survey.left_out, (*own_survey.warnings, *stated.warnings))
    return _Opened(f"'{folder}'", replace(listing, survey=survey), fetch, attributions=stated.by_key)


def _open_embedded(facts: BuilderFacts) -> _Opened:
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


class _CheckedImages:
    """Every image of a source opened once, a few at a time: `ids` and `sizes` of the sound ones, faults of the others.

    `ids`: sha256 of the encoded bytes by key; `sizes`: how many these are. Memory: the encoded and decoded bytes of as
    many images as `memory.WINDOW_BYTES` holds.
    """

    def __init__(self, opened: _Opened, facts: BuilderFacts) -> None:
        self._opened = opened
        is_stated = facts.name == OWN_IMAGES and facts.licence_id != UNKNOWN
        self._licence: Attribution = (("license", facts.licence),) if is_stated else ()
        self.ids: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.bad: dict[str, BadImage] = {}
        self._long_texts: list[str] = []  # as they are shown
        self._files = known_files(opened.fetch)

    def add(self, items: Sequence[Listed]) -> None:
        """Check what was not checked before.

        Raises:
            SourceError: an image is not there, may not be read or lies outside the source; skipping is no way on.
        """

        def read() -> Iterator[tuple[Listed, State | None, bytes]]:
            for item in items:
                if item.key in self.ids or item.key in self.bad:
                    continue
                state, known = self._files.look(item.key) if self._files else (None, None)
                if state and known:
                    self._add(item, known, state.size)
                    continue
                try:
                    yield item, state, self._opened.fetch(item.key)
                except BadImage as error:
                    self.bad[item.key] = error

        def check(read: tuple[Listed, State | None, bytes]) -> tuple[Listed, State | None, int, Known | BadImage]:
            item, state, data = read
            try:
                if self._opened.where != EMBEDDED:
                    check_image(data, _shown(item))
            except BadImage as error:
                return item, state, len(data), error
            return item, state, len(data), Known(source_id(data), has_long_text(data))

        def cost(read: tuple[Listed, State | None, bytes]) -> int:
            return reading_bytes(len(read[2]), pixels_of(read[2]))

        for item, state, size, found in memory.in_order(check, read(), cost, memory.WINDOW_BYTES):
            if isinstance(found, BadImage):
                self.bad[item.key] = found
                continue
            self._add(item, found, size)
            if self._files:
                self._files.note(item.key, state, found)
        if self._files:
            self._files.save()
        self.bad = dict(sorted(self.bad.items()))  # those that could not even be read were found earlier

    def _add(self, item: Listed, known: Known, size: int) -> None:
        self.ids[item.key], self.sizes[item.key] = known.sha256, size
        if known.is_long:
            self._long_texts.append(_shown(item))

    def source(self, item: Listed) -> Source:
        """A sound image as tables name it."""
        stated = self._opened.attributions.get(item.key, ())
        if "license" not in dict(stated):
            stated = (*stated, *self._licence)
        return Source(self.ids[item.key], item.label, _shown(item), stated, self.sizes[item.key], item.columns)

    def refusal(self) -> SourceError:
        """One sentence that names every image that cannot be used (of many, the first for each reason)."""
        if len(self.bad) == 1:
            [only] = self.bad.values()
            return SourceError(f"{str(only).rstrip('.')}, or leave it out with `on_bad_image: skip`.")
        count, total = len(self.bad), len(self.bad) + len(self.ids)
        return SourceError(
            f"{count:,} of {total:,} images cannot be used: {by_reason(self.bad.values())}. Replace or remove them, or "
            "leave them out with `on_bad_image: skip`."
        )

    def survey(self, tables: Mapping[str, SourceTable]) -> Survey:
        """What the source said of itself, and what its images show: the same one twice, texts that others refuse."""
        said, where = self._opened.listing.survey, self._opened.where
        warnings = [*said.warnings, *(() if where == EMBEDDED else repeated_images(tables))]
        here = {source.key for table in tables.values() for source in table.sources} if self._long_texts else set()
        if long_texts := [name for name in self._long_texts if name in here]:
            names = f"{few(long_texts)}: carry more text than Pillow reads by itself (PNG metadata)"
            warnings.append(f"{names}; strip it, or raise PIL.PngImagePlugin.MAX_TEXT_CHUNK where the rows are loaded")
        layout = said.layout or ("inside the package" if where == EMBEDDED else where)
        return Survey(shown_name(layout), tuple(map(shown_name, said.left_out)), tuple(map(shown_name, warnings)))


def _shown(item: Listed) -> str:
    return shown_name(unicodedata.normalize("NFC", item.key))

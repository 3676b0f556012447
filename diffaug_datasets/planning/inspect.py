"""What a person's own images are, before a recipe exists: splits, classes, sizes, what is broken, double or odd.

A place is a folder, an archive, a table of paths and labels, or a dataset of the Hub. Everything that can be shown is
shown: only a place that no class can be seen in is refused. Every image is opened once by `sources.real`; of at most
`LOOKED_AT` the headers are read again, for their sizes and forms.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from yaml import YAMLError

from diffaug_datasets.core.errors import RecipeError, SourceError, few
from diffaug_datasets.core.files import read_text
from diffaug_datasets.core.images import formats
from diffaug_datasets.core.licences import find_licence
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.archives import OTHER_ARCHIVES, archive_suffix, left_out_text, unpack
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.names import Phrase, suggest_phrases
from diffaug_datasets.sources.real import (
    OWN_IMAGES,
    RealSet,
    builder_facts,
    discover_builders,
    find_builder,
    here,
    hub_choice,
    read_real,
)
from diffaug_datasets.sources.tables import TABLES, labelled_folder

LOOKED_AT = 2000  # images whose headers are read, spread evenly over a split
DEEPEST = 3  # folders around the images that hold nothing else
SMALL_SIDE = 64  # pixels; less tells a diffusion model little
LONG = 3  # times as wide as high, or the other way round; a square crop shows a part
STARTING_METHOD = "img2img"  # of the recipe that images are read with; it decides nothing about them

NO_TEST = (
    "no test images, which `diffaug bench` (does it help?) needs: hold some of each class back, in test/CLASS/ beside "
    "train/CLASS/"
)

Changes = Mapping[str, object]


@dataclass(frozen=True)
class Sizes:
    """Pixels of the images that were looked at: how many, width and height of the smallest, median and largest."""

    count: int
    smallest: tuple[int, int]
    middle: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class Inspection:
    """What was found at a place.

    `source`: what a recipe names, an absolute path or a Hub id; `partial`: what a recipe must say to read it at all.
    `found_in`: what was unpacked or gone into on the way, in words. `counts`: training images by class, `test_counts`
    of the test split, where there is one. `phrases`: what prompts could call the classes. `doubled`: sha256 of training
    images that are in the test split too or in several classes; `repeats`: copies within a class. `odd`: suspicious
    things, a sentence each. `licence`: the Hub's id, where the images state one.
    """

    source: str
    name: str
    real: RealSet
    partial: bool
    found_in: tuple[str, ...]
    counts: Mapping[str, int]
    test_counts: Mapping[str, int] | None
    phrases: Mapping[str, Phrase]
    sizes: Sizes
    doubled: tuple[str, ...]
    in_both: int
    in_classes: int
    repeats: int
    odd: tuple[str, ...]
    licence: str | None

    @property
    def nameless(self) -> tuple[str, ...]:
        """Classes whose label is a code."""
        return tuple(label for label, phrase in self.phrases.items() if phrase.code)

    @property
    def foreign(self) -> tuple[str, ...]:
        """Classes whose name has letters outside English."""
        return tuple(label for label, phrase in self.phrases.items() if phrase.is_foreign and not phrase.code)


def inspect(place: str, changes: Changes | None = None) -> Inspection:
    """Look at a folder, an archive (which is unpacked beside itself), a table, or a Hub id.

    `changes`: recipe keys that say how it is read, such as `source_config` and `label_column`.

    Raises:
        DiffAugError: nothing is there, or no class can be seen in it.
    """
    source, found_in = _located(place)
    content = {"builder": OWN_IMAGES, "method": STARTING_METHOD, **(changes or {}), "source": source}
    choice = hub_choice(Recipe.from_dict(content), source)
    real = read_real(OWN_IMAGES, source, partial=True, choice=choice, on_bad_image="skip")
    train, test = real.train, real.test
    labels = train.class_names
    doubled, in_both, in_classes, repeats = _doubles(real)
    sizes, odd = _looks(real)
    return Inspection(
        source=source,
        name=_name(place, source),
        real=real,
        partial=bool(real.emptied) or _needs_partial(source),
        found_in=tuple(found_in),
        counts=_counts(labels, train.labels),
        test_counts=_counts(labels, test.labels) if test else None,
        phrases=suggest_phrases(labels),
        sizes=sizes,
        doubled=doubled,
        in_both=in_both,
        in_classes=in_classes,
        repeats=repeats,
        odd=(*odd, *_odd_classes(real)),
        licence=_stated_licence(real, source),
    )


def known_builder(source: str) -> str | None:
    """The builder of this package that has a fact sheet for a dataset of the Hub."""
    match = DATASET_ID.fullmatch(source)
    return next((n for n in discover_builders() if match and builder_facts(n).hub_id == match["name"]), None)


def _located(place: str) -> tuple[str, list[str]]:
    """The source that a recipe would name, and what was done to get there."""
    path = Path(place).expanduser()
    if path.is_dir():
        return _innermost(path.absolute(), [])
    if path.is_file() and archive_suffix(path):
        unpacked = unpack(path.absolute())
        words = [f"{path.name} unpacked into {unpacked.folder.name}/, {unpacked.files:,} files"]
        if unpacked.left_out:
            words.append(f"left in {path.name}: {left_out_text(unpacked.left_out)}")
        return _innermost(unpacked.folder, words)
    if path.is_file() and path.suffix.lower() in TABLES:
        return str(path.absolute()), []
    if path.is_file():
        kinds = "a folder, .zip, .tar, .csv, .parquet or .jsonl"
        how = "unpack it and give the folder" if path.suffix.lower() in OTHER_ARCHIVES else f"give {kinds}"
        raise SourceError(f"'{place}': is a file of another kind; {how}.")
    source = here(place) or place
    if DATASET_ID.fullmatch(source) and not path.parent.is_dir():
        return source, []
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = (
        f"; did you mean '{path.with_name(near[0])}'?" if near else "; give a folder, an archive, a table or a Hub id."
    )
    raise SourceError(f"'{place}': nothing is there{hint}")


def _innermost(folder: Path, words: list[str]) -> tuple[str, list[str]]:
    """The folder that can be read: itself, the only one in it, or the only table of a folder without classes."""
    first: SourceError | None = None
    inner = folder
    for _ in range(DEEPEST):
        try:
            if labelled_folder(inner) is None:
                find_builder(OWN_IMAGES).read(inner, partial=True)
        except SourceError as error:
            first = first or error
        else:
            if inner != folder:
                words = [*words, f"the images lie in {inner.relative_to(folder.parent).as_posix()}/"]
            return str(inner), words
        below = [path for path in sorted(inner.iterdir()) if not path.name.startswith((".", "__"))]
        folders = [path for path in below if path.is_dir() and not path.is_symlink()]
        tables = [path for path in below if path.is_file() and path.suffix.lower() in TABLES]
        if len(tables) == 1:
            return str(tables[0]), [*words, f"no class folders, so {tables[0].name} says which image is what"]
        if len(folders) != 1 or any(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in below):
            break
        inner = folders[0]
    assert first is not None
    raise first


def _needs_partial(source: str) -> bool:
    folder = Path(source)
    if not folder.is_absolute() or not folder.is_dir() or labelled_folder(folder):
        return False
    try:
        find_builder(OWN_IMAGES).read(folder)
    except SourceError:
        return True
    return False


def _name(place: str, source: str) -> str:
    """What the place is called: the Hub's name of it, or that of the folder or file that was given."""
    if match := DATASET_ID.fullmatch(source):
        return match["name"].split("/")[1]
    path = Path(place).expanduser().absolute().resolve()
    ending = archive_suffix(path) or (path.suffix if path.suffix.lower() in TABLES else "")
    return path.name.removesuffix(path.name[-len(ending) :]) if ending else path.name


def _counts(names: Sequence[str], labels: Sequence[int]) -> Mapping[str, int]:
    counted = Counter(labels)
    return {name: counted[label] for label, name in enumerate(names)}


def _doubles(real: RealSet) -> tuple[tuple[str, ...], int, int, int]:
    """Images to leave out (in test too, or of several classes), how many of each kind, and copies within a class."""
    labels: defaultdict[str, list[int]] = defaultdict(list)
    for source in real.train.sources:
        labels[source.id].append(source.label)
    tested = {source.id for source in real.test.sources} if real.test else set()
    in_both = [image for image in labels if image in tested]
    in_classes = [image for image, own in labels.items() if len(set(own)) > 1]
    repeats = sum(len(own) - 1 for own in labels.values() if len(set(own)) == 1)
    gone, kept = {*in_both, *in_classes}, Counter[int]()
    for image, own in labels.items():
        kept.update(dict.fromkeys(own, image not in gone))
    spared = {image for image in gone if any(not kept[label] for label in labels[image])}  # else a class is left empty
    return tuple(sorted(gone - spared)), len(in_both), len(in_classes), repeats


def _looks(real: RealSet) -> tuple[Sizes, list[str]]:
    """Sizes of the images, and which have a form that surprises, by reading headers."""
    seen: list[tuple[int, int]] = []
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for split, index in _spread(real):
        key = real.table(split).sources[index].key
        with Image.open(BytesIO(real.read(split, index)), formats=formats()) as image:
            seen.append(image.size)
            for kind in _kinds(image):
                kinds[kind].append(key)
    by_area = sorted(seen, key=lambda size: (size[0] * size[1], size))
    middle = (round(median(w for w, _ in seen)), round(median(h for _, h in seen)))
    odd = [f"{len(keys):,} {kind}: {few(keys)}" for kind, keys in sorted(kinds.items())]
    return Sizes(len(seen), by_area[0], middle, by_area[-1]), odd


def _spread(real: RealSet) -> Iterator[tuple[str, int]]:
    for split in ("train", "test") if real.test else ("train",):
        count = len(real.table(split))
        step = -(-count // LOOKED_AT)
        yield from ((split, index) for index in range(0, count, max(step, 1)))


def _kinds(image: Image.Image) -> Iterator[str]:
    short, long = sorted(image.size)
    if short < SMALL_SIDE:
        yield f"smaller than {SMALL_SIDE} pixels, enlarged for the model"
    if long > LONG * short:
        yield f"more than {LONG} times as long as wide, cropped to a part"
    if image.mode == "CMYK":
        yield "in CMYK, read as RGB without their colour profile"
    if image.mode.startswith("I") or image.mode == "F":
        yield "of 16 bits per channel or more, read as 8 bits"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        yield "animated or of several pages, of which the first is read"


def _odd_classes(real: RealSet) -> Iterator[str]:
    counts = _counts(real.train.class_names, real.train.labels)
    if single := [name for name, count in counts.items() if count == 1]:
        yield f"{len(single):,} {'class has' if len(single) == 1 else 'classes have'} one image only: {few(single, 5)}"
    if real.test is not None:
        tested = _counts(real.test.class_names, real.test.labels)
        if bare := [name for name, count in tested.items() if not count]:
            yield f"{len(bare):,} {'class has' if len(bare) == 1 else 'classes have'} no test image: {few(bare, 5)}"
    if len(counts) == 1:
        yield "there is one class only, so no classifier can be trained on it"


def _stated_licence(real: RealSet, source: str) -> str | None:
    """The licence that all training images state alike, or the card of a Hub dataset, by the Hub's id."""
    stated = {dict(source.attribution).get("license") for source in real.train.sources}
    text = stated.pop() if len(stated) == 1 else None
    if text is None and (match := DATASET_ID.fullmatch(source)):
        text = _card_licence(match["name"], match["revision"])
    try:
        return find_licence(text).id if text else None
    except RecipeError:
        return None


def _card_licence(name: str, revision: str | None) -> str | None:
    """What the card on the Hub says; None where there is none, or neither it nor its head can be read."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    unanswered: Any = HfHubHTTPError.__mro__[1]  # whatever the HTTP library of this huggingface_hub raises
    try:
        path = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
        licence = DatasetCard(read_text(Path(path))).data.get("license")
    except (unanswered, OSError, ValueError, YAMLError):
        return None
    return licence if isinstance(licence, str) else None

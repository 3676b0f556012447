"""What a plan would cost, from the published counts of its dataset alone: no image of it need be here.

Stand-ins take the places of the real images: as many as the dataset's page states (`OFFICIAL` of its builder, with its
`HOMEPAGE`), spread evenly over the classes; of a long tail over those of each group (many, medium, few) where the
sizes of these are published. The protocol draws from them and the method plans on them as on the images themselves, so
rows, fits and evaluations are counted, not estimated; what rests on the pictures (their bytes and pixels) is assumed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.models import HUB_ID, BackboneSpec, find_backbone
from diffaug_datasets.core.protocols import episode, parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import BuilderFacts, Listed, Listing, Source, SourceTable, Survey
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.planning.price import Photos, Price, price
from diffaug_datasets.sources.real import RealSet, recipe_facts

PHOTO_BYTES = 110_000  # of ImageNet's 1,281,167 training images: 138 GB, as its download page states
PHOTO_PIXELS = 500 * 375


def price_published(recipe: Recipe, folder: Path) -> Price:
    """The price of a recipe whose real images are not here, without a plan id; `folder`: where the run would go.

    Raises:
        SourceError: the dataset states no number of classes and training images.
        DiffAugError: as `prepare`.
    """
    real = stand_ins(recipe)
    prepared = prepare(recipe.model_copy(update={"source": None, "backbone": _pinned(recipe.backbone)}), stand_ins=real)
    count = len(prepared.plan.real)
    photos = Photos(count, count * PHOTO_BYTES, PHOTO_BYTES, count * PHOTO_PIXELS, PHOTO_PIXELS)
    return replace(price(prepared, folder, photos), plan_id="")


def stand_ins(recipe: Recipe) -> RealSet:
    """As many sources as the dataset has images, none of which can be read.

    Raises:
        SourceError: their number is not published.
    """
    facts = recipe_facts(recipe)
    train, test = published_counts(facts)
    listing = episode(_listing(class_sizes(facts, train), test), parse_protocol(recipe.protocol))
    splits = {"train": listing.train} | ({"test": listing.test} if listing.test else {})
    tables = {split: _table(facts, split, listing.class_names, items) for split, items in splits.items()}

    def read(split: str, index: int) -> bytes:
        raise SourceError(f"{facts.name}: {split}/{index} is a stand-in for an image that is not here; give --source.")

    found = f"{facts.title}: {train:,} training images of {facts.official['classes']} classes, {_stated(facts)}"
    return RealSet(tables["train"], tables.get("test"), read, facts, survey=Survey(found))


def published_counts(facts: BuilderFacts) -> tuple[int, int]:
    """Training and test images that the dataset states; of one without a split, halves of every class.

    Raises:
        SourceError: it states none.
    """
    official = facts.official
    if "classes" in official and "train" in official:
        return official["train"], official.get("test", 0)
    if "classes" in official and "total" in official:
        train = sum(size // 2 for size in _even(official["total"], official["classes"]))
        return train, official["total"] - train
    raise SourceError(
        f"{facts.name}: no number of classes and training images is published for it; leave out --price and give its "
        "images (--source FOLDER)."
    )


def class_sizes(facts: BuilderFacts, train: int) -> list[int]:
    """Training images of every class, as evenly as what is published allows."""
    groups = facts.group_counts or ((facts.official["classes"], train),)
    return [size for classes, images in groups for size in _even(images, classes)]


def _pinned(spec: BackboneSpec) -> BackboneSpec:
    """With some revision: which one it is changes no price, and weights that are not here have none."""
    is_known = spec.revision or find_backbone(spec).folder or HUB_ID.fullmatch(spec.id) is None
    return spec if is_known else spec.model_copy(update={"revision": "0" * 40})


def _stated(facts: BuilderFacts) -> str:
    return f"as {facts.homepage} states" if facts.homepage else "as its builder states"


def _even(total: int, classes: int) -> list[int]:
    return [total // classes + (label < total % classes) for label in range(classes)]


def _listing(train: Sequence[int], test: int) -> Listing:
    """Stand-ins in the order of their classes: so many for training of each, so many for testing in all."""

    def items(split: str, sizes: Sequence[int]) -> tuple[Listed, ...]:
        labels = (label for label, size in enumerate(sizes) for _ in range(size))
        return tuple(Listed(f"{split}/{i}", label) for i, label in enumerate(labels))

    names = tuple(f"class {label:05d}" for label in range(len(train)))
    return Listing(names, items("train", train), items("test", _even(test, len(train))) if test else None)


def _table(facts: BuilderFacts, split: str, names: tuple[str, ...], items: Sequence[Listed]) -> SourceTable:
    """Sources with ids of their own."""
    ids = (hashlib.sha256(f"{facts.name}/{item.key}".encode()).hexdigest() for item in items)
    sources = tuple(Source(one, item.label, item.key, size=PHOTO_BYTES) for one, item in zip(ids, items, strict=True))
    return SourceTable(facts.name, split, names, names, facts.metaclass, sources)

"""What a model has seen of the dataset that it judges, by its own card, which is read where it lies, offline.

Cards of the Hub list what a model was trained on as `datasets:`, without splits. Where `training_splits:` says them
(dataset -> list of splits), as the cards of this package do, a model of the training split alone is no leak.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.files import read_text
from diffaug_datasets.core.models import TINY, find_model, is_local
from diffaug_datasets.core.recipe import SHOTS, Recipe
from diffaug_datasets.core.sources import BuilderFacts
from diffaug_datasets.release.layout import README, split_card
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.real import builder_facts

How = Literal["test", "no split said", "overlap", "training", "unknown"]

IMAGENET = ("imagenet", "imagenet1k", "imagenet12k", "imagenet21k", "imagenet22k", "ilsvrc2012")
# Builders whose test images may be training images of ImageNet: drawn from it (the first four), or with images in
# common, as the home page of CUB-200-2011, whose birds are those of Waterbirds too, warns.
OF_IMAGENET = ("imagenette", "mini_imagenet", "tiered_imagenet", "stl10", "cub", "waterbirds")
OVERLAPS: Mapping[str, tuple[str, ...]] = MappingProxyType(dict.fromkeys(IMAGENET, OF_IMAGENET))


class Known(Protocol):
    """A model by its recorded name and, where it has one, its folder."""

    @property
    def name(self) -> str:
        """As rows record it."""

    @property
    def folder(self) -> Path | None:
        """Where its files and its card lie."""


@dataclass(frozen=True)
class ModelAt:
    """A model that need not be loaded to be asked for its card."""

    name: str
    folder: Path | None


@dataclass(frozen=True)
class SourceDataset:
    """The real dataset of a set: its builder, its title, the names that it goes by, and its splits of training."""

    builder: str
    title: str
    names: frozenset[str]
    training: tuple[str, ...] = ("train",)


@dataclass(frozen=True)
class Seen:
    """What a model's card says of a dataset; `grave` where its word on the test images may flatter."""

    model: str
    how: How
    sentence: str

    @property
    def grave(self) -> bool:
        """Whether test images may be among what it was trained on."""
        return self.how in ("test", "no split said", "overlap")


def dataset_of(where: str | Path, config: str | None = None) -> SourceDataset:
    """The real dataset of a run folder, of a published set or of an address.

    Raises:
        DiffAugError: it is none of these, or its recipe cannot be read.
    """
    return source_dataset(recipe_of(where, config))


def recipe_of(where: str | Path, config: str | None = None) -> Recipe:
    """The recipe of a run folder, of a published set or of an address.

    Raises:
        DiffAugError: it is none of these, or its recipe cannot be read.
    """
    if run := run_at(where):
        return run.recipe
    repository = Repository.open(str(where))
    return Recipe.from_yaml(repository.checked(repository.release(config), "recipe.yaml"), folder=None)


def source_dataset(recipe: Recipe) -> SourceDataset:
    """The same of a recipe; own photographs have no name, but that of a Hub source."""
    try:
        facts = builder_facts(recipe.builder)
    except DiffAugError:  # its builder is a plug-in that is not here
        facts = BuilderFacts(recipe.builder, recipe.builder)
    names = {facts.hub_id or "", "" if recipe.builder == "imagefolder" else facts.title}
    source = DATASET_ID.fullmatch(recipe.source) if recipe.source and not is_local(recipe.source) else None
    title = facts.title
    if source:
        names.add(source["name"])
        title = source["name"] if recipe.builder == "imagefolder" else title
    return SourceDataset(recipe.builder, title, frozenset(filter(None, map(_plain, names))), facts.hub_train)


def judges_of(recipe: Recipe) -> tuple[ModelAt, ...]:
    """The classifier that a recipe has its images judged by; none where there is none, or it is not on this machine."""
    judge = recipe.scores.judge
    if judge in (None, SHOTS):
        return ()
    try:
        model = find_model(str(judge), "judge")
        return (ModelAt(model.name, model.folder),)
    except (DiffAugError, OSError):
        return (ModelAt(str(judge), None),)


def seen_by(model: Known, dataset: SourceDataset, role: str) -> Seen | None:
    """What the model's card says of the dataset; None where it names others alone. `role`: encoder, judge."""
    trained = trained_on(model.folder) if model.folder is not None else None
    called = f"{role} {model.name}"
    if trained is None:
        return Seen(model.name, "unknown", f"{called}: no card here says what it was trained on.")
    found = list(_statements(trained, dataset, called))
    order: Sequence[How] = ("test", "no split said", "overlap", "training")
    ranked = sorted(found, key=lambda one: order.index(one[0]))
    return Seen(model.name, *ranked[0]) if ranked else None


def _statements(
    trained: Mapping[str, tuple[str, ...]], dataset: SourceDataset, called: str
) -> Iterator[tuple[How, str]]:
    for name, splits in trained.items():
        if _plain(name) in dataset.names:
            if not splits:
                reason = "and names no split, so it may have seen the test images"
                yield "no split said", f"{called}: its card says it was trained on {name} {reason}."
            elif set(splits) <= set(dataset.training):
                which = f"the training split of {dataset.title} and not on its test images"
                yield "training", f"{called}: was trained on {which}, says its card."
            else:
                listed = " and ".join(splits)
                yield (
                    "test",
                    f"{called}: has seen the test images: its card says it was trained on {listed} of {name}.",
                )
        elif dataset.builder in OVERLAPS.get(_plain(name), ()):
            reason = f"with which {dataset.title} has images in common, so it may have seen test images"
            yield "overlap", f"{called}: its card says it was trained on {name}, {reason}."


def trained_on(folder: Path) -> Mapping[str, tuple[str, ...]] | None:
    """Dataset -> splits (none where they are not said) that a model.s card states; None without a word."""
    card = _card(folder)
    if card is None:
        return None
    try:
        metadata, _ = split_card(read_text(card))
    except (OSError, ValueError, TypeError):
        return None
    listed, splits = metadata.get("datasets"), metadata.get("training_splits")
    names = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    said = splits if isinstance(splits, dict) else {}
    stated = {str(name): _texts(said.get(name)) for name in names} | {str(k): _texts(v) for k, v in said.items()}
    return stated or None


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(map(str, value))
    return (value,) if isinstance(value, str) else ()


def _card(folder: Path) -> Path | None:
    """The README of a model; the packaged ones have one together."""
    packaged = find_model(TINY, "encoder").folder
    shelf = [folder.parent] if packaged is not None and folder.parent == packaged.parent else []
    return next((place / README for place in (folder, *shelf) if (place / README).is_file()), None)


def _plain(name: str) -> str:
    """The last part of a name, without capitals and signs: Fashion-MNIST and org/fashion_mnist are the same."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].casefold())

"""What other run folders hold already: which fits and which images may be taken over instead of made again.

A fit's name is a digest of its settings and images. It leaves out the size and dtype of the network, which therefore
are compared here: what was learned or inverted at another resolution is another thing under the same name. Two plans
that differ in their filters alone make the same images: filters mark rows, once all shards are in.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffaug_datasets.core.backbone_spec import BackboneSpec
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.temporary import write_atomically
from diffaug_datasets.run.stacks import Stack
from diffaug_datasets.run.store import Receipt, Run

# What follows from an encoder and its images alone.
WITHOUT_BACKBONE = frozenset({"embeddings", "pool_features", "retrieval"})
NETWORK = ("variant", "dtype")
Size = tuple[int, int]


def same_network(ours: BackboneSpec, theirs: Mapping[str, Any], native: Callable[[], Size]) -> bool:
    """Whether two recipes drive one backbone alike; `native` is asked for (height, width) where one leaves it open."""
    if any(getattr(ours, key) != theirs.get(key) for key in NETWORK):
        return False
    sizes = {(ours.height, ours.width), (theirs.get("height"), theirs.get("width"))}
    if len(sizes) == 1 or not any(None in size for size in sizes):
        return len(sizes) == 1
    height, width = native()
    return len({(size[0] or height, size[1] or width) for size in sizes}) == 1


def adoptable(
    unit: FitUnit, run: Run, others: Sequence[Path], is_ours: Callable[[Stack, int], bool], native: Callable[[], Size]
) -> tuple[Run, Receipt] | None:
    """The first of the other runs that holds this fit whole, made by this network on this stack.

    `is_ours(stack, batch shape)`: whether a stack, whose fingerprints are of that shape, computes what this one does.
    """
    for other in map(Run.open, others):
        receipt, recipe = other.receipt(unit.name), other.plan.header.recipe
        if receipt is None or not other.intact(unit.name):
            continue
        alike = unit.kind in WITHOUT_BACKBONE or same_network(run.recipe.backbone, recipe["backbone"], native)
        if alike and is_ours(receipt.stack, int(recipe["batch_size"])):
            return other, receipt
    return None


def same_images(plan: Plan, other: Plan) -> bool:
    """Whether two plans make the same images and scores: all but their filters is equal."""
    return _without_filters(plan) == _without_filters(other) and plan.rows == other.rows


def _without_filters(plan: Plan) -> dict[str, Any]:
    header = plan.header.model_dump(mode="json")
    return {**header, "recipe": {**header["recipe"], "filters": None}}


def take_over(origin: Path, target: Path) -> None:
    """The same bytes at another place; nothing writes into a finished file, so that both may be one."""

    def link(temporary: Path) -> None:
        try:
            os.link(origin, temporary)
        except OSError:
            shutil.copyfile(origin, temporary)

    target.unlink(missing_ok=True)  # renaming one name of a file to another of its names would do nothing
    write_atomically(target, link)


def refusals(run: Run, others: Sequence[Path]) -> Iterator[str]:
    """A sentence for every other run whose fits have names of ours and yet are not taken: size or dtype differ."""
    ours = run.recipe.backbone
    names = {unit.name for unit in run.plan.fits if unit.kind not in WITHOUT_BACKBONE}
    for other in map(Run.open, others):
        theirs = other.plan.header.recipe["backbone"]
        shared = names & {unit.name for unit in other.plan.fits}
        if shared and not same_network(ours, theirs, lambda: (0, 0)) and not _leaves_open(ours, theirs):
            made, wanted = _text(theirs), _text(ours.model_dump())
            yield f"{other.folder}: its fits were made at {made}, this run is {wanted}; they are made here instead."


def _leaves_open(ours: BackboneSpec, theirs: Mapping[str, Any]) -> bool:
    """Whether the sizes might be the same although one is not stated."""
    stated = (ours.height, ours.width, theirs.get("height"), theirs.get("width"))
    return None in stated and all(getattr(ours, key) == theirs.get(key) for key in NETWORK)


def _text(backbone: Mapping[str, Any]) -> str:
    height, width = backbone.get("height"), backbone.get("width")
    size = f"{height} x {width} pixels" if height and width else "its own size"
    return " ".join(filter(None, (f"{size} in", backbone["dtype"], backbone.get("variant"))))

"""Rebuild one finished row from its own columns, the fits it cites and the real images it names: the arbiter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import LoadBackbone, ReadSource, WorkContext, load_backbone, settle
from diffaug_datasets.run.pools import recipe_pool
from diffaug_datasets.run.schedule_check import checked_loader
from diffaug_datasets.run.shards import ImageFormat, encode_row


@dataclass(frozen=True)
class Rebuilt:
    """An encoded image and whether its pixels are the stored ones, bit for bit."""

    data: bytes
    pixel_sha256: str
    equal: bool


def regenerator(
    recipe: Recipe,
    fits: Path,
    read_source: ReadSource,
    *,
    device: str = "cpu",
    loader: LoadBackbone = load_backbone,
) -> Callable[[Mapping[str, Any]], Rebuilt]:
    """A function from a row's published columns (the image is not looked at) to its rebuilt image.

    It needs no plan and no shard: only the recipe's models, the fits named in `adapters` and the sources.
    """
    settle(recipe.threads)
    encoder = getattr(recipe.method_config, "encoder", None)
    beside = recipe_pool(recipe)
    load = checked_loader(loader, recipe)
    ctx = WorkContext(recipe.backbone, fits, read_source, device=device, encoder=encoder, loader=load, pool=beside)
    job = BatchJob(recipe.module, recipe.method_config, ctx, recipe.seed, recipe.batch_size, 1)

    def rebuild(columns: Mapping[str, Any]) -> Rebuilt:
        """The row of these columns, made again."""
        _check(recipe, columns)
        made = job.rebuild(row_of(columns), int(columns["batch_shape"]))
        if made is None:
            raise RunError(
                f"row {columns['row_id']}: memory does not suffice for batch shape {columns['batch_shape']}."
            )
        image_format: ImageFormat = columns["image_format"]
        row = encode_row(made, {}, str(columns["plan_id"]), image_format)
        digest = row["pixel_sha256"]
        return Rebuilt(row["image"]["bytes"], digest, digest == columns["pixel_sha256"])

    return rebuild


def _check(recipe: Recipe, columns: Mapping[str, Any]) -> None:
    if columns["origin"] == "real":
        raise RunError(f"row {columns['row_id']} is a real image; only generated rows can be rebuilt.")
    stated, ours = (columns["method"], columns["method_version"]), (recipe.method, recipe.module.VERSION)
    if stated != ours:
        raise RunError(
            f"row {columns['row_id']} was made by {stated[0]} version {stated[1]}, this is {ours[0]} {ours[1]}."
        )


def row_of(columns: Mapping[str, Any]) -> PlanRow:
    """The planned part of a published row; columns that an older set lacks have their defaults."""
    names = (PlanRow.model_fields.keys() - {"k", "split"}) & columns.keys()
    return PlanRow(**{name: columns[name] for name in names}, k=0)

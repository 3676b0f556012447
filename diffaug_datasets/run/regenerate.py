"""Rebuild one finished row from its own columns, at its place of the planned batch: the arbiter."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.plan import Batch, Plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import LoadBackbone, ReadSource, WorkContext, load_backbone, settle, stack
from diffaug_datasets.run.pools import recipe_pool
from diffaug_datasets.run.schedule_check import checked_loader
from diffaug_datasets.run.shards import ImageFormat, encode_row


@dataclass(frozen=True)
class Rebuilt:
    """An encoded image and whether its pixels are the stored ones, bit for bit."""

    data: bytes
    pixel_sha256: str
    equal: bool


class Regenerator:
    """Makes rows of a run again from their published columns; the stored image is not looked at.

    It needs no shard: the recipe's models, the fits named in `adapters`, the sources, and the plan, which says at which
    place of which batch a row was made. Neighbours whose sources are not here leave their places to others.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        fits: Path,
        read_source: ReadSource,
        *,
        device: str = "cpu",
        loader: LoadBackbone = load_backbone,
    ) -> None:
        settle(recipe.threads)
        self.recipe, self.plan, self._device = recipe, plan, device
        encoder = getattr(recipe.method_config, "encoder", None)
        beside = recipe_pool(recipe)
        load = checked_loader(loader, recipe)
        self._ctx = WorkContext(
            recipe.backbone, fits, read_source, device=device, encoder=encoder, loader=load, pool=beside
        )
        shape = recipe.batch_size
        self._job = BatchJob(recipe.module, recipe.method_config, self._ctx, recipe.seed, shape, recipe.attempts)

    def __call__(self, columns: Mapping[str, Any]) -> Rebuilt:
        """The row of these columns, made again.

        Raises:
            RunError: the row is real, of another version of the method or another plan, or memory does not suffice.
        """
        _check(self.recipe, columns)
        batch, place = self._place(str(columns["row_id"]))
        shape, attempt = int(columns["batch_shape"]), int(columns["attempt"])
        made = self._job.rebuild(row_of(columns), batch, place, attempt, shape)
        if made is None:
            raise RunError(f"row {columns['row_id']}: memory does not suffice for batch shape {shape}.")
        image_format: ImageFormat = columns["image_format"]
        row = encode_row(made, {}, str(columns["plan_id"]), image_format)
        digest = row["pixel_sha256"]
        return Rebuilt(row["image"]["bytes"], digest, digest == columns["pixel_sha256"])

    @cached_property
    def stack(self) -> dict[str, str]:
        """This machine's stack with the fingerprints of the networks that decide pixels."""
        is_drawn = any(row.backbone for row in self.plan.rows[:1])
        probes = ["numerics"] * is_drawn + ["numerics_encoder"] * (is_drawn and "encoder" in self.recipe.module.NEEDS)
        return stack(self._device) | {key: self._ctx.numerics(key, self.recipe.batch_size) for key in probes}

    def _place(self, row_id: str) -> tuple[Batch, int]:
        if row_id not in self._places:
            raise RunError(f"row {row_id}: is none of plan {self.plan.id[:16]}; give the plan that it was made under.")
        return self._places[row_id]

    @cached_property
    def _places(self) -> dict[str, tuple[Batch, int]]:
        batches = [batch for shard in self.plan.shards() for batch in shard.batches(self.recipe.batch_size)]
        return {row.row_id: (batch, place) for batch in batches for place, row in enumerate(batch) if row is not None}


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

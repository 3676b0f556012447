"""A finished row made again from its own columns, at its place of the planned batch, and compared with the stored one.

On the stack that made it an image must come out bit for bit. Another stack rounds elsewhere, so there the distance is
measured and must stay below a tolerance. `release.rebuild` is the same idea, one level up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.compute as pc

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.plan import Batch, Plan
from diffaug_datasets.core.plan_table import column_of
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import Row
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import Have, ReadSource, WorkContext, sources_in
from diffaug_datasets.run.scores import ImageScores
from diffaug_datasets.run.shards import made_row
from diffaug_datasets.run.stacks import Stack, difference, same_stack, set_determinism, stack
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.pools import recipe_pool

# Seen between MKL's, ATen's and oneDNN's paths on one CPU (the packaged model in float32, 10 and 25 steps, 40 rows of
# each of four methods): at most 1 level, on up to 7 of 40 rows, 0.0007 on average. A larger model, more pixels and
# another device spread that further. The mean must stay narrow: a source noised to a label that is one off gives 0.04
# and at most 1 level; another seed, prompt, source or fit gives tens of levels.
MOST_LEVELS = 4
MOST_MEAN = 0.02
# What the profiles fast and turbo state on the stack that made a row: kernels that were compiled or laid out again, and
# sums in another order, gave one level at most against eager ones in float32 (tests/models/test_kernels.py).
MOST_LEVELS_HERE = 1


def rebuild_row(run: Run, prefix: str, device: str = "cpu") -> "tuple[Rebuilt, Closeness]":
    """Make the finished row whose id begins so again, and compare it with the stored image.

    Raises:
        RunError: no row or several begin so, it is a real one, it failed, it is not made yet, or as `Regenerator`.
    """
    row = finished_row(run, prefix)
    return _compared(regenerator_of(run, device), row)


def regenerator_of(run: Run, device: str = "cpu") -> "Regenerator":
    """What makes rows of a run again: its models and sources are loaded once, when a row first needs them."""
    fits = run.folder / "fits"
    return Regenerator(run.recipe, run.plan, fits, sources_of(run), device=device, have=run.have)


def rebuild_with(regenerate: "Regenerator", run: Run, prefix: str) -> "tuple[Rebuilt, Closeness]":
    """As `rebuild_row`, with what is loaded already."""
    return _compared(regenerate, finished_row(run, prefix))


def _compared(regenerate: "Regenerator", row: "FinishedRow") -> "tuple[Rebuilt, Closeness]":
    made = regenerate(row.columns)
    row_id, stored = str(row.columns["row_id"]), str(row.columns["pixel_sha256"])
    return made, closeness(row_id, stored, made, [row.stack], regenerate, lambda: row.image)


def sources_of(run: Run) -> ReadSource:
    """Reads the encoded bytes of real training images; a shard is opened when one of its images is asked for."""
    shards = [shard for shard in run.plan.real_shards() if shard.kind == "real"]
    homes = {row.source_ids[0]: shard for shard in shards for row in shard.rows}
    readers: dict[str, ReadSource] = {}

    def read(source_id: str) -> bytes:
        shard = homes.get(source_id)
        if shard is None:
            raise SourceError(f"source {source_id[:12]}: not among this run's real images.")
        if shard.name not in readers:
            readers[shard.name] = sources_in([run.table(shard)])
        return readers[shard.name](source_id)

    return read


@dataclass(frozen=True)
class FinishedRow:
    """A generated row as it is stored: its columns without the image, the encoded image, and the stack that made it."""

    columns: Mapping[str, object]
    image: bytes
    stack: Stack


def finished_row(run: Run, prefix: str) -> FinishedRow:
    """The generated row of a run whose id begins so.

    Raises:
        RunError: no row or several begin so, it is a real one, it failed, or it is not made yet.
    """
    row_id = run.row(prefix).row_id
    shards = run.plan.shards()
    shard = next((s for s in shards if pc.any(pc.equal(column_of(s.rows, "row_id"), row_id)).as_py()), None)
    if shard is None:
        raise RunError(f"row {row_id}: is a real image, which nothing made; name a generated row.")
    receipt = run.receipt(shard.name)
    if receipt is None:
        raise RunError(f"row {row_id}: not made yet; `diffaug generate {run.where}` makes it.")
    if failed := next((row for row in receipt.failed if row.row_id == row_id), None):
        raise RunError(f"row {row_id}: has no image; it failed after {failed.attempts} attempts ({failed.reason}).")
    table = run.table(shard)
    columns = table.slice(table.column("row_id").to_pylist().index(row_id), 1).to_pylist()[0]
    return FinishedRow(columns, bytes(columns.pop("image")["bytes"]), receipt.stack)


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
        have: Have = lambda _: None,
    ) -> None:
        """`have`: as `WorkContext` takes it."""
        set_determinism(recipe.threads)
        self.recipe, self.plan, self._device = recipe, plan, device
        self._ctx = WorkContext(recipe, fits, read_source, device=device, pool=recipe_pool(recipe), have=have)
        shape = recipe.batch_size
        self._job = BatchJob(
            recipe.method_definition, recipe.method_config, self._ctx, recipe.seed, shape, recipe.attempts
        )

    def __call__(self, columns: Mapping[str, object]) -> Rebuilt:
        """The row of these columns, made again.

        Raises:
            ValueError: a column is missing or has another type.
            RunError: the row is real, of another version of the method or another plan, or memory does not suffice.
        """
        row = Row.of(columns, b"")
        method = self.recipe.method_definition
        stated, ours = (row.plan.method, row.plan.method_version), (method.NAME, method.VERSION)
        if row.plan.origin == "real":
            raise RunError(f"row {row.id} is a real image; only generated rows can be rebuilt.")
        if stated != ours:
            raise RunError(f"row {row.id} was made by {stated[0]} version {stated[1]}, this is {ours[0]} {ours[1]}.")
        if row.id not in self._places:
            plan = self.plan.id[:16]
            raise RunError(f"row {row.id}: is none of plan {plan}; give the plan that it was made under.")
        (batch, place), shape = self._places[row.id], row.outcome.batch_shape
        made = self._job.rebuild(row.plan, batch, place, row.outcome.attempt, shape)
        if made is None:
            raise RunError(f"row {row.id}: memory does not suffice for batch shape {shape}.")
        again = made_row(made, ImageScores(), row.plan_id, self.recipe.image_format)
        digest = again.outcome.pixel_sha256
        return Rebuilt(again.image, digest, digest == row.outcome.pixel_sha256)

    @cached_property
    def stack(self) -> dict[str, str]:
        """This machine's stack with the fingerprints of the networks that decide pixels."""
        is_drawn = any(row.backbone for row in self.plan.rows[:1])
        has_encoder = "encoder" in self.recipe.method_definition.NEEDS
        probes = ["numerics"] * is_drawn + ["numerics_encoder"] * (is_drawn and has_encoder)
        known = {key: self._ctx.numerics(key, self.recipe.batch_size) for key in probes}
        return stack(self._device, self.recipe.profile) | known | self._ctx.kernels(probes)

    @cached_property
    def _places(self) -> dict[str, tuple[Batch, int]]:
        batches = [batch for shard in self.plan.shards() for batch in shard.batches(self.recipe.batch_size)]
        return {row.row_id: (batch, place) for batch in batches for place, row in enumerate(batch) if row is not None}


@dataclass(frozen=True)
class Closeness:
    """How a rebuilt image compares with the stored one. Differences are in grey levels from 0 to 255.

    `mean` and `largest` are None where the images are equal or the stored one could not be looked at. `elsewhere`: how
    this stack differs from the one that made the row; empty where it is the same. `profile`: the one that states a
    tolerance on the same stack too; empty where bits must be equal there.
    """

    row_id: str
    equal: bool
    stored: str
    made: str
    mean: float | None = None
    largest: int | None = None
    elsewhere: str = ""
    profile: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether nothing can be said: other pixels on another stack, and the stored ones are not there."""
        return not self.equal and bool(self.elsewhere) and self.largest is None

    @property
    def is_within(self) -> bool:
        """Whether it differs by no more than another stack, or here a profile, may make it."""
        if self.equal or not self.why or self.mean is None or self.largest is None:
            return False
        return self.largest <= self.most_levels and self.mean <= MOST_MEAN

    @property
    def most_levels(self) -> int:
        """Grey levels that a pixel may be off."""
        return MOST_LEVELS if self.elsewhere else MOST_LEVELS_HERE * bool(self.profile)

    @property
    def why(self) -> str:
        """Why other bits may be right: another stack, or what a profile states; empty where they may not."""
        stated = f"profile {self.profile} states {levels(self.most_levels)}" if self.profile else ""
        return self.elsewhere or stated

    @property
    def is_good(self) -> bool:
        """Whether the image is what it should be here."""
        return self.equal or self.is_within

    def __str__(self) -> str:
        if self.equal:
            stated = f"; profile {self.profile} states {levels(self.most_levels)}" if self.profile else ""
            return f"row {self.row_id}: bit-equal to the stored image (pixel sha256 {self.made[:16]}){stated}"
        if self.is_within:
            far = f"{levels(self.largest)}, {self.mean:.4f} on average"
            return f"row {self.row_id}: within tolerance: {far} ({self.why})"
        if self.is_unknown:
            return f"row {self.row_id}: has other pixels here, and none are stored to measure from ({self.elsewhere})"
        far = "" if self.mean is None else f" by {self.mean:.3f} grey levels on average, {self.largest} at most"
        allowed = f"; another stack may give {MOST_LEVELS} at most and {MOST_MEAN} on average ({self.elsewhere})"
        return f"row {self.row_id}: differs from the stored image{far}{allowed if self.elsewhere else ''}"


def levels(largest: int | None) -> str:
    """`at most 1 grey level`."""
    return f"at most {largest} grey level{'' if largest == 1 else 's'}"


def closeness(
    row_id: str,
    stored: str,
    made: Rebuilt,
    stacks: Sequence[Stack],
    regenerate: Regenerator,
    image: Callable[[], bytes | None],
) -> Closeness:
    """Compare a rebuilt row with what is stored of it: its pixel digest, the stacks that made the set, and, asked for
    only where the digests differ, its encoded image (None where there is none).
    """
    profile = "" if regenerate.recipe.profile.is_exact else regenerate.recipe.profile.name
    if made.equal:
        return Closeness(row_id, True, stored, made.pixel_sha256, profile=profile)
    ours = regenerate.stack
    is_ours = all(same_stack(stack, ours) for stack in stacks)
    there, elsewhere = image(), "" if is_ours else difference(stacks, ours)
    mean, largest = (None, None) if there is None else _distance(there, made.data)
    return Closeness(row_id, False, stored, made.pixel_sha256, mean, largest, elsewhere, profile)


def _distance(one: bytes, other: bytes) -> tuple[float, int]:
    """Mean and largest absolute difference of two encoded images; the largest there is where sizes differ."""
    import numpy as np

    there, here = (np.asarray(decode_image(data), dtype=np.int16) for data in (one, other))
    if there.shape != here.shape:
        return 255.0, 255
    gap = np.abs(there - here)
    return float(gap.mean()), int(gap.max())

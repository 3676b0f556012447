"""What is measured of a set as a whole once its shards are done: the nearest test images, and how well inversion went.

Needs models, so the process that assembles measures it, once, before `run.json`. What cannot be measured is absent:
likeness to test images where the recipe names no encoder or the run carries no test split, PSNR where nothing is
inverted. Nothing here changes an image or a row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.temporary import write_atomically
from diffaug_datasets.run.context import WorkContext
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Receipt, Run

UNIT, FILE = "quality", "quality.parquet"
SAMPLE = 32  # real images whose inversion is undone
COLUMNS = {"test_similarity": pa.float32(), "nearest_test": pa.string(), "inversion_psnr": pa.float32()}
SCHEMA = pa.schema([("row_id", pa.string()), *COLUMNS.items()])
Row = dict[str, Any]


def appraise(run: Run, ctx: WorkContext) -> None:
    """Measure what can be measured and write it with its receipt; does nothing where that is done."""
    if run.intact(UNIT):
        return
    rows = [*_nearest_tests(run, ctx), *_inversions(run, ctx)]
    if rows:
        table = pa.Table.from_pylist(rows, SCHEMA)
        done = write_atomically(run.folder / FILE, lambda path: pq.write_table(table, path))
        run.write_receipt(Receipt(plan_id=run.plan.id, unit=UNIT, files=(done,), rows=len(rows)))


def measured_rows(run: Run) -> Mapping[str, Row]:
    """Row id -> `COLUMNS` of every row of which something was measured; empty where nothing was."""
    if not run.intact(UNIT):
        return {}
    return {row.pop("row_id"): row for row in pq.read_table(run.folder / FILE).to_pylist()}


def _nearest_tests(run: Run, ctx: WorkContext) -> Iterator[Row]:
    """For each written row the largest cosine to a test image, under the recipe's encoder, and which image that is."""
    tests = [shard for shard in run.plan.real_shards() if shard.name.startswith("test")]
    if not tests or run.recipe.scores.encoder is None:
        return
    from diffaug_datasets.models.features import Encoder
    from diffaug_datasets.numerics.nearest import exact_neighbours

    encoder, shape = Encoder.load(run.recipe.scores.encoder, ctx.device), run.recipe.batch_size
    pool = _features(run, encoder, tests, shape)
    ids = [row.source_ids[0] for shard in tests for row in shard.rows]
    for shard in run.plan.shards():
        written = set(read_stream(str(run.shard_path(shard.name))).column("row_id").to_pylist())
        if not written:
            continue
        found = exact_neighbours(_features(run, encoder, [shard], shape), pool, 1)
        for row, cosine, place in zip(shard.rows, found.cosine[:, 0].tolist(), found.place[:, 0].tolist(), strict=True):
            if row.row_id in written:
                yield {"row_id": row.row_id, "test_similarity": cosine, "nearest_test": ids[place]}


def _features(run: Run, encoder: Any, shards: Sequence[Shard], shape: int) -> Any:
    """Unit-norm features [n d] of the image of every planned row of some shards, in order; of a row without one they
    mean nothing, but hold its place, so that no other row's bits depend on who failed.
    """
    from PIL import Image

    nothing = Image.new("RGB", (8, 8))

    def pictures() -> Iterator[Image.Image]:
        for shard in shards:
            table = read_stream(str(run.shard_path(shard.name)))
            column, names = table.column("image"), table.column("row_id").to_pylist()
            places = {name: i for i, name in enumerate(names)}
            for row in shard.rows:
                place = places.get(row.row_id)
                yield nothing if place is None else decode_image(bytes(column[place].as_py()["bytes"]))

    return encoder.image_features(pictures(), batch_shape=shape)


def _inversions(run: Run, ctx: WorkContext) -> Iterator[Row]:
    """PSNR of a few real images, spread evenly, that the method inverted and now denoises again."""
    module, config = run.recipe.module, run.recipe.method_config
    measure = getattr(module, "inversion_psnr", None)
    units = [unit for unit in run.plan.fits if unit.kind == "inversions"]
    if measure is None or not units:
        return
    rows = {f"{row.source_ids[0]}/{row.label}": row.row_id for row in run.plan.real if row.split == "train"}
    images = [(unit, image) for unit in units for image in unit.content["images"] if image in rows]
    chosen = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]
    for unit in units:
        names = [image for home, image in chosen if home is unit]
        for name, value in zip(names, measure(unit, names, config, ctx) if names else (), strict=True):
            if math.isfinite(value):
                yield {"row_id": rows[name], "inversion_psnr": value}

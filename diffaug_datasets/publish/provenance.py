"""Every planned row without its pixels: published, dropped by a filter, failed, or kept by the owner."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import FailedRow, Outcome, PlanRow
from diffaug_datasets.data.foreign_tables import PART_ROWS
from diffaug_datasets.data.release import Release
from diffaug_datasets.publish.origins import MEANING, origin_columns, with_origins
from diffaug_datasets.run.appraisal import COLUMNS as MEASURED
from diffaug_datasets.run.appraisal import measured_rows
from diffaug_datasets.run.features import BATCH_ROWS, features, read_stream
from diffaug_datasets.run.shards import planned_columns
from diffaug_datasets.run.store import Run

KEPT, FILTERED, FAILED, WITHHELD = "kept", "filtered", "failed", "withheld"
SHOWN = (KEPT, WITHHELD)  # what a card counts and measures
STATUS = {
    "status": f"{KEPT}: published; {FILTERED}: dropped by the selection; {FAILED}: has no image; "
    f"{WITHHELD}: a real image that may not be redistributed, or pixels left out of a recipe-only release",
    "reason": "why a row was dropped or failed; of a kept row, the filter whose min_keep saved it",
    "split": "train or test",
}


CODE = {"image": "the encoded image", "plan_id": "sha256 of the plan that the row was made under"}
EXTRA: Mapping[str, Any] = {
    **{name: List(Value("string")) for name in MEANING},
    "test_similarity": Value("float32"),
    "nearest_test": Value("string"),
    "inversion_psnr": Value("float32"),
}
EXTRA_MEANING: Mapping[str, str] = {
    **MEANING,
    "test_similarity": "largest cosine to an image of the test split",
    "nearest_test": "sha256 of that test image",
    "inversion_psnr": "of a real image: dB against what its inversion gives when denoised again",
}


def column_meanings() -> dict[str, str]:
    """Column of a published set -> what it means."""
    stated = {name: field.description or "" for m in (PlanRow, Outcome) for name, field in m.model_fields.items()}
    return {**stated, **CODE, **STATUS, **EXTRA_MEANING}


def provenance_features(class_names: Sequence[str], extra: Sequence[str] = ()) -> Features:
    """The published columns but the image, how each row ended, and those of `EXTRA` that were stated or measured."""
    columns = {name: kind for name, kind in features(class_names).items() if name != "image"}
    return Features({**columns, **{name: Value("string") for name in STATUS}, **{name: EXTRA[name] for name in extra}})


def provenance_table(run: Run, release: Release) -> pa.Table:
    """One row a planned row, real ones first, in row order."""
    rows = [*_real(run, release), *_made(run, release, selected_rows(run))]
    origins, known = origin_columns(rows), measured_rows(run)
    measured = [name for name in MEASURED if any(row[name] is not None for row in known.values())]
    told = [{**row, **known.get(row["row_id"], {})} for row in with_origins(rows, origins)]
    schema = provenance_features(release.class_names, [*origins, *measured]).arrow_schema
    return pa.Table.from_pylist(told, schema)


def extra_columns(table: pa.Table) -> tuple[str, ...]:
    """Those of `EXTRA` that a provenance has."""
    return tuple(name for name in table.column_names if name in EXTRA)


def selected_rows(run: Run) -> Mapping[str, tuple[bool, str | None]]:
    """Row id -> whether the selection keeps a written row, and the filter that speaks against it.

    Raises:
        RunError: `selection.parquet` cannot be read.
    """
    try:
        table = pq.read_table(run.folder / "selection.parquet")
        table.validate(full=True)
        return {row["row_id"]: (bool(row["keep"]), row["reason"]) for row in table.to_pylist()}
    except (OSError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{run.folder}: selection.parquet cannot be read ({reason}); remove run.json, and `diffaug generate "
            f"{run.folder}` makes it again."
        ) from None


def _real(run: Run, release: Release) -> Iterator[dict[str, Any]]:
    for shard in run.plan.real_shards():
        splits = {row.row_id: row.split for row in shard.rows}
        for row in _columns(run, shard):
            status = KEPT if release.real else WITHHELD
            yield {**row, "status": status, "reason": None, "split": splits[row["row_id"]]}


def _made(run: Run, release: Release, selected: Mapping[str, tuple[bool, str | None]]) -> Iterator[dict[str, Any]]:
    for shard in run.plan.shards():
        receipt = run.receipt(shard.name)
        failed = {row.row_id: row for row in receipt.failed} if receipt else {}
        written = {row["row_id"]: row for row in _columns(run, shard)}
        for row in shard.rows:
            if row.row_id in failed:
                yield _failed({**planned_columns(row), "plan_id": release.plan_id}, failed[row.row_id])
            else:
                keep, reason = selected[row.row_id]
                status = (WITHHELD if release.recipe_only else KEPT) if keep else FILTERED
                yield {**written[row.row_id], "status": status, "reason": reason, "split": row.split}


def _failed(columns: dict[str, Any], row: FailedRow) -> dict[str, Any]:
    return {**columns, "attempt": row.attempts, "status": FAILED, "reason": row.reason, "split": "train"}


def _columns(run: Run, shard: Shard) -> list[dict[str, Any]]:
    table = read_stream(str(run.shard_path(shard.name)))
    rows: list[dict[str, Any]] = table.drop_columns(["image"]).to_pylist()
    return rows


def provenance_stream(table: pa.Table) -> bytes:
    """The table as an Arrow IPC stream."""
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)
    return sink.getvalue()


@overload
def write_parquet(table: pa.Table, path: Path) -> None: ...
@overload
def write_parquet(table: pa.Table) -> bytes: ...
def write_parquet(table: pa.Table, path: Path | None = None) -> bytes | None:
    """The table as Parquet, into a file (images) or as bytes (none); the same rows give the same bytes.

    A row group has 100 rows with images, or those of a shorter record batch: shards are cut by bytes as well. Without
    images it has 10,000.
    """
    sink, parts = BytesIO(), table.to_batches(BATCH_ROWS) if path else table.combine_chunks().to_batches(PART_ROWS)
    with pq.ParquetWriter(path or sink, table.schema, use_content_defined_chunking=True) as writer:
        for batch in parts:
            writer.write_batch(batch)
    return None if path else sink.getvalue()

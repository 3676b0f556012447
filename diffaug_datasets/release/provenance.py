"""The provenance: every planned row without its pixels, how it ended, and what its sources say of themselves.

A row is published, dropped by a filter, failed, or kept by the owner. Url, author and licence of the real images behind
a row stand beside it where their dataset states them. Counts of licences and means of what was measured follow from
these rows; what nobody stated or measured is absent.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict, cast, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features

from diffaug_datasets.core.errors import RunError, one_line
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import Ending, SetScores, SourceFacts, column_types, published_columns
from diffaug_datasets.core.sources import ATTRIBUTION
from diffaug_datasets.release.layout import PART_ROWS, LicenceCount, Release
from diffaug_datasets.run.scores import measured_rows
from diffaug_datasets.run.shards import BATCH_ROWS, features_of
from diffaug_datasets.run.store import Run

KEPT, FILTERED, FAILED, WITHHELD = "kept", "filtered", "failed", "withheld"
SHOWN = (KEPT, WITHHELD)  # what a card counts and measures
_COUNTED = ("origin", "status", "split", "source_ids", "measured")
STATUS = column_types(Ending)
EXTRA = column_types(SourceFacts) | column_types(SetScores)
ORIGIN_COLUMNS: Mapping[str, str] = MappingProxyType({f"source_{fact}s": fact for fact in ATTRIBUTION})
MEANS = ("judge_confidence", "clip_score", "clip_margin", "source_similarity", "test_similarity")
LARGEST = ("source_similarity", "test_similarity")
INVERSIONS = ("inversion_psnr", "inversion_norm", "inversion_kurtosis", "self_interpolation")
QUALITY_COLUMNS = ("origin", "status", "label", "judge_label", *MEANS, *INVERSIONS)
JUDGED, INVERTED = ("judge_accuracy", "judge_confidence"), INVERSIONS  # measured with the judge, with the backbone
QUALITY_TITLES = {
    "judge_accuracy": "label accuracy: share of images in which the judge sees their label",
    "judge_confidence": "probability that the judge gives the class it sees, mean",
    "clip_score": "cosine of image and prompt of its class, mean",
    "clip_margin": "margin: that cosine minus the best other class's, mean",
    "source_similarity": "cosine to the nearest of the image's own sources, mean",
    "source_similarity_max": "the same, largest",
    "test_similarity": "cosine to the nearest test image, mean",
    "test_similarity_max": "the same, largest",
    "inversion_psnr": "PSNR in dB of real images, inverted and denoised again, mean",
    "inversion_norm": "root mean square of their inverted latents (1 for N(0, 1)), mean",
    "inversion_kurtosis": "kurtosis of these latents (3 for N(0, 1)), mean",
    "self_interpolation": "PSNR in dB half-way between such a latent and that of what it gives back, mean",
}
DIGITS = 4


class ProvenanceRow(TypedDict, total=False):
    """A row of the provenance: those columns that code reads by name; `core.rows.column_meanings` has all."""

    row_id: str
    origin: str
    label: int
    split: str
    status: str
    reason: str | None
    source_ids: list[str]
    measured: str | None
    attempt: int
    pixel_sha256: str


def provenance_features(class_names: Sequence[str], extra: Sequence[str] = (), own: Sequence[str] = ()) -> Features:
    """The published columns but the image, how each row ended, and those of `EXTRA` that were stated or measured.

    `own`: the dataset's own columns.
    """
    columns = {name: kind for name, kind in published_columns(own).items() if name != "image"}
    return features_of({**columns, **STATUS, **{name: EXTRA[name] for name in extra}}, class_names)


def provenance_table(run: Run, release: Release) -> pa.Table:
    """One row per planned row, real ones first, in row order.

    Raises:
        RunError: `selection.parquet` cannot be read.
    """
    facts = source_facts(_real_rows(run, release))
    measured = {row_id: scores.model_dump() for row_id, scores in measured_rows(run).items()}
    origins = [
        column for column, fact in ORIGIN_COLUMNS.items() if any(fact in of_source for of_source in facts.values())
    ]
    scored = [name for name in column_types(SetScores) if any(row[name] is not None for row in measured.values())]
    rows = (
        {
            **row,
            **{c: [facts.get(source, {}).get(ORIGIN_COLUMNS[c]) for source in row["source_ids"]] for c in origins},
            **measured.get(row["row_id"], {}),
        }
        for row in chain(_real_rows(run, release), _made_rows(run, release))
    )
    schema = provenance_features(release.class_names, [*origins, *scored], release.columns).arrow_schema
    parts = [schema.empty_table()]
    while part := list(islice(rows, PART_ROWS)):
        parts.append(pa.Table.from_pylist(part, schema))
    return pa.concat_tables(parts).combine_chunks()


@dataclass(frozen=True)
class TableRows:
    """What licences are counted from in a provenance table, row after row, each time anew."""

    table: pa.Table

    def __iter__(self) -> Iterator[ProvenanceRow]:
        for batch in self.table.select(list(_COUNTED)).to_batches(PART_ROWS):
            yield from cast(list[ProvenanceRow], batch.to_pylist())


def _real_rows(run: Run, release: Release) -> Iterator[ProvenanceRow]:
    for shard in run.plan.real_shards():
        splits = {row.row_id: row.split for row in shard.rows}
        for row in _written_rows(run, shard):
            status = KEPT if release.real else WITHHELD
            yield {**row, "status": status, "reason": None, "split": splits[row["row_id"]]}


def _made_rows(run: Run, release: Release) -> Iterator[ProvenanceRow]:
    selected = selected_rows(run)
    for shard in run.plan.shards():
        receipt = run.receipt(shard.name)
        failed = {row.row_id: row for row in receipt.failed} if receipt else {}
        written = {row["row_id"]: row for row in _written_rows(run, shard)}
        for row in shard.rows:
            if failure := failed.get(row.row_id):
                columns = {**row.columns(), "plan_id": release.plan_id, "attempt": failure.attempts}
                yield cast(ProvenanceRow, {**columns, "status": FAILED, "reason": failure.reason, "split": "train"})
            else:
                keep, reason = selected[row.row_id]
                status = (WITHHELD if release.recipe_only else KEPT) if keep else FILTERED
                yield {**written[row.row_id], "status": status, "reason": reason, "split": row.split}


def _written_rows(run: Run, shard: Shard) -> list[ProvenanceRow]:
    rows: list[ProvenanceRow] = run.table(shard).drop_columns(["image"]).to_pylist()
    return rows


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
        reason = one_line(error)
        raise RunError(
            f"{run.where}: selection.parquet cannot be read ({reason}); remove run.json, and `diffaug generate "
            f"{run.where}` makes it again."
        ) from None


def extra_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `EXTRA` among the columns of a provenance, in its order."""
    return tuple(name for name in names if name in EXTRA)


def source_facts(rows: Iterable[ProvenanceRow]) -> Mapping[str, Mapping[str, str]]:
    """Source id -> `url`, `author`, `license` of every real image that states one, from provenance rows."""
    real = ((row["source_ids"][0], row_facts(row)) for row in rows if row["origin"] == "real")
    return {source: facts for source, facts in real if facts}


def row_facts(row: ProvenanceRow) -> Mapping[str, str]:
    """What a real or retrieved row states of its own image; nothing where the column holds no JSON object."""
    try:
        measured = json.loads(row["measured"] or "{}")
    except (ValueError, RecursionError):
        return {}
    known = measured if isinstance(measured, dict) else {}
    return {fact: known[fact] for fact in ATTRIBUTION if isinstance(known.get(fact), str)}


def licence_counts(rows: Iterable[ProvenanceRow], counted: Sequence[str]) -> tuple[LicenceCount, ...]:
    """How many real training images and other images rest on which licence; nothing where no row states one.

    An image with sources of several licences counts under each; a retrieved one has its own. `counted`: the states of
    rows that count. The most used licence comes first, rows without one last. `rows` is gone through twice.
    """
    known = source_facts(rows)
    real: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for row in rows:
        if row["status"] not in counted or row["split"] != "train":
            continue
        retrieved = [row_facts(row)] if row["origin"] == "retrieved" else None
        facts = retrieved or [known.get(source, {}) for source in row["source_ids"]]
        (real if row["origin"] == "real" else made).update({one.get("license", "") for one in facts})
    names = sorted({*real, *made}, key=lambda name: (not name, -real[name] - made[name], name))
    return tuple(LicenceCount(licence=n, real=real[n], made=made[n]) for n in names) if any(names) else ()


def quality(table: pa.Table) -> dict[str, float]:
    """Name -> value, rounded to 4 digits, of a provenance table (those of `QUALITY_COLUMNS` that it has).

    See `QUALITY_TITLES` for what each is; what no row was measured for is absent.
    """
    real, counted = pc.field("origin") == "real", pc.field("status").isin(SHOWN)
    made = table.filter(~real & counted)
    judged = made.filter(~pc.field("judge_label").is_null())
    values = {"judge_accuracy": _mean(pc.equal(judged.column("label"), judged.column("judge_label")))}
    values |= {name: _mean(made.column(name)) for name in MEANS if name in table.column_names}
    values |= {f"{name}_max": pc.max(made.column(name)).as_py() for name in LARGEST if name in table.column_names}
    inverted = table.filter(real)
    values |= {name: _mean(inverted.column(name)) for name in INVERSIONS if name in table.column_names}
    return {name: round(value, DIGITS) for name in QUALITY_TITLES if (value := values.get(name)) is not None}


def _mean(column: pa.ChunkedArray) -> float | None:
    value: float | None = pc.mean(column.cast(pa.float64())).as_py()
    return value


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

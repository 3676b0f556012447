"""The row as `datasets` features and as an Arrow schema: both follow from `core.rows`."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image, List, Value

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import MAX_BYTES
from diffaug_datasets.core.rows import published_columns

BATCH_ROWS = 100
BATCH_BYTES = 64 << 20  # of encoded images; the offsets of a batch end at 2 GiB, and readers hold a batch at once


def features(class_names: Sequence[str]) -> Features:
    """The published columns, in order, for these labels."""
    special = {
        "image": Image(),
        "label": ClassLabel(names=list(class_names)),
        "soft_label": {"class": List(Value("int32")), "weight": List(Value("float32"))},
        "strings": List(Value("string")),
        "int32s": List(Value("int32")),
    }
    return Features({name: special.get(dtype) or Value(dtype) for name, dtype in published_columns().items()})


def arrow_schema(class_names: Sequence[str]) -> pa.Schema:
    """The schema of every shard; its metadata lets plain `datasets` decode images and labels."""
    return features(class_names).arrow_schema


def schema_digest(class_names: Sequence[str]) -> str:
    """sha256 of the features: shards of one set must agree on it, label order included."""
    return digest(features(class_names).to_dict())


def write_stream(sink: Any, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> tuple[int, int]:
    """Write rows as an Arrow IPC stream, batch by batch; returns how many they were and their bytes in memory.

    A record batch has 100 rows, or fewer where their images weigh more than `BATCH_BYTES`; no more than one is held.

    Raises:
        KeyError: a row has a key that is no column (it would be dropped silently).
        SourceError: an image is larger than an Arrow file can hold.
    """
    count = size = 0
    with pa.ipc.new_stream(sink, schema) as writer:
        for part in _batches(rows):
            unknown = {key for row in part for key in row} - set(schema.names)
            if unknown:
                raise KeyError(f"rows have keys that are no columns: {sorted(unknown)}")
            batch = pa.RecordBatch.from_pylist(part, schema=schema)
            count, size = count + len(part), size + batch.nbytes
            writer.write_batch(batch)
            part.clear()
            del batch
    return count, size


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    weight = 0
    for row in rows:
        needed = len((row.get("image") or {}).get("bytes") or b"")
        if needed > MAX_BYTES:
            name = row.get("row_id")
            raise SourceError(
                f"row {name}: got an image of {needed:,} bytes, expected less than 2 GiB; make it smaller."
            )
        if len(part) == BATCH_ROWS or (part and weight + needed > BATCH_BYTES):
            yield part
            part, weight = [], 0
        part.append(dict(row))
        weight += needed
        del row
    if part:
        yield part


def read_stream(path: str) -> pa.Table:
    """A finished shard as a memory-mapped table."""
    with pa.memory_map(path) as source:
        return pa.ipc.open_stream(source).read_all()


def stored_rows(table: pa.Table, kept: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of these ids as they stand in a shard, read batch by batch."""
    wanted = pa.array(list(kept), pa.string())
    for batch in table.to_batches():
        yield from batch.filter(pc.is_in(batch.column("row_id"), wanted)).to_pylist()

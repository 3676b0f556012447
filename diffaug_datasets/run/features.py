"""The row as `datasets` features and as an Arrow schema: both follow from `core.rows`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Features, Image, List, Value

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.core.rows import published_columns

BATCH_ROWS = 100


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


def write_stream(sink: Any, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write rows as an Arrow IPC stream in record batches of 100; returns their bytes in memory.

    Raises:
        KeyError: a row has a key that is no column (it would be dropped silently).
    """
    names, size = set(schema.names), 0
    with pa.ipc.new_stream(sink, schema) as writer:
        for begin in range(0, len(rows), BATCH_ROWS):
            part = rows[begin : begin + BATCH_ROWS]
            unknown = {key for row in part for key in row} - names
            if unknown:
                raise KeyError(f"rows have keys that are no columns: {sorted(unknown)}")
            batch = pa.RecordBatch.from_pylist([dict(row) for row in part], schema=schema)
            size += batch.nbytes
            writer.write_batch(batch)
    return size


def read_stream(path: str) -> pa.Table:
    """A finished shard as a memory-mapped table."""
    with pa.memory_map(path) as source:
        return pa.ipc.open_stream(source).read_all()

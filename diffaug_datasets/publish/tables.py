"""What must hold of the rows of a shard, before it goes out and after it came in."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.data.release import FileFormat
from diffaug_datasets.run.assembly import RunFile
from diffaug_datasets.run.features import arrow_schema, read_stream, schema_digest

OLDEST = {"image", "label", "row_id", "plan_id", "origin", "pixel_sha256"}  # what no row schema goes without


def open_table(content: Path | bytes, file_format: FileFormat) -> pa.Table:
    """A shard; memory-mapped where it is an Arrow file."""
    if file_format == "parquet":
        return pq.read_table(BytesIO(content) if isinstance(content, bytes) else content)
    return pa.ipc.open_stream(content).read_all() if isinstance(content, bytes) else read_stream(str(content))


def faults(table: pa.Table, file: RunFile, class_names: Sequence[str], schema: str) -> Iterator[str]:
    """Sentences on schema (`schema`: the digest of its features), labels, images, count; none where all is well."""
    if not _has(table.schema, class_names, schema):
        yield f"{file.path} has another schema than run.json"
        return
    if table.num_rows != file.rows:
        yield f"{file.path} has {table.num_rows} rows, stated are {file.rows}"
    labels = table.column("label").to_pylist()
    if any(label is None or not 0 <= label < len(class_names) for label in labels):
        yield f"{file.path} has a label that no class has"
    if pc.struct_field(table.column("image"), "bytes").null_count:
        yield f"{file.path} has rows without image bytes"


def _has(found: pa.Schema, class_names: Sequence[str], schema: str) -> bool:
    """Whether columns and features for `datasets`, label order included, are those of the digest: ours or older."""
    if schema == schema_digest(class_names):
        return _same(found, arrow_schema(class_names))
    try:
        stated = Features.from_arrow_schema(found)
        return digest(stated.to_dict()) == schema and _same(found, stated.arrow_schema) and set(stated) >= OLDEST
    except (KeyError, TypeError, ValueError):
        return False


def _same(found: pa.Schema, expected: pa.Schema) -> bool:
    key = b"huggingface"
    return bool(found.equals(expected) and (found.metadata or {}).get(key) == expected.metadata[key])

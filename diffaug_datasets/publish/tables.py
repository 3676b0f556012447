"""What must hold of the rows of a shard, before it goes out and after it came in."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.data.release import FileFormat
from diffaug_datasets.run.assembly import RunFile
from diffaug_datasets.run.features import arrow_schema, read_stream


def open_table(content: Path | bytes, file_format: FileFormat) -> pa.Table:
    """A shard; memory-mapped where it is an Arrow file."""
    if file_format == "parquet":
        return pq.read_table(BytesIO(content) if isinstance(content, bytes) else content)
    return pa.ipc.open_stream(content).read_all() if isinstance(content, bytes) else read_stream(str(content))


def faults(table: pa.Table, file: RunFile, class_names: Sequence[str]) -> Iterator[str]:
    """Sentences on schema, labels, images and count; none where all is well."""
    if not _same(table.schema, arrow_schema(class_names)):
        yield f"{file.path} has another schema than run.json"
        return
    if table.num_rows != file.rows:
        yield f"{file.path} has {table.num_rows} rows, stated are {file.rows}"
    labels = table.column("label").to_pylist()
    if any(label is None or not 0 <= label < len(class_names) for label in labels):
        yield f"{file.path} has a label that no class has"
    if pc.struct_field(table.column("image"), "bytes").null_count:
        yield f"{file.path} has rows without image bytes"


def _same(found: pa.Schema, expected: pa.Schema) -> bool:
    """The same columns, and the same features for `datasets`: label order included."""
    key = b"huggingface"
    return bool(found.equals(expected) and (found.metadata or {}).get(key) == expected.metadata[key])

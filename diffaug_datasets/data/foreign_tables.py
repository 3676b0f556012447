"""Tables that others wrote: validated whole, for a file with bent offsets can end the process that looks into it.

Its digest is checked before (`Repository.checked`); that says who wrote it, not that they meant well.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.release import FileFormat, Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.run.features import arrow_schema, read_stream

ENDING = ("status", "reason", "split")
NEEDED = ("row_id", "origin", "label", "status", "split", "source_ids")  # by whoever reads, whatever the row schema


def read_foreign(path: Path, file_format: FileFormat) -> pa.Table:
    """A shard or a provenance table; memory-mapped where it is an Arrow file.

    Raises:
        PublishError: it is no such file, or its parts do not fit together.
    """
    try:
        table = pq.read_table(path) if file_format == "parquet" else read_stream(str(path))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(
            f"{path.name}: is no {file_format} file that can be read ({reason}); do not use it."
        ) from None
    return table


def shard_table(repository: Repository, release: Release, name: str, check: bool = True) -> pa.Table:
    """A shard of a release; with `check`, its digest is looked at first."""
    return read_foreign(repository.checked(release, name, check), release.file_format)


def provenance_rows(repository: Repository, release: Release) -> list[dict[str, Any]]:
    """The provenance of every planned row.

    Raises:
        PublishError: the file is missing, has other bytes, or lacks columns that the rows need.
    """
    table = read_foreign(repository.checked(release, "provenance.parquet"), "parquet")
    check_provenance(table, release)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def check_provenance(table: pa.Table, release: Release) -> None:
    """Raises PublishError where a column is missing or of another type; more columns than ours do no harm.

    Of sets with an older row schema, only the columns that every reader needs are looked at.
    """
    wanted = {field.name: field.type for field in arrow_schema(release.class_names) if field.name != "image"}
    wanted |= dict.fromkeys(ENDING, pa.string())
    if release.row_schema < ROW_SCHEMA:
        wanted = {name: wanted[name] for name in NEEDED}
    found = {field.name: field.type for field in table.schema}
    if wrong := [name for name, kind in wanted.items() if found.get(name) != kind]:
        raise PublishError(
            f"provenance.parquet: the column {wrong[0]!r} is {found.get(wrong[0], 'missing')}, expected "
            f"{wanted[wrong[0]]}; do not use it."
        )
    if null := [name for name in NEEDED if table.column(name).null_count]:
        raise PublishError(f"provenance.parquet: the column {null[0]!r} has rows without a value; do not use it.")

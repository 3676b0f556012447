"""Tables that others wrote: validated whole, for a file with bent offsets can end the process that looks into it.

Its digest is checked before (`Repository.checked`); that says who wrote it, not that they meant well.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.release import FileFormat, Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.run.features import arrow_schema, read_stream

PROVENANCE_FILE, PART_ROWS = "provenance.parquet", 10_000
ENDING = ("status", "reason", "split")
NEEDED = ("row_id", "origin", "label", "status", "split", "source_ids")  # by whoever reads, whatever the row schema


def read_foreign(path: Path, file_format: FileFormat) -> pa.Table:
    """A shard or a provenance table; memory-mapped where it is an Arrow file.

    Raises:
        PublishError: it is no such file, or its parts do not fit together.
    """
    with _told(path, file_format):
        table = pq.read_table(path) if file_format == "parquet" else read_stream(str(path))
        table.validate(full=True)
    return table


def shard_table(repository: Repository, release: Release, name: str, check: bool = True) -> pa.Table:
    """A shard of a release; with `check`, its digest is looked at first."""
    return read_foreign(repository.checked(release, name, check), release.file_format)


@dataclass(frozen=True)
class Provenance:
    """The provenance of a release, read in parts each time that it is asked for: millions of rows are never held."""

    path: Path
    release: Release

    @classmethod
    def of(cls, repository: Repository, release: Release, check: bool = True) -> "Provenance":
        """Of a published set; with `check`, its digest is looked at first.

        Raises:
            PublishError: the file is missing, has other bytes, or lacks columns that the rows need.
        """
        return cls.at(repository.checked(release, PROVENANCE_FILE, check), release)

    @classmethod
    def at(cls, path: Path, release: Release) -> "Provenance":
        """A file whose digest is right."""
        found = cls(path, release)
        with _told(found.path, "parquet"), pq.ParquetFile(found.path) as file:
            check_columns(file.schema_arrow, release)
        return found

    def columns(self) -> list[str]:
        """The names of its columns."""
        names: list[str] = pq.read_schema(self.path).names
        return names

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its rows in order, some thousands at a time; columns that it lacks are left out.

        Raises:
            PublishError: a part cannot be read, or has rows without what every row needs.
        """
        with _told(self.path, "parquet"), pq.ParquetFile(self.path) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(PART_ROWS, columns=known):
                part = pa.Table.from_batches([batch])
                part.validate(full=True)
                if null := [name for name in NEEDED if name in part.column_names and part.column(name).null_count]:
                    raise PublishError(
                        f"{self.path.name}: the column {null[0]!r} has rows without a value; do not use it."
                    )
                yield part

    def table(self, columns: Sequence[str]) -> pa.Table:
        """A few columns, whole."""
        parts = list(self.parts(columns))
        return pa.concat_tables(parts) if parts else self._schema(columns).empty_table()

    def _schema(self, columns: Sequence[str]) -> pa.Schema:
        found = pq.read_schema(self.path)
        return pa.schema([found.field(name) for name in columns if name in found.names])

    def rows(self, only: pc.Expression | None = None, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Row after row, those alone for which `only` holds."""
        for part in self.parts(columns):
            yield from (part if only is None else part.filter(only)).to_pylist()


@contextmanager
def _told(path: Path, file_format: FileFormat) -> Iterator[None]:
    """One sentence for whatever is wrong with a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(
            f"{path.name}: is no {file_format} file that can be read ({reason}); do not use it."
        ) from None


def check_columns(schema: pa.Schema, release: Release) -> None:
    """Raises PublishError where a column is missing or of another type; more columns than ours do no harm.

    Of sets with an older row schema, only the columns that every reader needs are looked at.
    """
    wanted = {field.name: field.type for field in arrow_schema(release.class_names) if field.name != "image"}
    wanted |= dict.fromkeys(ENDING, pa.string())
    if release.row_schema < ROW_SCHEMA:
        wanted = {name: wanted[name] for name in NEEDED}
    found = {field.name: field.type for field in schema}
    if wrong := [name for name, kind in wanted.items() if found.get(name) != kind]:
        raise PublishError(
            f"{PROVENANCE_FILE}: the column {wrong[0]!r} is {found.get(wrong[0], 'missing')}, expected "
            f"{wanted[wrong[0]]}; do not use it."
        )

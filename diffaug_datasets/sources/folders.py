"""Url, author and licence of real images: from text columns, or the metadata files of an image folder.

As `datasets` reads them: `metadata.jsonl`, `metadata.csv` or `metadata.parquet` with one row per image, named by
`file_name`, which is relative to the metadata file; of several files above an image the nearest counts. What they state
and no image gets is told in a warning.

The encoded bytes of an entry of a source: a file of a folder, or a row of an image column.
"""

import codecs
import csv
import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import BadImage
from diffaug_datasets.core.printable import few, shown_name
from diffaug_datasets.core.sources import FACTS, Facts, check_key, fact_columns, stated_facts

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

MOST_BYTES = 1 << 29  # of one file: as many pixels as are decoded at all, 16 bits a channel, not compressed
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is never waited for
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class FolderFetch:
    """The bytes of an entry; no entry, and no link behind one, leaves the folder."""

    root: Path

    def __call__(self, key: str) -> bytes:
        """Raises SourceError if the entry is missing, unreadable or outside the folder; BadImage if it is no file of
        at most MOST_BYTES, which is then not opened."""
        name = shown_name(key)
        try:
            path = (self.root / check_key(key)).resolve()
            if not path.is_relative_to(self.root):
                where = f"the dataset's folder {str(self.root)!r}"
                raise SourceError(f"{name}: leads outside {where}; copy the image into it.")
            state = path.stat()
            if stat.S_ISDIR(state.st_mode):
                raise SourceError(f"{name}: cannot be read (Is a directory); check the file and its rights.")
            if not stat.S_ISREG(state.st_mode):
                raise BadImage(name, "a named pipe, socket or device, which is not opened")
            if state.st_size > MOST_BYTES:
                raise BadImage(name, f"got {state.st_size:,} bytes, expected at most {MOST_BYTES:,}")
            with os.fdopen(os.open(path, READ), "rb") as file:
                return file.read()
        except FileNotFoundError:
            if (self.root / key).is_symlink():
                raise BadImage(name, "a link to a file that is not there") from None
            raise SourceError(f"{name}: expected in {str(self.root)!r}, but not there; complete the copy.") from None
        except RuntimeError:
            raise BadImage(name, "a link that leads to itself") from None
        except OSError as error:
            raise SourceError(f"{name}: cannot be read ({error.strerror}); check the file and its rights.") from None

    def text(self, key: str) -> str:
        """A text file such as a list, in UTF-8 or marked as UTF-16; SourceError as above, or if it is no text."""
        data = self(key)
        try:
            return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
        except UnicodeDecodeError:
            raise SourceError(
                f"{shown_name(key)}: got bytes that are not UTF-8, expected a text list; restore the file, or save it "
                "as UTF-8."
            ) from None


@dataclass(frozen=True)
class ColumnFetch:
    """The bytes at `<split>/<row>` of image columns (bytes, or a struct of bytes and path).

    A path instead of bytes is followed only below `roots`, where `datasets` itself unpacked the files.
    """

    columns: Mapping[str, "pa.ChunkedArray[Any]"]
    roots: tuple[Path, ...] = ()

    def __call__(self, key: str) -> bytes:
        """Raises SourceError if the row holds no image."""
        split, row = key.rsplit("/", 1)
        image = self.columns[split][int(row)].as_py() or {}
        if isinstance(image, bytes):
            return image
        if isinstance(image.get("bytes"), bytes):
            return bytes(image["bytes"])
        path = Path(image.get("path") or "").resolve()
        if not any(path.is_relative_to(root) for root in self.roots) or not path.is_file():
            raise SourceError(f"{key}: the row holds no image bytes; expected images stored inside the dataset.")
        return path.read_bytes()


FILES, NAME = ("metadata.jsonl", "metadata.csv", "metadata.parquet"), "file_name"
TEXTS = ("string", "large_string")
Row = dict[str, object]


@dataclass(frozen=True)
class FolderFacts:
    """What metadata files state: facts by key, the files in words, and what of them no image gets."""

    facts: Mapping[str, Facts] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Table:
    """A metadata file: facts by the plain key of each image that it names."""

    file: str
    rows: dict[str, Facts]
    repeated: list[str]
    warnings: list[str]
    used: int = 0


def column_facts(splits: "Mapping[str, datasets.Dataset]") -> dict[str, Facts]:
    """`<split>/<row>` -> facts of every row that states one in a text column."""
    found: dict[str, Facts] = {}
    for split, table in splits.items():
        texts = {name for name, kind in table.features.items() if getattr(kind, "dtype", "") in TEXTS}
        if wanted := [name for name in fact_columns(table.column_names) if name in texts]:
            columns = table.select_columns(wanted).with_format(None)
            for place, row in enumerate(columns):
                if facts := stated_facts(row):
                    found[f"{split}/{place:07d}"] = facts
    return found


def folder_facts(fetch: FolderFetch, keys: Iterable[str]) -> FolderFacts:
    """Facts of every image that a metadata file above it names, and what became of the other rows.

    Raises:
        SourceError: a metadata file cannot be read; names file and line.
    """
    tables: dict[PurePosixPath, _Table | None] = {}
    found: dict[str, Facts] = {}
    hidden: Counter[tuple[str, str]] = Counter()
    known = set()
    for key in keys:
        plain = _plain(PurePosixPath(key))
        known.add(plain)
        nearest: _Table | None = None
        for folder in PurePosixPath(key).parents:
            if folder not in tables:
                tables[folder] = _table(fetch, folder)
            if (table := tables[folder]) is None:
                continue
            facts = table.rows.get(plain)
            if nearest is None:
                nearest = table
                if facts:
                    found[key], table.used = facts, table.used + 1
            elif facts and key not in found:
                hidden[nearest.file, table.file] += 1
    read = [table for table in tables.values() if table]
    return FolderFacts(found, tuple(_in_words(table) for table in read), (
        *(text for table in read for text in _complaints(fetch, table, known)),
        *(f"{near}: counts alone for the images below it; what {far} states of {count:,} of them is lost"
          for (near, far), count in hidden.items()),
    ))  # fmt: skip


def _in_words(table: _Table) -> str:
    stated = {name for facts in table.rows.values() for name, _ in facts}
    names = ", ".join(name for name in FACTS if name in stated)
    return f"{table.file} ({names} of {table.used:,} image{'' if table.used == 1 else 's'})" if names else table.file


def _complaints(fetch: FolderFetch, table: _Table, known: set[str]) -> Iterator[str]:
    """Rows that name no image or one twice, and which facts are lost by that; rows of images left out are no fault."""
    yield from table.warnings
    if table.repeated:
        yield f"{table.file}: names {few(table.repeated)} more than once, each time otherwise; the last row counts"
    unmatched = [key for key in table.rows if key not in known]
    unmatched = [key for key in unmatched if not _is_file(fetch, key)]
    if not unmatched:
        return
    lost = {name for key in unmatched for name, _ in table.rows[key]}
    loss = f"; the {' and '.join(name for name in FACTS if name in lost)} they state is lost" if lost else ""
    cased = {key.casefold(): key for key in known}
    first = next((key for key in unmatched if table.rows[key]), unmatched[0])
    if PurePosixPath(first).is_absolute() or PureWindowsPath(first).drive:
        why = f" (expected a path relative to {table.file})"
    else:
        why = f" (there is {shown_name(cased[first.casefold()])!r})" if first.casefold() in cased else ""
    rows = f"{len(unmatched):,} of {len(table.rows):,} rows match no image"
    yield f"{table.file}: {rows}, such as {shown_name(first)!r}{why}{loss}"


def _is_file(fetch: FolderFetch, key: str) -> bool:
    try:
        return not PurePosixPath(key).is_absolute() and (fetch.root / key).is_file()
    except (OSError, ValueError):
        return False


def _table(fetch: FolderFetch, folder: PurePosixPath) -> _Table | None:
    """The metadata file in a folder; None where there is none."""
    keys = [str(folder / name) for name in FILES if (fetch.root / folder / name).is_file()]
    if not keys:
        return None
    table = _Table(keys[0], {}, [], [])
    if len(keys) > 1:
        table.warnings.append(f"{keys[0]}: is read, and {' and '.join(keys[1:])} beside it is not")
    columns: dict[str, None] = {}
    for number, row in _rows(fetch, keys[0]):
        columns |= dict.fromkeys(row)
        name, facts = _file_name(row), stated_facts(row)
        if name is not None:
            key = _plain(PurePosixPath(name if PureWindowsPath(name).drive else folder / name))
            if table.rows.get(key, facts) != facts:
                table.repeated.append(shown_name(key))
            table.rows[key] = facts
        elif facts:
            raise SourceError(f"{keys[0]}, line {number}: names no image; expected a {NAME!r} beside {facts[0][0]!r}.")
    if columns and not table.rows:
        names = shown_name(few(list(columns), 5))
        table.warnings.append(f"{keys[0]}: has no {NAME!r} column (columns: {names}), so nothing of it is used")
    return table


def _file_name(row: Row) -> str | None:
    """The image that a row names, with '/' for another system's separator."""
    for column, name in row.items():
        if column.strip().casefold() == NAME and isinstance(name, str) and name.strip():
            return name.strip().replace("\\", "/")
    return None


def _rows(fetch: FolderFetch, key: str) -> Iterator[tuple[int, Row]]:
    if key.endswith(".jsonl"):
        return _json_lines(key, fetch.text(key))
    return _csv_lines(key, fetch.text(key)) if key.endswith(".csv") else _parquet_rows(key, fetch(key))


def _parquet_rows(key: str, data: bytes) -> Iterator[tuple[int, Row]]:
    """The text columns that matter, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(BytesIO(data))
        texts = [column.name for column in file.schema_arrow if str(column.type) in TEXTS]
        wanted = {*fact_columns(texts), *(name for name in texts if name.strip().casefold() == NAME)}
        if not wanted:
            yield 0, dict.fromkeys(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(4096, columns=sorted(wanted)) if wanted else ():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{key}: is no Parquet file that can be read ({reason}); restore or remove it.") from None


def _json_lines(key: str, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise SourceError(f"{key}, line {number}: is no JSON object; expected one a line, or remove the file.")
        yield number, row


def _csv_lines(key: str, text: str) -> Iterator[tuple[int, Row]]:
    head = text.partition("\n")[0]
    usual = any(name.strip().strip('"').casefold() == NAME for name in head.split(","))
    other = next((sign for sign in ";\t" if sign in head and NAME in head.casefold()), ",")  # Excel in many countries
    reader = csv.DictReader(StringIO(text, newline=""), delimiter="," if usual else other)
    try:
        for row in reader:
            yield reader.line_num, {str(name): value for name, value in row.items()}
    except csv.Error as error:
        raise SourceError(f"{key}, line {reader.line_num}: is no CSV ({error}); restore or remove the file.") from None


def _plain(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path))

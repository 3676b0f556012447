"""A folder of images: the bytes of its files, and what its metadata files state about url, author and licence.

Metadata files are read as `datasets` reads them: `metadata.jsonl`, `metadata.csv` or `metadata.parquet` with one row
per image, named by `file_name`, which is relative to the metadata file; of several files above an image the nearest
counts. What they state of images that are not there is reported in a warning.
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
from typing import BinaryIO

from diffaug_datasets.core.errors import SourceError, few, one_line, shown_name
from diffaug_datasets.core.images import BadImage
from diffaug_datasets.core.sources import (
    ATTRIBUTION,
    TEXT_DTYPES,
    Attribution,
    attribution_columns,
    check_key,
    stated_attribution,
)

MOST_BYTES = 1 << 29  # of one file: as many pixels as are decoded at all, 16 bits per channel, not compressed
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is never waited for
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME = "file_name"

MetadataRow = Mapping[str, object]


@dataclass(frozen=True)
class FolderFetch:
    """The bytes of a folder's entries; no entry, and no link behind one, leaves the folder."""

    root: Path
    _folders: dict[str, tuple[Path, bool]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, key: str) -> bytes:
        """The bytes of a file, by its '/'-separated name below the folder.

        Raises:
            SourceError: the entry is missing or unreadable.
            BadImage: it lies outside the folder, or is no file of at most MOST_BYTES, and is not opened.
        """
        with self.opened(key) as file:
            try:
                return file.read()
            except OSError as error:
                raise _unread(shown_name(key), error) from None

    def opened(self, key: str) -> BinaryIO:
        """A file to read piece by piece; what is refused, and how, is as for its bytes."""
        name = shown_name(key)
        try:
            path, state = self._inside(key, name)
            if stat.S_ISDIR(state.st_mode):
                raise SourceError(f"{name}: cannot be read (Is a directory); check the file and its rights.")
            if not stat.S_ISREG(state.st_mode):
                raise BadImage(name, "a named pipe, socket or device, which is not opened")
            if state.st_size > MOST_BYTES:
                raise BadImage(name, f"got {state.st_size:,} bytes, expected at most {MOST_BYTES:,}")
            return os.fdopen(os.open(path, READ), "rb")
        except FileNotFoundError:
            if (self.root / key).is_symlink():
                raise BadImage(name, "a link to a file that is not there") from None
            raise SourceError(f"{name}: expected in {str(self.root)!r}, but not there; complete the copy.") from None
        except RuntimeError:
            raise BadImage(name, "a link that leads to itself") from None
        except OSError as error:
            raise _unread(name, error) from None

    def state(self, key: str) -> os.stat_result:
        """What the system says of a file, which is not opened.

        Raises:
            BadImage: it lies outside the folder.
            OSError, RuntimeError: it is not there.
        """
        return self._inside(key, shown_name(key))[1]

    def _inside(self, key: str, name: str) -> tuple[Path, os.stat_result]:
        """Where a key leads, and what is there, every link followed; its folder's links are followed once."""
        folder, _, file = check_key(key).rpartition("/")
        if folder not in self._folders:
            found = (self.root / folder).resolve()
            self._folders[folder] = found, found.is_relative_to(self.root)
        home, is_inside = self._folders[folder]
        path = home / file
        state = path.lstat() if is_inside else None
        if state is None or stat.S_ISLNK(state.st_mode):
            path = path.resolve()
            is_inside = path.is_relative_to(self.root)
            state = path.stat() if is_inside else None
        if state is None:
            where = f"the dataset's folder {str(self.root)!r}"
            raise BadImage(name, f"leads outside {where}", "copy the image into it")
        return path, state

    def text(self, key: str) -> str:
        """A text file such as a list, in UTF-8 or marked as UTF-16.

        Raises:
            SourceError: as for bytes, or it is no text.
        """
        data = self(key)
        try:
            return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
        except UnicodeDecodeError:
            raise SourceError(
                f"{shown_name(key)}: got bytes that are not UTF-8, expected a text list; restore the file, or save it "
                "as UTF-8."
            ) from None


@dataclass(frozen=True)
class FolderAttributions:
    """What metadata files state: attributions by an image's key, the files in words, and what of them no image gets."""

    by_key: Mapping[str, Attribution] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _unread(name: str, error: OSError) -> SourceError:
    return SourceError(f"{name}: cannot be read ({error.strerror}); check the file and its rights.")


def folder_attributions(fetch: FolderFetch, keys: Iterable[str]) -> FolderAttributions:
    """Attribution of every image that a metadata file above it names, and what became of the other rows.

    Raises:
        SourceError: a metadata file cannot be read; names file and line.
    """
    by_folder: dict[PurePosixPath, _MetadataFile | None] = {}
    by_key: dict[str, Attribution] = {}
    hidden: Counter[tuple[str, str]] = Counter()
    known = set()
    for key in keys:
        plain = _plain(PurePosixPath(key))
        known.add(plain)
        nearest: _MetadataFile | None = None
        for folder in PurePosixPath(key).parents:
            if folder not in by_folder:
                by_folder[folder] = _MetadataFile.read(fetch, folder)
            if (metadata := by_folder[folder]) is None:
                continue
            stated = metadata.rows.get(plain)
            if nearest is None:
                nearest = metadata
                if stated:
                    by_key[key], metadata.used = stated, metadata.used + 1
            elif stated and key not in by_key:
                hidden[nearest.name, metadata.name] += 1
    files = [metadata for metadata in by_folder.values() if metadata]
    warnings = [text for metadata in files for text in metadata.complaints(fetch, known)]
    warnings += [
        f"{near}: counts alone for the images below it; what {far} states of {count:,} of them is lost"
        for (near, far), count in hidden.items()
    ]
    return FolderAttributions(by_key, tuple(metadata.in_words() for metadata in files), tuple(warnings))


@dataclass
class _MetadataFile:
    """A metadata file: attributions by the plain key of each image that it names. `used`: images that got theirs."""

    name: str
    rows: dict[str, Attribution] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    used: int = 0

    @classmethod
    def read(cls, fetch: FolderFetch, folder: PurePosixPath) -> "_MetadataFile | None":
        """The metadata file in a folder; None where there is none."""
        names = [str(folder / name) for name in METADATA_FILES if (fetch.root / folder / name).is_file()]
        if not names:
            return None
        metadata = cls(names[0])
        if len(names) > 1:
            metadata.warnings.append(f"{names[0]}: is read, and {' and '.join(names[1:])} beside it is not")
        columns: dict[str, None] = {}
        for number, row in _rows(fetch, names[0]):
            columns |= dict.fromkeys(row)
            image, stated = _file_name(row), stated_attribution(row)
            if image is not None:
                key = _plain(PurePosixPath(image if PureWindowsPath(image).drive else folder / image))
                if metadata.rows.get(key, stated) != stated:
                    metadata.repeated.append(shown_name(key))
                metadata.rows[key] = stated
            elif stated:
                where = f"{names[0]}, line {number}"
                raise SourceError(f"{where}: names no image; expected a {NAME!r} beside {stated[0][0]!r}.")
        if columns and not metadata.rows:
            held = shown_name(few(list(columns), 5))
            metadata.warnings.append(f"{names[0]}: has no {NAME!r} column (columns: {held}), so nothing of it is used")
        return metadata

    def in_words(self) -> str:
        """`metadata.csv (author, license of 3 images)`."""
        stated = {name for attribution in self.rows.values() for name, _ in attribution}
        names = ", ".join(name for name in ATTRIBUTION if name in stated)
        return f"{self.name} ({names} of {self.used:,} image{'' if self.used == 1 else 's'})" if names else self.name

    def complaints(self, fetch: FolderFetch, known: set[str]) -> Iterator[str]:
        """Rows that name no image or one twice, and what is lost by that; rows of images left out are no fault."""
        yield from self.warnings
        if self.repeated:
            yield f"{self.name}: names {few(self.repeated)} more than once, each time otherwise; the last row counts"
        unmatched = [key for key in self.rows if key not in known and not _is_file(fetch, key)]
        if not unmatched:
            return
        lost = {name for key in unmatched for name, _ in self.rows[key]}
        loss = f"; the {' and '.join(name for name in ATTRIBUTION if name in lost)} they state is lost" if lost else ""
        cased = {key.casefold(): key for key in known}
        first = next((key for key in unmatched if self.rows[key]), unmatched[0])
        if PurePosixPath(first).is_absolute() or PureWindowsPath(first).drive:
            why = f" (expected a path relative to {self.name})"
        else:
            why = f" (there is {shown_name(cased[first.casefold()])!r})" if first.casefold() in cased else ""
        rows = f"{len(unmatched):,} of {len(self.rows):,} rows match no image"
        yield f"{self.name}: {rows}, such as {shown_name(first)!r}{why}{loss}"


def _rows(fetch: FolderFetch, name: str) -> Iterator[tuple[int, MetadataRow]]:
    """Line number and columns of every row of a metadata file."""
    if name.endswith(".parquet"):
        yield from _parquet_rows(name, fetch(name))
    elif name.endswith(".jsonl"):
        for number, line in enumerate(fetch.text(name).split("\n"), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise SourceError(
                    f"{name}, line {number}: is no JSON object; expected one per line, or remove the file."
                )
            yield number, row
    else:
        text = fetch.text(name)
        head = text.partition("\n")[0]
        is_usual = any(column.strip().strip('"').casefold() == NAME for column in head.split(","))
        other = next((sign for sign in ";\t" if sign in head and NAME in head.casefold()), ",")  # as Excel may save it
        reader = csv.DictReader(StringIO(text, newline=""), delimiter="," if is_usual else other)
        try:
            for columns in reader:
                yield reader.line_num, {str(column): value for column, value in columns.items()}
        except csv.Error as error:
            where = f"{name}, line {reader.line_num}"
            raise SourceError(f"{where}: is no CSV ({error}); restore or remove the file.") from None


def _parquet_rows(name: str, data: bytes) -> Iterator[tuple[int, MetadataRow]]:
    """The text columns that matter, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(BytesIO(data))
        texts = [column.name for column in file.schema_arrow if str(column.type) in TEXT_DTYPES]
        wanted = {*attribution_columns(texts), *(text for text in texts if text.strip().casefold() == NAME)}
        if not wanted:
            yield 0, dict.fromkeys(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(4096, columns=sorted(wanted)) if wanted else ():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        raise SourceError(f"{name}: is no Parquet file that can be read ({reason}); restore or remove it.") from None


def _file_name(row: MetadataRow) -> str | None:
    """The image that a row names, with '/' for another system's separator."""
    for column, name in row.items():
        if column.strip().casefold() == NAME and isinstance(name, str) and name.strip():
            return name.strip().replace("\\", "/")
    return None


def _is_file(fetch: FolderFetch, key: str) -> bool:
    try:
        return not PurePosixPath(key).is_absolute() and (fetch.root / key).is_file()
    except (OSError, ValueError):
        return False


def _plain(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path))

"""The encoded bytes of an entry of a source: a file of a folder, or a row of an image column."""

import codecs
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import BadImage
from diffaug_datasets.core.printable import shown_name
from diffaug_datasets.core.sources import check_key

if TYPE_CHECKING:
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

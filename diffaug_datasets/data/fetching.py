"""The encoded bytes of an entry of a source: a file of a folder, or a row of an image column."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import check_key

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FolderFetch:
    """The bytes of an entry; no entry, and no link behind one, leaves the folder."""

    root: Path

    def __call__(self, key: str) -> bytes:
        """Raises SourceError if the entry is missing, unreadable or outside the folder."""
        path = (self.root / check_key(key)).resolve()
        if not path.is_relative_to(self.root):
            raise SourceError(f"{key}: leads outside the dataset's folder {str(self.root)!r}; copy the image into it.")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise SourceError(f"{key}: expected in {str(self.root)!r}, but not there; complete the copy.") from None
        except OSError as error:
            raise SourceError(f"{key}: cannot be read ({error.strerror}); check the file and its rights.") from None

    def text(self, key: str) -> str:
        """A UTF-8 text file such as a list of images; SourceError as above, or if it is no text."""
        try:
            return self(key).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SourceError(f"{key}: got bytes that are not UTF-8, expected a text list; restore the file.") from None


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

"""What was found out about the images of a folder, kept in the user's cache: who looks again reads no file twice.

A file is the one that was seen while its size and the times of its last change and of its entry's are the same, to the
nanosecond. One that was changed less than two seconds before it was read is not kept: it may change again within the
same tick of the file system's clock. Nothing is written into the folder itself, and a cache that cannot be read or
written is as if there were none. Whoever copies an image into a run compares its bytes with the digest as ever.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.models import cache_home
from diffaug_datasets.sources.folders import FolderFetch

SCHEMA = pa.schema(
    [
        *(("key", pa.string()), ("size", pa.int64()), ("changed", pa.int64()), ("entered", pa.int64())),
        *(("sha256", pa.binary(32)), ("is_long", pa.bool_())),
    ]
)
SETTLED_NS = 2_000_000_000


class State(NamedTuple):
    """Bytes of a file, and the times of its last change and of its entry's, in nanoseconds."""

    size: int
    changed: int
    entered: int

    @classmethod
    def of(cls, found: os.stat_result) -> "State":
        """Of a file that was looked at."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Known:
    """A sound image: `sha256` of its bytes, 64 hex digits; `is_long`: it carries a text that Pillow refuses."""

    sha256: str
    is_long: bool


def known_files(fetch: object, kind: str = "") -> "KnownFiles | None":
    """What is known of a source; None where its images are no files, or this user has no home to keep it in.

    `kind`: of what is kept apart; of a `pool` only the digests are known, not that images are sound.
    """
    if not isinstance(fetch, FolderFetch):
        return None
    try:
        cache_home()
    except RuntimeError:
        return None
    return KnownFiles(fetch.root, fetch.state, kind)


class KnownFiles:
    """The sound images of one folder, by key. `state`: what the file of a key looks like now."""

    def __init__(self, folder: Path, state: Callable[[str], os.stat_result], kind: str = "") -> None:
        place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        self.path = cache_home() / "sources" / f"{place}{kind and '-'}{kind}.parquet"
        self._state = state
        self._known = dict(self._read())
        self._is_new = False

    def look(self, key: str) -> tuple[State | None, Known | None]:
        """How a file is now, and what is known of it; None where it is not, or cannot be looked at."""
        try:
            state = State.of(self._state(key))
        except (DiffAugError, OSError, RuntimeError):  # a link that leads to itself
            return None, None
        before, known = self._known.get(key, (None, None))
        return state, known if before == state else None

    def note(self, key: str, state: State | None, known: Known) -> None:
        """Remember a file that was `state` before it was read, unless its name is not UTF-8."""
        is_text = key.encode(errors="replace").decode() == key
        if is_text and state is not None and state.changed < time.time_ns() - SETTLED_NS:
            self._known[key] = state, known
            self._is_new = True

    def save(self) -> None:
        """Write what is new."""
        if not self._is_new:
            return
        columns = {
            "key": list(self._known),
            "size": [state.size for state, _ in self._known.values()],
            "changed": [state.changed for state, _ in self._known.values()],
            "entered": [state.entered for state, _ in self._known.values()],
            "sha256": [bytes.fromhex(known.sha256) for _, known in self._known.values()],
            "is_long": [known.is_long for _, known in self._known.values()],
        }
        with suppress(OSError, DiffAugError, pa.ArrowException):  # a cache is never needed
            table = pa.table(columns, schema=SCHEMA.with_metadata({"pillow": PIL.__version__}))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda path: pq.write_table(table, path))
            self._is_new = False

    def _read(self) -> Iterator[tuple[str, tuple[State, Known]]]:
        """What was written by the same version of Pillow, which decided what is sound."""
        try:
            table = pq.read_table(self.path)
            pillow = (table.schema.metadata or {}).get(b"pillow")
            if not table.schema.equals(SCHEMA) or pillow != PIL.__version__.encode():
                return
            table.validate(full=True)
            columns = [table.column(name).to_pylist() for name in SCHEMA.names]
        except (OSError, pa.ArrowException):
            return
        for key, size, changed, entered, sha256, is_long in zip(*columns, strict=True):
            if sha256 is not None and key is not None:
                yield key, (State(size, changed, entered), Known(sha256.hex(), bool(is_long)))

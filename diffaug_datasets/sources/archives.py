"""Archives of images: a zip or tar file, unpacked beside itself with nothing written anywhere else.

No entry decides where a file goes but below the new folder: names that lead elsewhere, links and devices are left out
and said. Bytes and files are counted while they are written, whatever the archive states of itself.
"""

import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from diffaug_datasets.core.errors import SourceError, shown_name
from diffaug_datasets.core.files import temporary_path
from diffaug_datasets.core.sources import check_key
from diffaug_datasets.sources.folders import MOST_BYTES

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
OTHER_ARCHIVES = (".7z", ".rar", ".gz", ".xz", ".bz2", ".zst", ".tar.zst")
MOST_FILES = 5_000_000
MOST_RATIO, FIRST_BYTES = 200, 1 << 28  # bytes of all files: so many times the archive's own, and so many in any case
SPARE = 1 << 30  # bytes that the disk keeps
CHUNK = 1 << 20
LONGEST = 255  # bytes of one name, as file systems have it
WINDOWS_DEVICES = ("con", "prn", "aux", "nul")


@dataclass(frozen=True)
class Unpacked:
    """Where the files are, how many, and what was left out: reason -> entries."""

    folder: Path
    files: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Entry:
    """One regular file of an archive, or why it is none; `open` gives its bytes."""

    name: str
    fault: str
    open: Callable[[], IO[bytes] | None]


def archive_suffix(path: Path) -> str:
    """`.tar.gz` of a file that is called as an archive, or ''."""
    name = path.name.lower()
    return next((end for end in sorted(ARCHIVES, key=len, reverse=True) if name.endswith(end)), "")


def unpacked_folder(archive: Path) -> Path:
    """Where an archive is unpacked: beside it, under its own name."""
    return archive.with_name(archive.name[: -len(archive_suffix(archive))] or "unpacked")


def unpack(archive: Path) -> Unpacked:
    """Unpack a zip or tar file into a new folder beside it, whole or not at all.

    Raises:
        SourceError: the folder is there already, or the archive is damaged, locked or larger than there is room for.
    """
    folder = unpacked_folder(archive)
    if folder.exists():
        raise SourceError(
            f"'{folder}': is there already, where {archive.name} would be unpacked; give that folder, or move it away."
        )
    likely = MOST_RATIO * archive.stat().st_size + FIRST_BYTES
    room = min(likely, shutil.disk_usage(archive.parent).free - SPARE)
    unfinished = temporary_path(folder)
    unfinished.mkdir()
    try:
        with _entries(archive) as entries:
            files, left_out = _write(entries, unfinished, room, archive)
        if not files:
            raise SourceError(f"{archive.name}: holds no file that can be unpacked; expected images in class folders.")
        unfinished.rename(folder)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        zlib.error,
        NotImplementedError,
        OSError,
        ValueError,
    ) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceError(
            f"{archive.name}: cannot be unpacked ({reason}); fetch it again, or unpack it yourself and give the folder."
        ) from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Unpacked(folder, files, left_out)


def _write(entries: Iterator[_Entry], folder: Path, room: int, archive: Path) -> tuple[int, dict[str, int]]:
    files, written, left_out = 0, 0, dict[str, int]()
    for number, entry in enumerate(entries):
        if number >= MOST_FILES:
            raise SourceError(f"{archive.name}: holds more than {MOST_FILES:,} entries; unpack it yourself.")
        fault = entry.fault or _unsafe(entry.name)
        target = folder / entry.name
        if not fault and target.exists():
            fault = "a name that comes twice"
        if fault:
            left_out[fault] = left_out.get(fault, 0) + 1
            continue
        source = entry.open()
        if source is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with source, target.open("xb") as sink:
            while data := source.read(CHUNK):
                size, written = size + len(data), written + len(data)
                if written > room:
                    raise SourceError(
                        f"{archive.name}: unpacks to more than {room:,} bytes, the room here or {MOST_RATIO} times "
                        "its own size; unpack it yourself and give the folder."
                    )
                if size > MOST_BYTES:
                    break
                sink.write(data)
        if size > MOST_BYTES:
            target.unlink()
            written -= size
            left_out["too large for an image"] = left_out.get("too large for an image", 0) + 1
        else:
            files += 1
    return files, left_out


def _unsafe(name: str) -> str:
    """Why a name may not become a file; '' if it may."""
    try:
        parts = PurePosixPath(check_key(name)).parts
    except SourceError:
        return "a path out of the archive"
    if any(unicodedata.category(c) == "Cc" for c in name) or any(len(os.fsencode(part)) > LONGEST for part in parts):
        return "a name that no disk takes"
    if os.name == "nt" and any(part.split(".")[0].casefold() in WINDOWS_DEVICES or ":" in part for part in parts):
        return "a name that no disk takes"
    return ""


@contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    if archive_suffix(archive) == ".zip":
        with zipfile.ZipFile(archive) as packed:
            yield _zip_entries(packed, archive)
    else:
        with tarfile.open(archive, "r:*") as packed_tar:
            yield _tar_entries(packed_tar)


def _zip_entries(packed: zipfile.ZipFile, archive: Path) -> Iterator[_Entry]:
    for info in packed.infolist():
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise SourceError(f"{archive.name}: is locked with a password; unpack it yourself and give the folder.")
        kind = stat.S_IFMT(info.external_attr >> 16)
        fault = "a link or device" if kind not in (0, stat.S_IFREG) else ""
        yield _Entry(info.filename, fault, lambda info=info: packed.open(info))  # type: ignore[misc]


def _tar_entries(packed: tarfile.TarFile) -> Iterator[_Entry]:
    for member in packed:
        if member.isdir():
            continue
        fault = "" if member.isreg() else "a link or device"
        name = member.name.removeprefix("./")
        yield _Entry(name, fault, lambda member=member: packed.extractfile(member))  # type: ignore[misc]


def left_out_text(left_out: dict[str, int]) -> str:
    """`3 entries (a link or device)`, one after another."""
    return "; ".join(
        f"{count:,} {'entry' if count == 1 else 'entries'} ({shown_name(why)})" for why, count in left_out.items()
    )

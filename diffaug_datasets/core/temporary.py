"""Names of temporary files. They say which machine and process writes one, so that nobody sweeps another's away."""

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import RunError

ABANDONED_SECONDS = 24 * 3600.0
TEMPORARY = ".*.tmp"
_TEMPORARY_NAME = re.compile(r"\.(?P<file>.+)\.(?P<machine>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


def temporary_path(path: Path) -> Path:
    """A new name in the same folder: `.FILE.MACHINE.PID.RANDOM.tmp`, short enough wherever the file's own name is."""
    return path.with_name(f".{path.name[:40]}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@cache
def machine() -> str:
    """Host name and eight digits for its boot and pid namespace: where they are equal, process ids mean the same."""
    host = socket.gethostname()
    seen = (host, _content(Path("/proc/sys/kernel/random/boot_id")), _namespace())
    name = re.sub(r"[^A-Za-z0-9-]", "-", host)[:24] or "host"
    return f"{name}-{hashlib.sha256(chr(0).join(seen).encode()).hexdigest()[:8]}"


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_temporary(path: Path) -> bool:
    """Whether a file is called as `temporary_path` calls them."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def finished_name(path: Path) -> str:
    """The name of the file that a temporary one was to become, at most its first 40 letters."""
    match = _TEMPORARY_NAME.fullmatch(path.name)
    return match["file"] if match else path.name


def writer_is_gone(path: Path) -> bool:
    """Whether a temporary file is of a process of this machine and pid namespace that has ended."""
    match = _TEMPORARY_NAME.fullmatch(path.name)
    return match is not None and match["machine"] == machine() and not _alive(int(match["pid"]))


def is_abandoned(path: Path) -> bool:
    """Whether nothing was written into a file for a day."""
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class FileDigest(BaseModel):
    """One finished file, by its bare name in the unit's folder."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(pattern=r"^\w[\w.-]*$")
    sha256: str
    size: int


def sha256_file(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> FileDigest:
    """Write beside it, fsync, replace: a reader sees the old file, or the new one, whole.

    Raises:
        RunError: the disk is full or the folder is read-only; nothing half-written is left.
    """
    unfinished = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        _sync(unfinished)
        done = FileDigest(file=path.name, sha256=sha256_file(unfinished), size=unfinished.stat().st_size)
        unfinished.replace(path)
        if os.name != "nt":  # Windows opens no folder
            _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise RunError(f"{path.parent}: cannot write {path.name} ({reason}); free space or check rights.") from None
        raise
    return done


def write_text(path: Path, text: str) -> FileDigest:
    """Write a small text file atomically."""

    return write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """Write what is already in memory atomically."""
    return write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

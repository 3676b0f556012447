"""Names of temporary files. They say which machine and process writes one, so that nobody sweeps another's away."""

import hashlib
import os
import re
import secrets
import socket
import time
from functools import cache
from pathlib import Path

OLD_SECONDS = 24 * 3600.0
PATTERN = ".*.tmp"
_NAME = re.compile(r"\.(?P<file>.+)\.(?P<machine>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


def beside(path: Path) -> Path:
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
    """Whether a file is called as `beside` calls them."""
    return _NAME.fullmatch(path.name) is not None


def file_of(path: Path) -> str:
    """The name of the file that a temporary one was to become, at most its first 40 letters."""
    match = _NAME.fullmatch(path.name)
    return match["file"] if match else path.name


def writer_is_gone(path: Path) -> bool:
    """Whether a temporary file is of a process of this machine and pid namespace that has ended."""
    match = _NAME.fullmatch(path.name)
    return match is not None and match["machine"] == machine() and not _alive(int(match["pid"]))


def is_old(path: Path) -> bool:
    """Whether nothing was written into a file for a day."""
    return time.time() - path.stat().st_mtime > OLD_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

"""Who works on a unit: a lock on a small file, which the kernel frees when its process dies.

Locks are asked for only where something is made. Planning, loading, checking and publishing need none, so they work on
systems and file systems that have none, and looking at a run there only leaves open who works on it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffaug_datasets.core.errors import RunError

AT_WORK = "at-work"


@contextmanager
def lease(folder: Path, unit: str) -> Iterator[bool]:
    """True while this process alone holds a unit of the run in a folder.

    Raises:
        RunError: the folder may not be written, or this system or its file system has no locks.
    """
    path = folder / ".locks" / f"{unit}.lock"
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise RunError(f"{folder}: cannot lock units here ({error.strerror}); a run folder must be writable.") from None
    try:
        yield _locked(handle, folder)
    finally:
        os.close(handle)


def held(folder: Path, unit: str) -> bool | None:
    """Whether some process works on a unit now; None where no locks can be read. Writes nothing."""
    path = folder / ".locks" / f"{unit}.lock"
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not _locked(handle, folder)
    except RunError:
        return None
    finally:
        os.close(handle)


def check_locks(folder: Path) -> None:
    """Raises RunError, as `lease`, where units of this folder cannot be locked."""
    with lease(folder, AT_WORK):
        pass


def _locked(handle: int, folder: Path) -> bool:
    """Whether the file was free; then it is this process's until the file is closed."""
    try:
        import fcntl
    except ImportError:
        raise RunError(
            f"{folder}: making images needs the file locks of Linux or macOS (Python's fcntl), which are not here; "
            "generate there or under WSL. Planning, loading, verifying and publishing work here."
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(
            f"{folder}: this file system refuses locks ({error.strerror}), and without them two workers would make the "
            "same images; plan or copy the run to another disk, such as a local one, and generate there."
        ) from None
    return True

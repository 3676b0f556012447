"""A folder that was looked at is not read again; what changed in it is noticed; the cache is never needed."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.known_files import known_files
from diffaug_datasets.sources.real import read_real


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images that were written a while ago, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(4):
        path = tmp_path / "images" / "train" / f"class{i % 2}" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (i, 0, 0)).save(path)
        settle(path)
    return tmp_path / "images"


def settle(path: Path) -> None:
    """As if it had been written ten seconds ago."""
    os.utime(path, (time.time() - 10,) * 2)


def ids(folder: Path) -> list[str]:
    """The ids of all images."""
    return [source.id for source in read_real("imagefolder", folder).train.sources]


def files_in(folder: Path) -> set[Path]:
    """All files below a folder."""
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the files that were read."""
    keys: list[str] = []
    fetch = FolderFetch.__call__
    monkeypatch.setattr(FolderFetch, "__call__", lambda self, key: keys.append(key) or fetch(self, key))
    return keys


def test_a_folder_is_read_once_and_nothing_is_written_into_it(folder: Path, read: list[str]) -> None:
    before = files_in(folder)
    first = ids(folder)
    assert len(read) == 4
    assert ids(folder) == first and len(read) == 4
    assert files_in(folder) == before and len(files_in(folder.parent / "cache")) == 1


def test_a_changed_file_is_noticed_even_under_its_old_size_and_time(folder: Path, read: list[str]) -> None:
    first = ids(folder)
    path = folder / "train" / "class0" / "0.bmp"
    state = path.stat()
    data = bytearray((folder / "train" / "class0" / "2.bmp").read_bytes())
    assert len(data) == state.st_size
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    read.clear()
    assert ids(folder) == [first[1], first[1], *first[2:]] and read == ["train/class0/0.bmp"]
    path.write_bytes(b"no image")
    settle(path)
    with pytest.raises(SourceError, match=r"train/class0/0\.bmp"):
        ids(folder)


def test_a_file_that_was_just_written_is_not_kept(folder: Path, read: list[str]) -> None:
    (folder / "train" / "class1" / "1.bmp").touch()
    first = ids(folder)
    read.clear()
    assert ids(folder) == first and read == ["train/class1/1.bmp"]


@pytest.mark.parametrize("damage", ["cut", "text", "none"])
def test_a_damaged_or_impossible_cache_is_no_error(
    folder: Path, read: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ids(folder)
    [cache] = files_in(folder.parent / "cache")
    if damage == "none":
        (folder.parent / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    else:
        cache.write_bytes(cache.read_bytes()[:-9] if damage == "cut" else b"nothing")
    read.clear()
    assert ids(folder) == first and len(read) == 4
    read.clear()
    assert ids(folder) == first and len(read) == (4 if damage == "none" else 0)


def test_a_name_of_another_system_is_read_each_time(folder: Path, read: list[str]) -> None:
    one = next(path for path in folder.rglob("*") if path.is_file())
    odd = one.with_name(os.fsdecode(b"caf\xe9.png"))
    Image.new("RGB", (3, 2), (99, 0, 0)).save(odd)
    settle(odd)
    assert len(ids(folder)) == 5 == len(read)
    assert len(ids(folder)) == 5 and len(read) == 6


def test_a_user_without_a_home_has_no_cache(folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that was started with a bare uid: no entry in passwd, no HOME."""

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert ids(folder) == ids(folder)
    assert len(read) == 8


def test_only_folders_are_known() -> None:
    assert known_files(lambda _key: b"") is None

"""Archives are unpacked beside themselves, whole or not at all, and write nowhere else."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.sources import archives
from diffaug_datasets.sources.archives import archive_suffix, unpack

GOOD = {"photos/a/0.png": b"zero", "photos/b/ü (1).png": b"one"}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path) -> str:
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(SourceError) as error:
        unpack(archive)
    assert sorted(archive.parent.rglob("*")) == before  # nothing half is left
    return str(error.value)


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz", "set.tar.bz2", "set.tar.xz"])
def test_every_kind_is_unpacked_beside(tmp_path: Path, name: str) -> None:
    modes = {".zip": "", ".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
    mode = modes[archive_suffix(Path(name))]
    archive = tarred(tmp_path / name, GOOD, mode) if mode else zipped(tmp_path / name, GOOD)
    done = unpack(archive)
    assert (done.folder, done.files, done.left_out) == (tmp_path / "set", 2, {})
    assert contents(done.folder) == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", name]


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_entry_leaves_the_folder(tmp_path: Path, name: str, pack: object) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / ("x.zip" if pack is zipped else "x.tar.gz")
    pack(archive, {**GOOD, name: b"out"})  # type: ignore[operator]
    done = unpack(archive)
    assert done.left_out == {"a path out of the archive": 1}
    assert contents(done.folder) == GOOD
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"out"]


def test_links_and_devices_of_a_tar_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        for name, kind, target in (
            ("d", tarfile.SYMTYPE, ".."),
            ("l.png", tarfile.LNKTYPE, "secret"),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            packed.addfile(member)
        for name in ("d/through.png", "a/0.png"):
            member = tarfile.TarInfo(name)
            member.size = 1
            packed.addfile(member, io.BytesIO(b"x"))
    done = unpack(tmp_path / "x.tar")
    assert done.left_out == {"a link or device": 3}
    assert contents(done.folder) == {"d/through.png": b"x", "a/0.png": b"x"}
    assert not (tmp_path / "through.png").exists()


def test_a_link_in_a_zip_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        link = zipfile.ZipInfo("d")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc")
        packed.writestr("a/0.png", b"x")
    done = unpack(tmp_path / "x.zip")
    assert (done.left_out, contents(done.folder)) == ({"a link or device": 1}, {"a/0.png": b"x"})


def test_a_bomb_stops_where_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FIRST_BYTES", 1 << 20)
    archive = zipped(tmp_path / "bomb.zip", {"a/0.png": bytes(8 << 20)})
    assert "unpacks to more than" in refused(archive)


def test_a_file_that_no_image_can_be_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    done = unpack(zipped(tmp_path / "x.zip", {**GOOD, "a/large.png": bytes(2000)}))
    assert (done.left_out, contents(done.folder)) == ({"too large for an image": 1}, GOOD)


def test_damaged_locked_and_empty_ones(tmp_path: Path) -> None:
    damaged = zipped(tmp_path / "d.zip", GOOD)
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert refused(damaged).startswith("d.zip: cannot be unpacked (")
    corrupt = zipped(tmp_path / "c.zip", {"a/0.png": bytes(range(256)) * 40})
    data = bytearray(corrupt.read_bytes())
    data[60:80] = bytes(20)
    corrupt.write_bytes(data)
    assert refused(corrupt).startswith("c.zip: cannot be unpacked (")
    locked = zipped(tmp_path / "l.zip", GOOD)
    data = bytearray(locked.read_bytes())
    for place in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1
    locked.write_bytes(data)
    assert "is locked with a password" in refused(locked)
    assert "holds no file" in refused(tarred(tmp_path / "e.tar.gz", {}))
    cut = tarred(tmp_path / "t.tar.gz", {"a/0.png": bytes(range(256)) * 400})
    cut.write_bytes(cut.read_bytes()[:-40])
    assert refused(cut).startswith("t.tar.gz: cannot be unpacked (")


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", GOOD)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    assert "is there already, where x.zip would be unpacked" in refused(archive)

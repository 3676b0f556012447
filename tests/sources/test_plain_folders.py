"""A plain folder of images is the table that `datasets` makes of it; anything that may be more is left to it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from diffaug_datasets.sources.known_files import SETTLED_NS
from diffaug_datasets.sources.plain_folders import plain_images
from diffaug_datasets.sources.pools import DatasetPool

KINDS = frozenset({".png", ".jpg", ".webp"})
PLAIN = {
    "flat": ["b.png", "a.png", "Ä 1.png", "a-1.png", "a.1.png"],
    "by class": ["b c/1.png", "b/1.png", "b/10.PNG", "b/2.png", "b-c/1.png"],
    "all in one split": ["train/b/2.png", "train/b/1.png", "train/a.png"],
}
MORE = {
    "two splits": ["train/1.png", "test/2.png"],
    "images beside a split": ["train/1.png", "2.png"],
    "a split in a name": ["a/1.png", "a/test-1.png"],
    "a class that may be a split": ["devon rex/1.png", "b/1.png"],
    "a text": ["1.png", "notes.txt"],
    "hidden": ["1.png", ".2.png"],
    "in a hidden folder": ["1.png", "__x/2.png"],
    "nothing": [],
}


def written(folder: Path, names: list[str]) -> Path:
    """Images of different colours, so that each is known by its bytes."""
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            Image.new("RGB", (2, 2), (number, 0, 0)).save(file, "PNG")
    return folder


@pytest.mark.parametrize("shape", PLAIN)
def test_it_is_what_datasets_reads(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "pool", PLAIN[shape])
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    whole = datasets.concatenate_datasets([loaded[name] for name in sorted(loaded)])
    cells = whole.cast_column("image", datasets.Image(decode=False))["image"]
    assert [str(folder / name) for name in plain_images(folder, KINDS) or ()] == [cell["path"] for cell in cells]
    monkeypatch.setattr(datasets, "load_dataset", None)
    pool = DatasetPool(str(folder))
    assert [pool._bytes(row) for row in range(len(cells))] == [Path(cell["path"]).read_bytes() for cell in cells]
    assert [pool.read(row, i) for i, row in zip(pool.table.ids, pool.table.rows, strict=True)]


@pytest.mark.parametrize("shape", MORE)
def test_anything_more_is_left_to_datasets(tmp_path: Path, shape: str) -> None:
    assert plain_images(written(tmp_path / "pool", MORE[shape]), KINDS) is None


@pytest.mark.parametrize("link", [lambda path: path / "link.png", lambda path: path / "link"])
def test_links_are_left_to_datasets(tmp_path: Path, link: Callable[[Path], Path]) -> None:
    folder = written(tmp_path / "pool", ["a/1.png"])
    link(folder).symlink_to(folder / "a" / "1.png")
    assert plain_images(folder, KINDS) is None and plain_images(tmp_path / "nowhere", KINDS) is None


def test_a_second_look_reads_no_file_that_did_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = written(tmp_path / "pool", PLAIN["by class"])
    old = folder.stat().st_mtime_ns - 2 * SETTLED_NS
    for path in folder.rglob("*.[pP]*"):
        os.utime(path, ns=(old, old))
    first = DatasetPool(str(folder)).table
    read: list[str] = []
    opened = os.open

    def reading(path: str, *rest: Any, **named: Any) -> int:
        read.append(Path(path).name)
        return opened(path, *rest, **named)

    monkeypatch.setattr(os, "open", reading)
    assert DatasetPool(str(folder)).table == first
    assert [name for name in read if name.lower().endswith(".png")] == []
    (folder / "b" / "2.png").write_bytes((folder / "b" / "1.png").read_bytes())
    again = DatasetPool(str(folder)).table
    assert [name for name in read if name.lower().endswith(".png")] == ["2.png"] and len(again.ids) == 4

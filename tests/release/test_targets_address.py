"""Publishing to fsspec addresses: the same tree as on the Hub, checked receipts, `run.json` last."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.layout import read_release
from diffaug_datasets.release.publishing import preview, publish
from diffaug_datasets.run.store import Run


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/fashion" if request.param == "file" else f"memory://{tmp_path.name}/fashion"
    MemoryFileSystem.store.clear()


def tree(address: str) -> dict[str, bytes]:
    """Relative path -> bytes of everything there."""
    files, root = fsspec.core.url_to_fs(address)
    found = files.find(root)
    return {path.removeprefix(root).lstrip("/"): files.cat_file(path) for path in found}


def test_everything_arrives_with_receipts(address: str, finished: Run) -> None:
    done = publish(finished, address)
    files = tree(address)
    release = read_release(files[f"{done.folder}/run.json"], "run.json")
    named = [
        *((f.path, f.sha256, f.size) for f in release.files),
        *((f.file, f.sha256, f.size) for f in release.beside),
    ]
    for name, sha256, size in named:
        receipt = json.loads(files[f"{done.folder}/{name}.receipt.json"])
        assert (receipt["sha256"], receipt["size"], len(files[f"{done.folder}/{name}"])) == (sha256, size, size)
    assert {"README.md", "croissant.json"} < set(files)
    assert not any(path.endswith(".partial") for path in files)


class Breaks:
    """Lets so many files move into place, then fails once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str, after: int) -> None:
        self.kind = type(fsspec.core.url_to_fs(address)[0])
        self.left, self.moved, self._mv = after, [], self.kind.mv
        monkeypatch.setattr(self.kind, "mv", lambda files, *words, **more: self._move(files, *words, **more))

    def _move(self, files: Any, source: str, target: str, **more: Any) -> None:
        if self.left == 0:
            self.left = -1
            raise OSError("the cable is out")
        self.left -= 1
        self.moved.append(target)
        self._mv(files, source, target, **more)


def test_a_push_that_died_anywhere_is_completed(address: str, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(finished, address)
    whole = tree(address)
    files, root = fsspec.core.url_to_fs(address)
    for after in range(0, len(whole), 5):
        files.rm(root, recursive=True)
        breaks = Breaks(monkeypatch, address, after)
        with pytest.raises(PublishError, match=r"cannot be written \(the cable is out\); run the same command again"):
            publish(finished, address)
        assert not any(path.endswith("run.json") for path in tree(address))
        publish(finished, address)
        assert tree(address) == whole
        assert breaks.moved[-1].endswith("/run.json")
        shards = [path for path in breaks.moved if path.endswith(".arrow")]
        assert len(shards) <= len(set(shards)) + 1, "more was sent again than the file whose receipt was missing"
        monkeypatch.undo()


def test_a_file_that_changed_there_is_sent_again(address: str, finished: Run) -> None:
    done = publish(finished, address)
    assert publish(finished, address).sent == 0
    whole, (files, root) = tree(address), fsspec.core.url_to_fs(address)
    shard = next(path for path in files.find(root) if path.endswith(".arrow"))
    files.pipe_file(shard, files.cat_file(shard)[:-10])
    assert publish(finished, address).sent == 1
    files.pipe_file(f"{root}/{done.folder}/plan.parquet.receipt.json", b"{")
    assert publish(finished, address).sent == 1
    assert tree(address) == whole


def test_a_preview_writes_nothing(address: str, finished: Run) -> None:
    found = preview(finished, address, PublishOptions())
    assert address in found.card
    files, root = fsspec.core.url_to_fs(address)
    assert not files.exists(root)


def test_several_runs_and_edits(address: str, finished: Run, other_plan: Run, other_config: Run) -> None:
    publish(finished, address)
    files, root = fsspec.core.url_to_fs(address)
    files.pipe_file(f"{root}/README.md", files.cat_file(f"{root}/README.md") + b"\nBy hand.\n")
    publish(other_config, address)
    publish(other_plan, address)
    card = files.cat_file(f"{root}/README.md").decode()
    assert card.endswith("<!-- diffaug: end fashion_1shot_seed1_genie -->\n")
    assert "\nBy hand.\n" in card
    assert other_plan.plan.id[:16] in card
    assert sum(path.endswith("/run.json") for path in tree(address)) == 3


def test_a_folder_that_may_not_be_written(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(PublishError, match="cannot be written"):
        publish(finished, f"file://{tmp_path}/taken/fashion")

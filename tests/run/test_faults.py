"""What disks, clocks and stores do to a run: whatever it is, there is one final state, and it is the right one."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hands import Hands, hands
from object_stores import BUCKET, ObjectStore, object_store
from small_runs import small_recipe

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import temporary_path, write_atomically
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.run import place as places
from diffaug_datasets.run import store as store_module
from diffaug_datasets.run.store import Run

pytestmark = pytest.mark.xdist_group("leases")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three units."""
    return price_plan(small_recipe("txt2img"), tmp_path_factory.mktemp("faults") / "run").write().folder


@pytest.fixture
def folder(planned: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(planned, tmp_path / "run"))


def work(worker: Hands) -> None:
    """Make what is missing."""
    worker.run.check_writable()
    worker.run.sweep()
    for unit in worker._leased():
        worker.make(unit)


def together(workers: Sequence[Hands]) -> None:
    """All of them at once; what one of them raises is raised here."""
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))


def check(place: str) -> None:
    """The one right state: every unit with its receipt and its bytes, nobody at work, nothing half written."""
    run = Run.open(place)
    for shard in run.plan.shards():
        receipt = run.receipt(shard.name)
        assert receipt is not None and run._damaged(receipt) == []
        assert (run.folder / "shards" / receipt.files[0].file).read_text() == f"this is {shard.name}\n"
    assert not run.place.list("leases/") and not list(Path(run.folder).rglob(".*.tmp"))


class Broken:
    """A function of `os` that fails now and then; `fails(path)` says when."""

    def __init__(self, owner: Any, name: str, code: int, fails: Callable[[str], bool]) -> None:
        self.real, self.code, self.fails, self.hits = getattr(owner, name), code, fails, 0
        self.owner, self.name = owner, name

    def __call__(self, *words: Any, **options: Any) -> Any:
        if self.fails(" ".join(map(str, words))):
            self.hits += 1
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*words, **options)


PARTS = {"data": ".arrow.", "receipt": "-00001.json.", "lease": ".000001."}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("part", PARTS)
def test_a_disk_that_refuses_is_one_sentence_and_the_next_call_goes_on(
    folder: str, monkeypatch: pytest.MonkeyPatch, code: int, part: str
) -> None:
    broken = Broken(os, "link", code, lambda words: PARTS[part] in words)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", broken)
        with pytest.raises(RunError, match=rf"{os.strerror(code)}\).*free space or check rights"):
            work(hands(folder, "a", 0))
    assert broken.hits
    work(hands(folder, "b", 0))
    check(folder)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links(folder: str, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    broken = Broken(os, "link", code, lambda words: True)
    monkeypatch.setattr(os, "link", broken)
    together([hands(folder, name, 0.05) for name in "ab"])
    assert broken.hits
    check(folder)


def test_a_rename_that_is_refused_or_not_atomic(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that decides who made a unit is renamed; what is, is whole where the system renames nothing."""
    real = os.replace

    def slow(origin: Any, target: Any) -> None:
        Path(target).unlink(missing_ok=True)
        time.sleep(0.01)
        real(origin, target)

    monkeypatch.setattr(os, "replace", slow)
    work(hands(folder, "a", 0))
    monkeypatch.setattr(os, "replace", Broken(os, "replace", errno.ENOSYS, lambda words: True))
    for text in ("one", "two"):
        write_atomically(tmp_path / "file.json", lambda path, text=text: path.write_text(text))  # type: ignore[misc]
        assert (tmp_path / "file.json").read_text() == text
    work(hands(folder, "b", 0))
    check(folder)


def test_without_flock(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Broken(fcntl, "flock", errno.ENOLCK, lambda words: True))
    work(hands(folder, "a", 0))
    check(folder)


def test_clocks_that_jump(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock shows another day."""
    days = iter(range(1, 1_000_000))
    monkeypatch.setattr(time, "time", lambda: (-1) ** (day := next(days)) * day * 86400.0 + 1e9)
    together([hands(folder, name, 0.1) for name in "ab"])
    check(folder)


def test_two_coordinators(folder: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Both sweep, both work, both begin again; every unit is made once."""
    together([hands(folder, name, 0.1) for name in "abab"])
    check(folder)
    assert sorted(line for line in capfd.readouterr().out.splitlines() if line.startswith("made")) == [
        f"made synthetic-0000{i}" for i in range(3)
    ]


def test_a_folder_that_goes_while_it_is_swept(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever frees the last lease takes its folder away, between a look at what there is and a look into it."""
    run = Run.open(folder)
    run.place.create("leases/unit/000001", b"")
    left = temporary_path(run.folder / "shards" / "synthetic-00000.arrow")
    left.write_text("half")
    real, gone = os.scandir, Path(folder) / "leases"

    def scandir(path: Any = ".") -> Any:
        if str(path) == str(gone):
            shutil.rmtree(gone)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(store_module, "writer_is_gone", lambda path: True)
    run.sweep()
    assert not gone.exists() and not left.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_cut_receipt_counts_for_none(folder: str, kept: int) -> None:
    work(hands(folder, "a", 0))
    path = Path(folder) / "shards" / "synthetic-00001.json"
    path.write_bytes(path.read_bytes()[:kept])
    assert Run.open(folder).receipt("synthetic-00001") is None
    work(hands(folder, "b", 0))
    check(folder)
    receipt = Run.open(folder).receipt("synthetic-00001")
    assert receipt is not None and receipt.worker == "b"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as served:
        yield served


@pytest.mark.parametrize("after", [1, 6])
def test_a_store_that_is_out_of_order_for_a_while(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """503 to everything, from the first writing request after `after`; a minute is a second here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = f"s3://{BUCKET}/faults/{time.time_ns()}"
    price_plan(small_recipe("txt2img"), address).write()
    worker = hands(address, "a", 0)
    monkeypatch.setattr(store, "left", after)
    monkeypatch.setattr(store, "outage", 1.0)
    monkeypatch.setattr(store, "down_since", None)
    work(worker)
    assert store.left is None
    assert [one for one in store.log if one.status == 503]
    check(address)


def test_a_store_that_stays_out_of_order_is_one_sentence(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = f"s3://{BUCKET}/faults/{time.time_ns()}"
    price_plan(small_recipe("txt2img"), address).write()
    monkeypatch.setattr(places, "RETRY_SECONDS", 0.3)
    worker = hands(address, "a", 0)
    with monkeypatch.context() as patch:
        patch.setattr(store, "left", 3)
        with pytest.raises(RunError, match=r"does not answer \(status 503\) for 0 s; .* once it does, the same"):
            work(worker)
    work(hands(address, "b", 0))
    check(address)


def test_a_flipped_byte_is_found_and_its_unit_made_again(folder: str) -> None:
    work(hands(folder, "a", 0))
    path = Path(folder) / "shards" / "synthetic-00001.arrow"
    path.write_bytes(b"T" + path.read_bytes()[1:])
    work(hands(folder, "b", 0))
    check(folder)
    makers = [receipt.worker for i in range(3) if (receipt := Run.open(folder).receipt(f"synthetic-0000{i}"))]
    assert makers == ["a", "b", "a"] and path.exists()

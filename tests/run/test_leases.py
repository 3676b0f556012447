"""Leases over a folder and over HTTP: the dead are replaced, the stopped commit nothing, nobody's files are touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_stores import BUCKET, object_store
from small_runs import small_recipe

from diffaug_datasets.core import files
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.run.leases import FREE, Leases, all_holders, lease, read_holder
from diffaug_datasets.run.place import FolderPlace, ObjectPlace, place_of
from diffaug_datasets.run.store import Receipt, Run

TTL = 1.0
FOLDER, STORE = "a folder", "an object store"
FIRST, SECOND = "synthetic-00000", "synthetic-00001"
HANDS = Path(__file__).with_name("hands.py")
pytestmark = pytest.mark.xdist_group("leases")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with object_store(tmp_path_factory.mktemp("store")):
        yield f"s3://{BUCKET}/leases"


@pytest.fixture(params=[FOLDER, STORE])
def run_place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a run of three shards is planned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFAUG_LEASE_SECONDS", str(TTL))
    place = str(tmp_path / "run")
    if request.param == STORE:
        place = f"{request.getfixturevalue('store')}/{time.time_ns()}"
    return price_plan(small_recipe("txt2img"), place).write().where


def start(place: str, name: str, seconds: float, *only: str) -> "subprocess.Popen[str]":
    """A worker process of another host, with a cache of its own."""
    cache = {"XDG_CACHE_HOME": str(Path(os.environ["XDG_CACHE_HOME"]) / name)}
    line = [sys.executable, str(HANDS), place, name, str(seconds), *only]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**os.environ, **cache})


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def rest(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()


def maker(place: str, unit: str) -> str:
    receipt = Run.open(place).receipt(unit)
    assert receipt is not None
    return receipt.worker


@pytest.mark.parametrize("run_place", [FOLDER, pytest.param(STORE, marks=pytest.mark.full)], indirect=True)
def test_the_dead_are_replaced_and_the_stopped_commit_nothing(run_place: str) -> None:
    """On `a` a worker is killed in the first unit, on `b` one is stopped in the second; `c` makes all."""
    with start(run_place, "a", 60, FIRST) as dead, start(run_place, "b", 2 * TTL, SECOND) as stopped:
        assert said(dead) == f"holds {FIRST} 1" and said(stopped) == f"holds {SECOND} 1"
        dead.kill()
        stopped.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        with start(run_place, "c", 0) as third:
            lines = rest(third)
        assert time.monotonic() - begin >= TTL
        stopped.send_signal(signal.SIGCONT)
        assert rest(stopped) == [f"lost {SECOND}"]
    assert f"holds {FIRST} 2" in lines and f"holds {SECOND} 2" in lines and "holds synthetic-00002 1" in lines
    assert [line for line in lines if line.startswith("made")] and len(lines) == 6
    assert {maker(run_place, shard.name) for shard in Run.open(run_place).plan.shards()} == {"c"}


@pytest.mark.parametrize("run_place", [pytest.param(FOLDER, marks=pytest.mark.full), STORE], indirect=True)
def test_two_hosts_make_every_unit_once(run_place: str) -> None:
    """Each unit takes longer than the TTL, so that only beats keep it."""
    with start(run_place, "a", 1.5 * TTL) as a, start(run_place, "b", 1.5 * TTL) as b:
        lines = rest(a) + rest(b)
    assert sorted(line for line in lines if line.startswith("made")) == [f"made synthetic-0000{i}" for i in range(3)]
    assert sum(line.startswith("holds") for line in lines) == 3 and "lost" not in "".join(lines)
    assert place_of(run_place).list("leases/") == [], "what is done needs no lease"


def unshared(command: list[str]) -> list[str]:
    """The command in pid and uts namespaces of its own, on a clock that is not asked for."""
    return ["unshare", "--pid", "--uts", "--fork", "--mount-proc", *command]


CAN_UNSHARE = not subprocess.call(["sh", "-c", "unshare --pid --uts --fork --mount-proc true 2>/dev/null"])


@pytest.mark.skipif(not CAN_UNSHARE, reason="no rights to make namespaces")
def test_a_host_in_other_namespaces_sweeps_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process ids mean other processes there: the first host's temporary file and lease must stay."""
    monkeypatch.setenv("DIFFAUG_LEASE_SECONDS", str(TTL))
    run = price_plan(small_recipe("txt2img"), tmp_path / "run").write()
    ours = files.temporary_path(run.folder / "shards" / f"{FIRST}.arrow")
    ours.write_bytes(b"half")
    code = "import sys; from diffaug_datasets.run.store import Run\nrun = Run(sys.argv[1]); run.sweep()\n"
    code += "print(run.held('synthetic-00000'), run.leases.machine)"
    with run.lease(FIRST) as mine:
        assert mine
        line = unshared([sys.executable, "-c", code, str(run.folder)])
        out = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "True" and out[1] != files.machine()
    assert ours.read_bytes() == b"half"


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def client(folder: Path, name: str, clock: Clock) -> Leases:
    return Leases(FolderPlace(folder), ttl=30.0, now=clock, machine=name, host=name)


def take(leases: Leases) -> str | None:
    found = leases._run(leases.taking("unit"))
    return found.key if found else None


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_an_hour_apart_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    clock = Clock()
    a, b = client(tmp_path, "a", clock), client(tmp_path, "b", clock)
    assert take(a) == "leases/unit/000001"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    os.utime(tmp_path / "leases" / "unit" / "000001", (0, real() - hours * 3600))
    for seconds in (0, 29, 30):
        clock.time = seconds
        assert take(b) is None, "held: seen for no longer than its TTL"
    a._run(a.beating(a.held["unit"]))
    for seconds in (31, 60, 61):
        clock.time = seconds
        assert take(b) is None, "its holder gave a sign"
    clock.time = 61.1
    assert take(b) == "leases/unit/000002"
    assert not a.is_current(a.held["unit"]) and b.is_current(b.held["unit"])


def test_a_holder_of_this_machine_that_ended_is_replaced_at_once(tmp_path: Path) -> None:
    code = "import sys, os; from diffaug_datasets.run.leases import Leases; from diffaug_datasets.run.place import *\n"
    code += "with Leases(FolderPlace(Path(sys.argv[1]))).hold('unit'): os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    with lease(tmp_path, "unit") as mine:
        assert mine
        assert (tmp_path / "leases" / "unit" / "000002").exists()
        with Leases(FolderPlace(tmp_path)).hold("unit") as second:
            assert second is None, "this process lives"


def test_a_failed_unit_is_free_at_once(tmp_path: Path) -> None:
    clock = Clock()
    a, b = client(tmp_path, "a", clock), client(tmp_path, "b", clock)
    with pytest.raises(ZeroDivisionError), a.hold("unit"):
        raise ZeroDivisionError
    assert (tmp_path / "leases" / "unit" / "000001").read_bytes() == FREE and take(b) == "leases/unit/000002"


def test_what_a_file_system_leaves_beside_a_lease_is_none(tmp_path: Path) -> None:
    FolderPlace(tmp_path).put("leases/unit/Thumbs.db", b"?")
    assert take(client(tmp_path, "a", Clock())) == "leases/unit/000001"
    assert take(client(tmp_path, "b", Clock())) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"holder": 1}', b"\xff" * 512, b"[" * 5000])
def test_a_torn_lease_counts_as_held_until_its_time_is_over(tmp_path: Path, content: bytes) -> None:
    place, clock = FolderPlace(tmp_path), Clock()
    place.put("leases/unit/000001", content)
    b = client(tmp_path, "b", clock)
    assert read_holder(content) is None and take(b) is None and all_holders(place) == {}
    clock.time = 30.1
    assert take(b) == "leases/unit/000002"


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_a_ttl_that_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DIFFAUG_LEASE_SECONDS", text)
    with pytest.raises(RunError, match="expected seconds from"):
        Leases(FolderPlace(tmp_path))


def test_other_bytes_of_a_finished_unit_are_an_error_that_names_both(run_place: str) -> None:
    run = Run.open(run_place)

    def commit(text: str, worker: str) -> bool:
        path = run.folder / "shards" / f"{FIRST}.arrow"
        done = files.write_once(path, lambda temporary: temporary.write_text(text))
        return run.write_receipt(Receipt(plan_id=run.plan.id, unit=FIRST, files=(done,), worker=worker))

    assert commit("one", "host-a:1:0") and not commit("one", "host-b:2:0"), "equal bytes are no error"
    with pytest.raises(
        RunError, match=r"other bytes: \w{16} by host-a:1:0 .*; now \w{16} by host-c:3:0 .*first one stays"
    ):
        commit("two", "host-c:3:0")
    assert maker(run_place, FIRST) == "host-a:1:0" and Run.open(run_place).intact(FIRST)
    there = place_of(run_place).get(f"shards/{FIRST}.arrow")
    assert there == b"one"


def test_a_damaged_unit_may_be_committed_again(run_place: str) -> None:
    run = Run.open(run_place)
    path = run.folder / "shards" / f"{FIRST}.arrow"
    done = files.write_once(path, lambda temporary: temporary.write_text("one"))
    run.write_receipt(Receipt(plan_id=run.plan.id, unit=FIRST, files=(done,), worker="a"))
    path.unlink()
    run.place.delete(f"shards/{FIRST}.arrow")
    run = Run.open(run_place)
    run.make_way(FIRST)
    done = files.write_once(path, lambda temporary: temporary.write_text("two"))
    assert run.write_receipt(Receipt(plan_id=run.plan.id, unit=FIRST, files=(done,), worker="b"))
    assert maker(run_place, FIRST) == "b" and Run.open(run_place)._damaged(run.receipt(FIRST)) == []  # type: ignore[arg-type]


def test_keys_and_addresses(store: str) -> None:
    with pytest.raises(RunError, match="keys come from the environment") as told:
        ObjectPlace("s3://me:hidden@bucket/run")
    assert "hidden" not in str(told.value)
    with pytest.raises(RunError, match="no such bucket"):
        ObjectPlace("s3://nowhere/run", seconds=0.5).create("x", b"x")
    assert ObjectPlace("s3:/shelf/run/").shown == "s3://shelf/run"

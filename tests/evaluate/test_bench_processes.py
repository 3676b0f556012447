"""A bench of a config name by several processes, or by processes that die: the same images, cells and table."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from diffaug_datasets.cli.judge import run_bench
from diffaug_datasets.evaluate.bench import bench
from diffaug_datasets.evaluate.runs import Doing
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.models.encoders import Encoder

pytestmark = pytest.mark.full

SPEC = Bench.from_dict(
    {
        "sets": ["fashion_5shot_genie"],
        "draws": 1,
        "changes": {"per_class": 1, "config": {"num_inference_steps": 2}, "shard_rows": 4, "batch_size": 4},
        "controls": ["real", "duplicate", "txt2img"],
        "classifiers": ["class_mean"],
        "more_real": [1],
    }
)
POINTS = 20


def work(folder: Path, die_at: int | None = None) -> None:
    """A bench in a process of its own, which dies before its n-th finished file."""
    import torch

    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder.parent / f"{folder.name}-cache")
    replace, seen = os.replace, iter(range(1, 10_000))

    def counting(origin, target, **options) -> None:
        if next(seen) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(origin, target, **options)

    os.replace = counting
    bench(SPEC, [Encoder.load("tiny")], folder, doing=Doing(runs=folder / "none"), poll=0.05)


def started(*arguments: object) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def table_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the command line writes of a bench that lacks nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "unused"))
    monkeypatch.chdir(folder.parent)
    assert run_bench(SPEC, folder, device="cpu", workers=1, minutes=None, as_json=False) == 0
    assert not list((folder.parent / "unused").rglob("*.parquet"))  # no feature was left to be made
    return (folder / "table.csv").read_bytes()


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    child = started(tmp_path / "whole")
    child.join()
    assert child.exitcode == 0
    return table_of(tmp_path / "whole", monkeypatch)


def test_eight_processes_make_the_table_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    children = [started(tmp_path / "eight") for _ in range(8)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == 8 * [0]
    assert table_of(tmp_path / "eight", monkeypatch) == whole


def test_a_bench_that_is_killed_at_twenty_points_makes_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes
) -> None:
    ends = []
    for die_at in (1, 3, 2, 5, 4, 7, 6, 9, 8, 2, 3, 4, 5, 2, 3, 4, 1, 1, 1, 1):
        child = started(tmp_path / "killed", die_at)
        child.join()
        ends.append(child.exitcode)
    assert len(ends) == POINTS and set(ends) <= {-signal.SIGKILL, 0}
    assert ends.count(-signal.SIGKILL) >= POINTS // 2
    child = started(tmp_path / "killed")
    child.join()
    assert child.exitcode == 0
    assert table_of(tmp_path / "killed", monkeypatch) == whole

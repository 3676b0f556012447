"""kill -9 at any moment, run again: the same bytes, at most one unit redone."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from kills import KillAt, Planned, finish, kill_at_random, start, start_command, started
from small_runs import digests, small_recipe, small_run

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.planning.prepare import prepare, write_run

pytestmark = pytest.mark.xdist_group("kill")  # one process measures the uninterrupted run for all

# Shown by every failure of this file: `KILL_SEED=<that number>` repeats it.
SEED = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)

# Both kinds of fit, three shards and a filter that drops rows, in a second or two.
QUICK: dict[str, Any] = {
    "per_class": 1,
    "shard_rows": 4,
    "config": {"num_inference_steps": 3, "inversion_steps": 2, "concepts": {"steps": 4}},
    "filters": [{"column": "clip_margin", "minimum": 0.2}],
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("kill") / "run"
    small_run(folder, "diffii", **QUICK)
    return Planned.measure(folder)


@pytest.mark.full  # beside a kill in each window
@pytest.mark.timeout(600)
def test_seventeen_random_kills(planned: Planned) -> None:
    assert kill_at_random(planned, 17, SEED) >= 8, f"KILL_SEED={SEED}"


@pytest.mark.full
@pytest.mark.timeout(600)
def test_three_random_kills_on_the_command_line(planned: Planned) -> None:
    folder = planned.copy("timed")
    begin = time.monotonic()
    assert start_command(folder).wait() == 0
    timed = Planned(planned.folder, planned.expected, time.monotonic() - begin)
    assert digests(folder) == planned.expected
    assert kill_at_random(timed, 3, SEED, command=True) >= 1


WINDOWS = [
    "fit: 3",
    "fit: 4",
    "replace: learned_embeds.safetensors",
    "replace: pytorch_lora_weights.safetensors",
    "replace: inversions.safetensors",
    "batch: synthetic-00001",
    "replace: synthetic-00001.arrow",
    "replace: synthetic-00001.json",
    "replace: quality.parquet",
    "replace: selection.parquet",
    "replace: selection.json",
    "replace: synthetic-00000-",
    "replace: run.json",
]
LIKE_OTHERS = ("replace: quality.parquet", "replace: selection.parquet", "replace: selection.json", "fit: 4")
LIKE_OTHERS += ("replace: learned_embeds.safetensors", "replace: pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    "window", [pytest.param(one, marks=pytest.mark.full) if one in LIKE_OTHERS else one for one in WINDOWS]
)
def test_a_kill_in_each_window(planned: Planned, window: str) -> None:
    folder = planned.copy("window-" + window.replace(" ", "-").replace(":", ""))
    child = start(folder, KillAt(window))
    child.join()
    assert child.exitcode == -9, f"no point is called {window!r}"
    planned.check(folder)


def test_a_flipped_byte_is_found_and_its_shard_redone(planned: Planned) -> None:
    folder = planned.copy("flipped")
    finish(folder)
    shard = folder / "shards" / "synthetic-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    finish(folder)
    assert digests(folder) == planned.expected
    assert started(folder).count("synthetic-00001") == 2
    assert len(started(folder)) == len(set(started(folder))) + 1


def test_a_flipped_byte_in_a_fit_is_found_and_the_fit_redone(planned: Planned) -> None:
    folder = planned.copy("flipped-fit")
    finish(folder)
    [fit] = (folder / "fits").glob("concepts-*/learned_embeds.safetensors")
    data = bytearray(fit.read_bytes())
    data[-1] ^= 1
    fit.write_bytes(bytes(data))
    finish(folder)
    assert digests(folder) == planned.expected


def test_two_processes_never_make_a_row_twice(planned: Planned) -> None:
    folder = planned.copy("two")
    children = [start(folder), start(folder)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert digests(folder) == planned.expected
    assert len(started(folder)) == len(set(started(folder)))


def test_a_changed_recipe_is_refused_with_what_differs(planned: Planned) -> None:
    changed = prepare(small_recipe("diffii", **{**QUICK, "per_class": 3, "seed": 7}))
    with pytest.raises(PlanError) as refusal:
        write_run(changed, planned.folder)
    assert "recipe.per_class: 1 -> 3" in str(refusal.value)
    assert "recipe.seed: 0 -> 7" in str(refusal.value)


def test_the_same_recipe_may_plan_again(planned: Planned) -> None:
    folder: Path = planned.copy("again")
    small_run(folder, "diffii", **QUICK)
    finish(folder)
    assert digests(folder) == planned.expected

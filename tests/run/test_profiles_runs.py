"""Whole runs in the profiles: made alike twice, close to exact, one shard's end beside the next one's beginning."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import digests, small_run

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.rows import Row
from diffaug_datasets.run import worker
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.looking import AtOnce, OneByOne
from diffaug_datasets.run.rebuild import MOST_LEVELS_HERE, Closeness, rebuild_row
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.work import shard_evaluations
from diffaug_datasets.run.worker import WorkerOptions

pytestmark = pytest.mark.xdist_group("profiles_runs")
SLOW = 0.03  # seconds an image


def made(folder: Path, profile: str | Mapping[str, Any], slug: str = "realmix", **changes: Any) -> Run:
    run = small_run(folder, slug, profile=profile, shard_rows=6, **changes)
    execute(run, WorkerOptions(), workers=1)
    return Run.open(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same rows in exact, and twice in fast, the second time with an encoder that is slow."""
    folder = tmp_path_factory.mktemp("profiles")
    found = {"exact": made(folder / "exact", "exact"), "fast": made(folder / "fast", "fast")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "made_rows", slowly)
        found["slow"] = made(folder / "slow", "fast")
    return found


encode = worker.made_rows


def slowly(made: Sequence[Any], *rest: Any) -> list[Row]:
    time.sleep(SLOW * len(made))
    return encode(made, *rest)


def pictures(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    tables = [run.table(shard) for shard in run.plan.shards()]
    columns = [row for table in tables for row in table.select(["row_id", "image"]).to_pylist()]
    return {row["row_id"]: np.asarray(decode_image(row["image"]["bytes"])).astype(int) for row in columns}


def test_a_second_run_is_bit_equal(runs: dict[str, Run]) -> None:
    assert digests(runs["fast"].folder) == digests(runs["slow"].folder)


def test_fast_is_exact_within_one_grey_level(runs: dict[str, Run]) -> None:
    exact, fast = pictures(runs["exact"]), pictures(runs["fast"])
    assert exact.keys() == fast.keys()
    assert max(np.abs(exact[key] - fast[key]).max() for key in exact) <= 1


def test_the_profile_is_part_of_plan_and_stack(runs: dict[str, Run]) -> None:
    exact, fast = runs["exact"], runs["fast"]
    assert exact.plan.id != fast.plan.id
    assert "profile" not in exact.plan.header.recipe
    assert fast.plan.header.recipe["profile"] == {"name": "fast"}
    assert (exact.recipe.image_format, fast.recipe.image_format) == ("png", "webp")
    stacks = [run.receipt(shard.name).stack for run in (exact, fast) for shard in run.plan.shards()]
    assert {stack.get("profile") for stack in stacks} == {None, "fast"}
    assert {"kernels" in stack for stack in stacks} == {True, False}


def test_the_next_shard_begins_while_the_last_is_encoded(runs: dict[str, Run]) -> None:
    """Where every image takes the encoder 30 ms, a shard is begun before the one before it is written."""
    lines = (runs["slow"].folder / "events.jsonl").read_text("utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if str(event.get("unit", "")).startswith("synthetic")]
    names = [(event["event"], event["unit"]) for event in events]
    shards = [shard.name for shard in runs["slow"].plan.shards()]
    for last, following in pairwise(shards):
        assert names.index(("start", following)) < names.index(("done", last))


def test_regen_states_a_tolerance(runs: dict[str, Run]) -> None:
    made, closeness = rebuild_row(runs["fast"], runs["fast"].plan.rows[3].row_id)
    assert made.equal
    assert str(closeness).endswith("; profile fast states at most 1 grey level")
    off = {"row_id": "a", "equal": False, "stored": "", "made": "", "mean": 0.001, "profile": "fast"}
    assert Closeness(**off, largest=MOST_LEVELS_HERE).is_good
    assert not Closeness(**off, largest=MOST_LEVELS_HERE + 1).is_good
    assert not Closeness(**{**off, "profile": ""}, largest=1).is_good


def test_turbo_evaluates_what_was_planned(tmp_path: Path) -> None:
    run = made(tmp_path / "turbo", {"name": "turbo", "interval": 2}, "txt2img", batch_size=4)
    receipts = [run.receipt(shard.name) for shard in run.plan.shards()]
    planned = [computed for computed, _ in shard_evaluations(run.recipe, run.plan).values()]
    assert [receipt.evaluations for receipt in receipts] == planned
    assert [receipt.measured["evaluations_skipped"] for receipt in receipts] == planned  # two steps of four


def test_turbo_refuses_methods_whose_steps_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"turbo leaves out steps, and .* does not sample each image once"):
        small_run(tmp_path / "run", "genieada", profile="turbo")


def test_all_images_at_once_are_seen_as_one_by_one() -> None:
    import torch

    from diffaug_datasets.core.method import Generated

    given = torch.Generator().manual_seed(0)
    fine, odd, flat = torch.rand(4, 5, 3, generator=given), torch.rand(4, 5, 3), torch.full((4, 5, 3), 0.5)
    odd[1, 1, 1] = float("nan")
    images = [Generated(fine), Generated(odd), Generated(flat), Generated(fine, lacking="no face")]
    for some in (images, [*images[:2], Generated(torch.rand(6, 5, 3)), Generated((fine * 255).to(torch.uint8))]):
        one, other = OneByOne(some), AtOnce(some)
        there = [at for at, image in enumerate(some) if not image.lacking]
        assert [one.flaw(at) for at in range(len(some))] == [other.flaw(at) for at in range(len(some))]
        assert all(np.array_equal(one.pixels(at), other.pixels(at)) for at in there)


def test_shards_hold_rows_of_like_work(runs: dict[str, Run]) -> None:
    starts = [[row.start_step for row in shard.rows] for shard in runs["fast"].plan.shards()]
    flat = [start for shard in starts for start in shard]
    assert flat == sorted(flat)
    assert [row.row_id for row in runs["fast"].plan.rows] == sorted(row.row_id for row in runs["fast"].plan.rows)

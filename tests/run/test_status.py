"""`status` from anywhere: who holds what, who is silent, who is late, and when it is done; `--watch` and `--json`."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from command_line import Command
from small_runs import small_recipe

from diffaug_datasets.core.files import write_once
from diffaug_datasets.core.rows import FailedRow
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.run.leases import Leases
from diffaug_datasets.run.store import Receipt, Run


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows in three shards."""
    return price_plan(small_recipe("txt2img"), tmp_path_factory.mktemp("status") / "run").write().folder


@pytest.fixture
def run(planned: Path, tmp_path: Path) -> Run:
    """One shard is done, in 4 s; two are held, on other machines: one for a minute, one without a sign for an hour."""
    run = Run.open(shutil.copytree(planned, tmp_path / "run"))
    path = run.folder / "shards" / "synthetic-00000.arrow"
    done = write_once(path, lambda temporary: temporary.write_text("x"))
    rows = len(run.plan.shards()[0].rows)
    run.write_receipt(Receipt(plan_id=run.plan.id, unit="synthetic-00000", files=(done,), rows=rows, seconds=4.0))
    for name, unit, beats in (("north", "synthetic-00001", 6), ("south", "synthetic-00002", 1)):
        leases = Leases(run.place, ttl=30.0, machine=name, host=name)
        lease = leases._run(leases.taking(unit))
        assert lease
        for _ in range(beats):
            leases._run(leases.beating(lease))
    hour = time.time() - 3600
    os.utime(run.folder / "leases" / "synthetic-00002" / "000001", (hour, hour))
    return run


def test_status_says_who_works_for_how_long(diffaug: Command, run: Run) -> None:
    said = diffaug("status", run.folder)
    lines = [line.replace("1:00:01", "1:00:00") for line in said.out.splitlines() if " on " in line]  # slow machines
    pid = os.getpid()
    assert lines == [
        f"    synthetic-00001 on north (process {pid}) for 1:00, far longer than others took",
        f"    synthetic-00002 on south (process {pid}) for 0:10, no sign for 1:00:00",
    ]
    assert ": running" in said.out and "1 of 3" in said.out and "8 written" in said.out
    assert "2.0 per second and worker, ETA 0:06" in said.out, "12 images, one worker that gives a sign, 2 a second"


def test_status_as_json(diffaug: Command, run: Run) -> None:
    state = json.loads(diffaug("status", run.folder, "--json").out)
    assert state["held"] == ["synthetic-00001", "synthetic-00002"] and state["seconds_left"] == 6.0
    assert [(one["host"], one["seconds"], one["is_late"], one["is_silent"]) for one in state["work"]] == [
        ("north", 60.0, True, False),
        ("south", 10.0, False, True),
    ]


def test_failures_are_counted_by_reason(diffaug: Command, planned: Path, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(planned, tmp_path / "run"))
    done = write_once(run.folder / "shards" / "synthetic-00000.arrow", lambda temporary: temporary.write_text("x"))
    why = ("constant image", "not finite", "constant image")
    failed = tuple(
        FailedRow(row_id=row.row_id, attempts=3, reason=reason)
        for row, reason in zip(run.plan.shards()[0].rows, why, strict=False)
    )
    run.write_receipt(Receipt(plan_id=run.plan.id, unit="synthetic-00000", files=(done,), rows=5, failed=failed))
    assert json.loads(diffaug("status", run.folder, "--json").out)["reasons"] == {"constant image": 2, "not finite": 1}
    said = diffaug("status", run.folder).out
    assert "images   5 written, 3 failed, of 20" in said
    assert "failed 2 times: constant image\n  failed 1 time: not finite\n" in said


def test_watching_ends_with_the_run(diffaug: Command, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on a terminal it says only what is new."""
    from diffaug_datasets.cli import look

    looks: list[int] = []
    real = look.status

    def status(run: Run) -> object:
        looks.append(1)
        state = real(run)
        return look.replace(state, finished=len(looks) == 4, work=state.work if len(looks) < 3 else ())

    monkeypatch.setattr(look, "status", status)
    said = diffaug("status", run.folder, "--watch", "--every", "0.1")
    assert said.code == 0 and len(looks) == 4
    assert [line.rpartition(": ")[2] for line in said.out.splitlines() if "plan " in line and ": " in line] == [
        "running",
        "not finished",
        "finished",
    ]


def test_while_fits_are_learned_their_end_is_estimated(diffaug: Command, tmp_path: Path) -> None:
    """By those that are done: two of one kind in 4 s and 8 s, none of the other; somebody works on the third."""
    run = price_plan(small_recipe("diffii"), tmp_path / "run").write()
    names = [unit.name for unit in run.plan.fits]
    assert json.loads(diffaug("status", run.folder, "--json").out)["fits_seconds_left"] is None, "nothing is known yet"
    alike = [name for name in names if name.startswith("inversions")]
    for name, seconds in zip(alike[:2], (4.0, 8.0), strict=True):
        path = run.fit_folder(name) / "x"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = write_once(path, lambda temporary: temporary.write_text("x"))
        run.write_receipt(Receipt(plan_id=run.plan.id, unit=name, files=(done,), seconds=seconds))
    leases = Leases(run.place, ttl=30.0, machine="north", host="north")
    assert leases._run(leases.taking(names[0] if names[0] not in alike[:2] else names[-1]))
    left = 6.0 * (len(names) - 2)
    state = json.loads(diffaug("status", run.folder, "--json").out)
    assert (state["fits_done"], state["fits_seconds_left"], state["seconds_left"]) == (2, left, None)
    assert f"  fits     2 of {len(names)}, ETA 0:{left:02.0f}" in diffaug("status", run.folder).out

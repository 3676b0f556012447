"""The same bytes for any number of workers and any engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import digests, mixed_start_run, small_run

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = mixed_start_run(tmp_path_factory.mktemp("one") / "run")
    execute(run, WorkerOptions(), workers=1)
    return digests(run.folder)


def test_batches_mix_start_steps_and_the_last_is_ragged(tmp_path: Path) -> None:
    run = mixed_start_run(tmp_path / "run")
    batches = [batch for shard in run.plan.shards() for batch in shard.batches(3)]
    assert any(len({row.start_step for row in batch if row}) > 1 for batch in batches)
    assert any(len(batch) < 3 for batch in batches)


@pytest.mark.full  # two of them, of each kind: `test_contract`, and below
@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, reference: dict[str, str], workers: int) -> None:
    run = mixed_start_run(tmp_path / "run")
    execute(run, WorkerOptions(), workers=workers)
    assert digests(run.folder) == reference
    assert_no_row_was_made_twice(run)


def test_accelerate_makes_the_same_bytes(tmp_path: Path, reference: dict[str, str]) -> None:
    run = mixed_start_run(tmp_path / "run")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no", "-m", "diffaug_datasets"]
    alone = ["--device", "cpu", "--workers", "1"]  # with `--cpu` accelerate starts one process, which would fail below
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, *launch, *plain, "generate", str(run.folder), *alone],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert digests(run.folder) == reference
    assert_no_row_was_made_twice(run)
    assert len({json.loads(line)["pid"] for line in events(run)}) == 2


def assert_no_row_was_made_twice(run: Run) -> None:
    started = [e["unit"] for e in map(json.loads, events(run)) if e["event"] == "start"]
    assert sorted(started) == sorted(s.name for s in run.plan.shards())


def events(run: Run) -> list[str]:
    return (run.folder / "events.jsonl").read_text().splitlines()


def test_environment_threads_do_not_change_the_bytes(tmp_path: Path, reference: dict[str, str]) -> None:
    run = mixed_start_run(tmp_path / "run")
    lines = [
        "from diffaug_datasets.run.execute import execute",
        "from diffaug_datasets.run.store import Run",
        "from diffaug_datasets.run.worker import WorkerOptions",
        f"execute(Run.open({str(run.folder)!r}), WorkerOptions(), 1)",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env=environment, timeout=240)
    assert digests(run.folder) == reference


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img")
    execute(run, WorkerOptions(), workers=1)
    before = {p: p.stat().st_mtime_ns for p in (run.folder / "shards").iterdir()}
    execute(Run.open(run.folder), WorkerOptions(), workers=1)
    assert {p: p.stat().st_mtime_ns for p in (run.folder / "shards").iterdir()} == before
    with pytest.raises(DiffAugError, match=r"no plan\.json here"):  # what was mistyped is said all the same
        execute(Run.open(run.folder), WorkerOptions(fits_from=(tmp_path / "nowhere",)), workers=1)

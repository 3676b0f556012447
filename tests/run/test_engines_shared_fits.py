"""`diffaug fit --split-batches` under a real `accelerate launch`: two processes at half a batch are one at a whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command
from safetensors.torch import load_file
from small_runs import CONCEPTS, small_run

from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.worker import WorkerOptions

# accelerate's `--cpu` starts one process unless it finds mpirun; this starts two, whatever they compute on.
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
PLAIN = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "diffaug_datasets")


def launched(home: Path, *words: object) -> str:
    """What two processes of one launch print."""
    line = [sys.executable, *LAUNCH, *PLAIN, *map(str, words), "--device", "cpu"]
    environment = {**os.environ, "HF_HOME": str(home / "hf")}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(run: Run) -> list[float]:
    """Of every step, in full precision: from the checkpoint that lies beside the fit."""
    [checkpoint] = (run.folder / "fits").glob("concepts-*/concept-checkpoint/*.safetensors")
    return [float(loss) for loss in load_file(checkpoint)["losses"]]


def receipt(run: Run) -> Receipt:
    """Of the concept fit."""
    [unit] = [unit for unit in run.plan.fits if unit.kind == "concepts"]
    found = run.receipt(unit.name)
    assert found is not None
    return found


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_processes_at_half_a_batch_are_one_at_the_whole(tmp_path: Path) -> None:
    config = {"concepts": {**CONCEPTS, "steps": 20, "checkpoint_every": 7}}
    one, two = (small_run(tmp_path / name, "diffii", config=config) for name in ("one", "two"))
    execute(one, WorkerOptions(only_fits=True), workers=1)
    said = launched(tmp_path, "fit", two.folder, "--split-batches")
    assert said.count("fits, for 20 images later") == said.count("all fits are there") == 1
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert receipt(two).evaluations == receipt(one).evaluations == 20 * 4
    assert receipt(two).stack == {**receipt(one).stack, "processes": "2"}
    events = [json.loads(line) for line in (two.folder / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "fit"]
    assert steps == list(range(1, 21))
    before = receipt(two)
    assert "all fits are there" in launched(tmp_path, "fit", two.folder, "--split-batches")  # nothing is made again
    assert receipt(two) == before
    done = execute(Run.open(two.folder), WorkerOptions(), workers=1)  # one process goes on from there
    assert done is not None and (done.tier, len(done.stacks)) == ("T2", 2)


def test_alone_there_is_nobody_to_share_with(diffaug: Command, tmp_path: Path) -> None:
    small_run(tmp_path / "run", "diffii")
    said = diffaug("fit", tmp_path / "run", "--split-batches")
    assert said.sentence.startswith("--split-batches: this process is alone; run it under `accelerate launch`")
    assert not (tmp_path / "run" / "fits").exists()

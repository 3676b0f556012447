"""Workers as processes of their own: whoever starts them, how they end, and on which device they work."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command
from small_runs import small_run

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.engines import local
from diffaug_datasets.run.execute import default_workers, execute, resolve_device
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

SCRIPT = """
from diffaug_datasets import load_builder
small = {"per_class": 1, "shard_rows": 5, "include_test": False, "config": {"num_inference_steps": 2}}
builder = load_builder("fashion_2shot_img2img", workers=2, run_dir="run", **small)
builder.download_and_prepare()
print("rows", len(builder.as_dataset(split="train")), "workers", len({r.worker for r in map(builder.run.receipt,
    [s.name for s in builder.run.plan.shards()])}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plan of twenty rows in three shards."""
    return small_run(tmp_path_factory.mktemp("processes") / "run", "txt2img")


@pytest.mark.parametrize("way", [pytest.param("standard input", marks=pytest.mark.full), "a file without a guard"])
def test_several_workers_from_any_script(tmp_path: Path, way: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    word = "-" if way == "standard input" else "script.py"
    with (tmp_path / "script.py").open() as script:
        line, stdin = [sys.executable, word], script if word == "-" else subprocess.DEVNULL
        done = subprocess.run(line, cwd=tmp_path, stdin=stdin, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rows 30 workers ")
    assert "10/10 images" in done.stderr and "Traceback" not in done.stderr


Stand = Callable[[str], None]


@pytest.fixture
def stand_in(tmp_path: Path) -> Stand:
    """`stand_in(script)`: bash is started instead of Python; `$number` is the worker's."""
    before = local.interpreter()

    def named(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/bash\nnumber=$(grep -o \'"number": [0-9]*\' <<<"$7" | grep -o "[0-9]*$")\n{script}\n')
        path.chmod(0o755)
        multiprocessing.set_executable(str(path))

    yield named
    multiprocessing.set_executable(before)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo noise; echo 'diffaug: the same reason.' >&2; exit 2", "^the same reason.$"),
        ("echo diffaug: reason $number.; exit 2", "^all 2 workers failed: reason 0. reason 1.$"),
        ("kill -9 $$", r"^a worker was killed \(SIGKILL, exit code -9\), probably because memory ran out; give fewer"),
        ("exit 137", r"SIGKILL, exit code 137\), .* smaller batch_size"),
        ("kill -SEGV $$", r"^a worker was ended by signal 11 \(Segmentation fault\)"),
        ("printf 'TypeError: ours'; exit 1", r"^a worker ended with exit code 1 \(TypeError: ours\)"),
    ],
)
def test_why_workers_failed_is_said_once(
    run: Run, stand_in: Stand, script: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(script)
    with pytest.raises(RunError, match=said):
        local.work_in_processes(run, WorkerOptions(), 2, lambda: None)
    printed = capsys.readouterr().err
    assert printed.count("noise") == 2 * ("noise" in script) and "diffaug:" not in printed


def test_a_worker_that_dies_stops_no_other(run: Run, stand_in: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand_in("[ $number = 1 ] && kill -9 $$; exit 0")
    assert local.work_in_processes(run, WorkerOptions(), 2, lambda: None) is None
    assert "probably because memory ran out" in caplog.text and "The other workers made what it left." in caplog.text


def test_a_worker_imports_from_where_its_parent_does(
    run: Run, stand_in: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "methods"), *sys.path])
    stand_in('echo "path $PYTHONPATH"')
    local.work_in_processes(run, WorkerOptions(), 2, lambda: None)
    assert f"path {Path.cwd()}:{tmp_path / 'methods'}:" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")])
def test_out_of_memory_is_a_sentence(
    diffaug: Command, run: Run, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(local, "work_for_parent", exhausted)
    assert diffaug("worker", run.folder, "0", "{}").sentence.startswith("memory ran out; give fewer --workers")


PARENT = """
import os, subprocess, sys, time
pipe = os.pipe()
child = "import sys; from diffaug_datasets.run.engines import local; local.die_with_parent(int(sys.argv[1]))"
print(subprocess.Popen([sys.executable, "-c", child, str(pipe[0])], pass_fds=pipe[:1]).pid, flush=True)
time.sleep(60)
"""


def test_a_worker_whose_parent_was_killed_stops() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
        end = time.monotonic() + 60
        while is_alive(child):
            assert time.monotonic() < end, "the worker outlives its parent"
            time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one whose new parent does not look at it yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
def test_a_frozen_program_takes_one_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_workers(run, WorkerOptions()) == 3
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert default_workers(run, WorkerOptions()) == 1
    with pytest.raises(RunError, match="this program has no Python interpreter to start them"):
        local.work_in_processes(run, WorkerOptions(), 2, lambda: None)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


@pytest.mark.usefixtures("eight_gpus")
def test_workers_take_all_gpus_in_turn_or_the_named_one(run: Run) -> None:
    def devices(device: str) -> list[str]:
        return [local.device_of(WorkerOptions(device), number).device for number in range(9)]

    assert devices("cuda") == [f"cuda:{i}" for i in (*range(8), 0)]
    assert set(devices("cuda:5")) == {"cuda:5"} and set(devices("cpu")) == {"cpu"}
    assert resolve_device("cuda:7") == "cuda:7" and resolve_device("auto") == "cuda"
    with pytest.raises(RunError, match=r"--device cuda:8: torch sees 8 GPUs here, cuda:0 to cuda:7"):
        resolve_device("cuda:8")


@pytest.mark.usefixtures("eight_gpus", "eight_cores")
@pytest.mark.parametrize(("device", "workers"), [("cuda", 3), ("cuda:5", 1), ("cpu", 3)])
def test_workers_are_never_more_than_shards(run: Run, device: str, workers: int) -> None:
    assert len(run.plan.shards()) == 3
    assert default_workers(run, WorkerOptions(device)) == workers
    assert default_workers(run, WorkerOptions(device, only_fits=True)) == 1


def test_a_worker_asks_for_its_own_gpu_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for a GPU without a number then gets this one."""
    import torch

    from diffaug_datasets.run.worker import Worker

    asked: list[str] = []

    def note(device: str) -> None:
        asked.append(device)
        raise RunError("seen")

    monkeypatch.setattr(torch.cuda, "set_device", note)
    with pytest.raises(RunError, match="seen"):
        Worker(run, WorkerOptions("cuda:5")).work()
    assert asked == ["cuda:5"]


def test_a_finished_run_answers_before_torch_is_imported(shell: Command, tmp_path: Path) -> None:
    small = {"per_class": 1, "config": {"num_inference_steps": 2}}
    run = small_run(tmp_path / "run", "img2img", **small)
    execute(run, WorkerOptions(), workers=1)
    code = (
        "import sys, hiding\nhiding.hide(*hiding.GENERATING)\nfrom diffaug_datasets.cli import main\n"
        "from diffaug_datasets.train.builder import RunBuilder\nfrom diffaug_datasets import Run\n"
        "builder = RunBuilder(Run.open(sys.argv[1]))\nbuilder.download_and_prepare()\n"
        "print(builder.as_dataset(split='train').num_rows)\n"
        "try: main(['generate', sys.argv[1], '--device', 'cuda'])\nfinally: assert 'torch' not in sys.modules"
    )
    said = shell(sys.executable, "-c", code, run.folder)
    assert said.code == 0, said.err
    assert said.out.startswith("30\n") and "10 images written, 0 failed, 10 kept" in said.out

"""Workers under a real Slurm: what is submitted, and the same bytes whatever happens to tasks and nodes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_line import Command
from object_stores import BUCKET, object_store
from slurm_nodes import SlurmNodes, end_what_is_left, slurm_nodes, wait_until
from small_runs import digests, small_recipe, small_run

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.run.engines import slurm as engine
from diffaug_datasets.run.engines import slurm_task
from diffaug_datasets.run.engines.slurm import Job, Slurm, asked, minutes_of
from diffaug_datasets.run.engines.slurm_task import Leaving, Notice, _leave
from diffaug_datasets.run.execute import await_job, execute, submit
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

pytestmark = pytest.mark.xdist_group("slurm")  # one Slurm for all
MEMORY = {"mem": "1500M"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmNodes]:
    with slurm_nodes() as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", nodes.environment["SLURM_CONF"])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")])))
        patch.setattr(engine, "QUEUE_SECONDS", 0.5)
        yield nodes


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A planned run of 3 shards, and what it holds where one process made it."""
    return _planned(tmp_path_factory.mktemp("short"), shard_rows=8)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The same with 20 shards that take a while."""
    return _planned(tmp_path_factory.mktemp("many"), per_class=8, shard_rows=4, config={"num_inference_steps": 30})


def _planned(folder: Path, **changes: object) -> tuple[Path, dict[str, str]]:
    run = small_run(folder / "planned", "txt2img", **changes)
    shutil.copytree(run.folder, folder / "here")
    execute(Run.open(folder / "here"), WorkerOptions(), workers=1)
    return run.folder, digests(folder / "here")


def test_an_array_of_two_tasks_makes_the_same_bytes(
    slurm: SlurmNodes, short: tuple[Path, dict[str, str]], tmp_path: Path, diffaug: Command
) -> None:
    planned, expected = short
    folder = Path(shutil.copytree(planned, tmp_path / "run"))
    said = diffaug("generate", folder, "--engine", "slurm", "--workers", 2, "--slurm", "mem=1500M", "--time", "0:10:00")
    assert said.code == 0, said
    [number] = re.findall(r"^job (\d+): 2 workers, logs in .*slurm$", said.out, re.M)
    assert f"how far it is: diffaug status {folder}; to end it: scancel {number}\n" in said.out
    assert slurm.field(f"{number}_1", "TimeLimit") == "00:10:00"
    await_job(Run.open(folder), Job(number, 2, folder / "slurm"))
    assert digests(folder) == expected
    started = [event["unit"] for event in _events(folder) if event["event"] == "start"]
    assert sorted(started) == ["synthetic-00000", "synthetic-00001", "synthetic-00002"]
    assert (folder / "slurm").stat().st_mode & 0o77 == 0
    assert all(path.stat().st_size < 1000 for path in (folder / "slurm").glob("*.pkl")), "more than names is pickled"


def test_what_sbatch_refuses_is_a_sentence_and_leaves_nothing(
    slurm: SlurmNodes, short: tuple[Path, dict[str, str]], tmp_path: Path, diffaug: Command
) -> None:
    folder = Path(shutil.copytree(short[0], tmp_path / "run"))
    said = diffaug("generate", folder, "--engine", "slurm", "--workers", 2, "--slurm", "partition=nowhere")
    assert said.sentence.startswith("--engine slurm: sbatch refused: invalid partition specified: nowhere;")
    assert not list((folder / "slurm").iterdir())


def _events(folder: Path) -> list[dict[str, object]]:
    try:
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _submitted(planned: Path, folder: Path, workers: int = 2, **asked_for: object) -> tuple[Run, Job]:
    """A job for a copy of a run, of which so many tasks have begun a unit."""
    run = Run.open(shutil.copytree(planned, folder))
    slurm = Slurm(**{"parameters": MEMORY, "minutes": 30, **asked_for})  # type: ignore[arg-type]
    job = submit(run, WorkerOptions("auto"), workers, slurm)
    wait_until(lambda: len({e["pid"] for e in _events(folder) if e["event"] == "batch"}) == workers, 300)
    return run, job


def _worker(slurm: SlurmNodes, job: Job, task: int) -> psutil.Process:
    """The Python process of a task."""
    wanted = {**slurm.environment, "SLURM_ARRAY_JOB_ID": job.id, "SLURM_ARRAY_TASK_ID": str(task)}
    for process in psutil.process_iter():
        try:
            is_submitits = "submitit.core._submit" in process.cmdline() and process.name() != "srun"
            if is_submitits and wanted.items() <= process.environ().items():
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no worker of task {task}")


def _holds_usr2_back(slurm: SlurmNodes, job: Job, task: int) -> bool:
    """Whether the Python process of a task is there and has USR2 blocked, as Linux says it."""
    try:
        said = Path(f"/proc/{_worker(slurm, job, task).pid}/status").read_text()
    except (AssertionError, OSError):
        return False
    [blocked] = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", said, re.M)
    return bool(int(blocked, 16) >> (signal.SIGUSR2 - 1) & 1)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_requeued_task_and_a_killed_one_change_no_bytes(
    slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, job = _submitted(many[0], tmp_path / "run")
    slurm.ask("scontrol", "requeue", f"{job.id}_0")
    _worker(slurm, job, 1).kill()
    await_job(run, job)
    assert digests(run.folder) == many[1]
    assert slurm.field(f"{job.id}_0", "Restarts") == "1"
    assert slurm.field(f"{job.id}_1", "JobState") == "FAILED"
    assert slurm.field(f"{job.id}_1", "Restarts") == "0"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_node_that_dies_changes_no_bytes(
    slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, job = _submitted(many[0], tmp_path / "run")
    dead = slurm.processes("n2")
    assert len(dead) > 3, dead
    for process in dead:
        process.kill()
    psutil.wait_procs(dead, timeout=10)
    try:
        wait_until(
            lambda: (
                slurm.field(f"{job.id}_1", "Restarts") == "1" or bool(slurm.field(f"{job.id}_0", "Restarts") == "1")
            ),
            120,
        )
        await_job(run, job)
    finally:
        slurm.start("n2")
    assert digests(run.folder) == many[1]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_ahead_of_the_time_limit_a_task_leaves_and_is_requeued(
    slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """The limit is real. Both tasks are held still in the middle of a unit until Slurm, which wakes them, gives notice;
    else one would make all, and the other would have nothing to come back for.
    """
    run, job = _submitted(many[0], tmp_path / "run", minutes=3, lead=30)
    for task in (0, 1):
        _worker(slurm, job, task).suspend()
    wait_until(lambda: slurm.field(f"{job.id}_0", "Restarts") == "1")
    await_job(run, job)
    assert digests(run.folder) == many[1]
    assert "timeout" not in slurm.field(f"{job.id}_0", "JobState").lower()


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_signal_that_comes_while_a_task_starts_is_heeded(
    slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(many[0], tmp_path / "run"))
    job = submit(run, WorkerOptions("auto"), 2, Slurm(MEMORY, 30))
    wait_until(lambda: _holds_usr2_back(slurm, job, 0))
    slurm.ask("scancel", "--signal=USR2", f"{job.id}_0")
    wait_until(lambda: slurm.field(f"{job.id}_0", "Restarts") == "1")
    await_job(run, job)
    assert digests(run.folder) == many[1]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_usr2_ends_a_task_behind_its_batch_and_requeues_it(
    slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, job = _submitted(many[0], tmp_path / "run", workers=2)
    slurm.ask("scancel", "--signal=USR2", f"{job.id}_0")
    wait_until(lambda: slurm.field(f"{job.id}_0", "Restarts") == "1")
    await_job(run, job)
    assert digests(run.folder) == many[1]
    assert _begun_twice(run) == 0, "the lead was long enough for the unit in hand"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_preempted_task_comes_back(slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run, job = _submitted(many[0], tmp_path / "run")
    begun = time.monotonic()
    urgent = slurm.ask(
        "sbatch", "--parsable", "-p", "urgent", "-o", os.devnull, "--mem=10M", "--wrap", "sleep 1"
    ).strip()
    wait_until(lambda: slurm.field(urgent, "JobState") == "COMPLETED")
    assert time.monotonic() - begun < 50, "the place was given back only when the grace time was over"
    await_job(run, job)
    assert digests(run.folder) == many[1]
    restarts = [int(slurm.field(f"{job.id}_{task}", "Restarts")) for task in (0, 1)]
    assert max(restarts) == 1, (
        f"{restarts}: who is sent away comes back once; Slurm asks the other too while the first is slow to leave"
    )


def _begun_twice(run: Run) -> int:
    """How often a unit was begun that somebody had begun before."""
    started = [event["unit"] for event in _events(run.folder) if event["event"] == "start"]
    return len(started) - len(set(started))


@pytest.mark.full
def test_a_cancelled_job_stays_cancelled(slurm: SlurmNodes, many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run, job = _submitted(many[0], tmp_path / "run")
    slurm.ask("scancel", job.id)
    with pytest.raises(RunError, match=f"job {job.id} is over and the run is not whole: no task said why; logs are in"):
        await_job(run, job)
    time.sleep(7)  # a requeued job would be back by now
    assert not engine.in_queue(job.id)


@pytest.mark.full
def test_what_tasks_say_is_why_a_job_failed(
    slurm: SlurmNodes, short: tuple[Path, dict[str, str]], tmp_path: Path, diffaug: Command
) -> None:
    folder = Path(shutil.copytree(short[0], tmp_path / "run"))
    words = ("--engine", "slurm", "--workers", 2, "--slurm", "mem=1500M", "--wait", "--device", "cuda:7")
    said = diffaug("generate", folder, *words)
    assert said.code == 2
    assert re.search(r"is over and the run is not whole: --device cuda:7: torch .* sees no GPU here", said.err), said


@pytest.mark.full
def test_tasks_of_srun_are_workers_with_numbers(
    slurm: SlurmNodes, short: tuple[Path, dict[str, str]], tmp_path: Path, shell: Command
) -> None:
    folder = Path(shutil.copytree(short[0], tmp_path / "run"))
    line = ("srun", "-N2", "-n2", "--mem=1500M", sys.executable, "-m", "diffaug_datasets", "generate", folder)
    said = shell(*line, "--device", "cpu", **slurm.environment, PYTHONPATH=os.environ["PYTHONPATH"])
    assert said.code == 0, said
    assert digests(folder) == short[1]
    assert said.out.count("images written") == 1, "one of them speaks"
    assert {event.get("worker") for event in _events(folder) if event["event"] == "start"} == {0, 1}


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("90", 90), ("8:00:00", 480), ("2-12", 3600), ("1-0:30", 1470), ("5:30", 6), ("0:0:1", 1), ("1-0:0:1", 1441)],
)
def test_times_are_as_sbatch_takes_them(limit: str, minutes: int) -> None:
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize("limit", ["", "0", "8h", "1:2:3:4", "-5", "٣"])
def test_what_is_no_time_is_refused(limit: str) -> None:
    with pytest.raises(RunError, match=r"--time: got .*, expected minutes, H:M:S or DAYS-H:M:S, such as 8:00:00\."):
        minutes_of(limit)


def test_options_of_sbatch_are_passed_on() -> None:
    got = asked(["partition=gpu", "--gres=gpu:a100:2", "exclusive", "ntasks_per_node=2", "signal=USR2@30"], "10", True)
    assert got.parameters == {"partition": "gpu", "gres": "gpu:a100:2", "exclusive": True, "ntasks-per-node": "2"}
    assert (got.minutes, got.lead, got.wait) == (10, 30, True)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("array=0-9", "--slurm array: cannot be given here; give --workers."),
        ("requeue", "--slurm requeue: cannot be given here; the engine sets it itself."),
        ("partition=", "--slurm: got 'partition=', expected an option of sbatch"),
        ("partition=a\n#SBATCH --wrap=x", "--slurm: got .*, expected an option of sbatch"),
        ("p", "--slurm: got 'p', expected an option of sbatch"),
        ("signal=TERM@9", "--slurm signal: got 'TERM@9', expected USR2@SECONDS, such as USR2@120."),
    ],
)
def test_options_that_cannot_be_are_refused(word: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        asked([word], None, False)


def test_a_time_limit_must_leave_time_to_work() -> None:
    with pytest.raises(RunError, match="--time 3: a task begins to leave 120 to 180 s ahead of its end"):
        asked([], "3", False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a notice sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr("diffaug_datasets.run.engines.slurm_task.time.monotonic", lambda: now[0])
    return now


def test_a_worker_says_how_far_it_is_and_what_that_raises_leaves_the_unit_to_others(
    short: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(short[0], tmp_path / "run"))
    told: list[tuple[str, int, int]] = []

    def heed(unit: str, done: int, total: int) -> None:
        told.append((unit, done, total))
        if told[-1] == ("synthetic-00001", 2, 3):
            raise Leaving

    with pytest.raises(Leaving):
        execute(run, WorkerOptions(), workers=1, heed=heed)
    whole = [("synthetic-00000", 0, 1), ("synthetic-00000", 1, 3), ("synthetic-00000", 2, 3), ("synthetic-00000", 1, 1)]
    assert told == [*whole, ("synthetic-00001", 0, 1), ("synthetic-00001", 1, 3), ("synthetic-00001", 2, 3)]
    assert run.receipt("synthetic-00000") and not run.receipt("synthetic-00001")
    assert not run.held("synthetic-00001")
    execute(run, WorkerOptions(), workers=1)
    assert digests(run.folder) == short[1]


def test_a_notice_ends_an_idle_worker_at_once() -> None:
    with pytest.raises(Leaving):
        Notice(60).take(signal.SIGUSR2)


def test_a_unit_that_can_be_finished_is(clock: list[float]) -> None:
    notice = Notice(60)
    notice.heed("a", 0, 1)
    clock[0] += 20  # models are loaded, and the first of ten batches is made
    notice.heed("a", 1, 10)
    notice.take(signal.SIGUSR2)
    for done in range(2, 10):
        clock[0] += 5
        notice.heed("a", done, 10)
    with pytest.raises(Leaving):
        notice.heed("a", 1, 1)
    assert notice.is_fruitful


def test_a_unit_that_cannot_be_finished_is_left_behind_its_batch(clock: list[float]) -> None:
    notice = Notice(60)
    notice.heed("a", 0, 1)
    notice.heed("a", 1, 100)
    notice.take(signal.SIGUSR2)
    clock[0] += 5
    with pytest.raises(Leaving):
        notice.heed("a", 2, 100)
    assert not notice.is_fruitful
    assert not notice.is_preempted


def test_a_preempted_worker_leaves_behind_its_batch(clock: list[float]) -> None:
    notice = Notice(60, {"fit"})
    notice.heed("fit", 0, 1)
    notice.heed("fit", 50, 100)
    notice.take(signal.SIGTERM)
    clock[0] += 1
    with pytest.raises(Leaving):
        notice.heed("fit", 99, 100)
    assert notice.is_preempted
    assert notice.is_fruitful, "a fit keeps checkpoints"


def test_a_task_that_never_finishes_a_unit_is_not_requeued_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Lives in which nothing was begun, or something was kept, do not count."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm_task.signal, "signal", lambda *_: None)
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm_task, "_scontrol", lambda *words: said.append(words) or "JobState=RUNNING")
    idle, busy, kept = Notice(60), Notice(60), Notice(60)
    busy.heed("a", 0, 1)
    kept.heed("a", 0, 1)
    kept.heed("a", 1, 1)
    kept.heed("b", 0, 1)
    lives = [busy, busy, kept, busy, busy, idle, busy, busy, busy]
    codes = []
    for notice in lives:
        with pytest.raises(SystemExit) as left:
            _leave(notice, tmp_path)
        codes.append(left.value.code)
    assert codes == [0] * 8 + [2]
    assert said == [("show", "job", "7"), ("requeue", "7")] * 8
    assert "the time limit came 3 times in a row before a unit was finished; give" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_an_array_on_an_object_store(
    slurm: SlurmNodes, short: tuple[Path, dict[str, str]], tmp_path: Path, diffaug: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The run lies in a bucket; the job's folder is in the cache, which all tasks see."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with object_store(tmp_path / "store"):
        address = f"s3://{BUCKET}/slurm/{time.time_ns()}"
        price_plan(small_recipe("txt2img", shard_rows=8), address).write()
        said = diffaug("generate", address, "--engine", "slurm", "--workers", 2, "--slurm", "mem=1500M", "--wait")
        assert said.code == 0, said
        assert "must be one that all nodes see; XDG_CACHE_HOME moves the cache" in said.out
        assert digests(Run.open(address, whole=True).folder) == short[1]


@pytest.mark.full
def test_a_slurm_whose_tests_were_killed_is_ended_by_the_next(slurm: SlurmNodes) -> None:
    """And one whose tests live is left alone."""
    code = (
        f"import os, signal, sys; sys.path[:0] = {sys.path!r}; from slurm_nodes import slurm_nodes\n"
        "with slurm_nodes() as left: print(left.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=280)
    left = SlurmNodes(Path(done.stdout.strip()))
    names = ("munge.pid", "slurmctld.pid", "n1.pid", "n2.pid")
    daemons = [process for name in names for process in left.daemon(name)]
    assert len(daemons) == 4
    end_what_is_left()
    assert not [process for process in daemons if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left.folder.exists()
    assert all(slurm.daemon(name) for name in names)

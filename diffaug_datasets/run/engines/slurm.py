"""Slurm: submitit submits a job array, each task of which is a worker that takes what is free in the run folder.

What is submitted is an importable function and plain data, in the folder `slurm` of the run, where the tasks' logs go
too. How far it is, is read from receipts, never from what a task returns. A task whose node dies, whose time ends or
whose place another job takes is requeued; one that merely crashes is not, and the others make what it left.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path

from diffaug_datasets.core.errors import RunError, few, one_line
from diffaug_datasets.run.engines.local import SENTENCE, WATCH_SECONDS, OnProgress
from diffaug_datasets.run.place import from_anywhere
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

FOLDER = "slurm"
LEAD_SECONDS = 120  # from USR2 to the time limit
EARLY_SECONDS = 60  # that Slurm may be early with it
# Until a task can heed USR2 and TERM they are held back: while Python starts they would end it, and nobody requeued it.
HELD_BACK = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
QUEUE_SECONDS = 10.0  # between two questions to Slurm
OWN = {  # options of sbatch that have a name of their own here, or that the engine rests on
    "array": "--workers",
    "time": "--time",
    **dict.fromkeys(("requeue", "no-requeue", "open-mode", "output", "error", "wrap"), ""),
}
TIMES = (  # as sbatch takes them, the days-hours forms first
    r"(?P<d>\d+)-(?P<h>\d+)(:(?P<m>\d+))?(:(?P<s>\d+))?",
    r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
    r"(?P<m>\d+)(:(?P<s>\d+))?",
)
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Slurm:
    """How to ask Slurm for workers.

    `parameters`: long options of sbatch and their values, True where one has none; `minutes`: the time limit of a task,
    None for the partition's own; `lead`: seconds ahead of it at which a task begins to leave; `wait`: until the run is
    whole.
    """

    parameters: Mapping[str, str | bool] = field(default_factory=dict)
    minutes: int | None = None
    lead: int = LEAD_SECONDS
    wait: bool = False


@dataclass(frozen=True)
class Job:
    """What was submitted: the id that `squeue` and `scancel` take, how many tasks, and where they write."""

    id: str
    tasks: int
    logs: Path


def asked(words: Sequence[str], limit: str | None, wait: bool) -> Slurm:
    """What `--slurm KEY=VALUE ... --time LIMIT` ask for.

    Raises:
        RunError: an option that is none of sbatch's by its form, or that the engine sets itself; a time that is none.
    """
    parameters: dict[str, str | bool] = {}
    lead = LEAD_SECONDS
    for word in words:
        key, equals, value = word.partition("=")
        key = key.removeprefix("--").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or not value.isprintable() or bool(equals) != bool(value):
            raise RunError(
                f"--slurm: got {word!r}, expected an option of sbatch such as partition=gpu, gres=gpu:1 or exclusive."
            )
        if key in OWN:
            instead = f"give {OWN[key]}" if OWN[key] else "the engine sets it itself"
            raise RunError(f"--slurm {key}: cannot be given here; {instead}.")
        if key == "signal":
            lead = _lead(value)
        else:
            parameters[key] = value or True
    minutes = None if limit is None else minutes_of(limit)
    if minutes is not None and lead + EARLY_SECONDS >= 60 * minutes:
        raise RunError(
            f"--time {limit}: a task begins to leave {lead} to {lead + EARLY_SECONDS} s ahead of its end, so it would "
            "do nothing; give more time, or --slurm signal=USR2@SECONDS with fewer."
        )
    return Slurm(parameters, minutes, lead, wait)


def minutes_of(limit: str) -> int:
    """A time limit as sbatch takes it (`90`, `8:00:00`, `2-12`), in minutes, rounded up.

    Raises:
        RunError: it is none.
    """
    match = next((found for form in TIMES if (found := re.fullmatch(form, limit, re.ASCII))), None)
    parts = match.groupdict() if match else {}
    seconds = sum(int(parts[name] or 0) * size for name, size in SECONDS.items() if name in parts)
    if not seconds:
        raise RunError(f"--time: got {limit!r}, expected minutes, H:M:S or DAYS-H:M:S, such as 8:00:00.")
    return -(-seconds // 60)


def _lead(signal: str) -> int:
    match = re.fullmatch(r"(?:SIG)?USR2@(\d{1,5})", signal, re.ASCII)
    if match is None:
        raise RunError(f"--slurm signal: got {signal!r}, expected USR2@SECONDS, such as USR2@{LEAD_SECONDS}.")
    return int(match[1])


def submit(run: Run, options: WorkerOptions, workers: int, slurm: Slurm) -> Job:
    """Submit workers for a run: an array of so many tasks, never more than units that can be made at once.

    Raises:
        RunError: no worker is asked for; this machine has no Slurm, or Slurm takes no such job.
    """
    if workers < 1:
        raise RunError("--engine slurm: needs --workers N, how many tasks to ask Slurm for.")
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise RunError("--engine slurm: no sbatch or srun here; submit from a login node, or use --engine local.")
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from diffaug_datasets.run.engines.slurm_task import work

    logs = run.folder.resolve() / FOLDER
    logs.mkdir(mode=0o700, exist_ok=True)  # tasks unpickle what lies here
    there = replace(options, fits_from=tuple(map(from_anywhere, options.fits_from)))
    tasks = min(workers, max(1, *(len(units) for _, units in run.units())))
    python = shlex.join([sys.executable, "-I", "-S", "-c", HELD_BACK])
    executor = submitit.SlurmExecutor(logs, python=python)
    executor.update_parameters(**_parameters(run, slurm, tasks))
    given = (run.from_anywhere, json.dumps(asdict(there), default=str), float(slurm.lead))
    before = set(logs.iterdir())
    try:
        with redirect_stderr(StringIO()):  # where submitit repeats what sbatch says
            jobs = executor.map_array(work, *([value] * tasks for value in given))
    except (FailedJobError, FailedSubmissionError) as error:
        for left in set(logs.iterdir()) - before:
            left.unlink()
        said = re.findall(r"^sbatch: (?:error|fatal): (.+?)\.?$", str(error), re.M) or [one_line(error)]
        raise RunError(f"--engine slurm: sbatch refused: {'; '.join(dict.fromkeys(said))}.") from None
    return Job(jobs[0].job_id.partition("_")[0], tasks, logs)


def _parameters(run: Run, slurm: Slurm, tasks: int) -> dict[str, object]:
    """What submitit writes into the head of the job, under its names."""
    given = {name.replace("-", "_"): value for name, value in slurm.parameters.items()}
    fixed = {"requeue": True, "signal": f"USR2@{slurm.lead}"}
    name = "diffaug-" + re.sub(r"[^\w.-]", "_", run.plan.header.name)
    cores = given.get("cpus_per_task")
    return {
        "job_name": name,
        "time": slurm.minutes,
        "wckey": None,
        "array_parallelism": tasks,
        "srun_args": [f"--cpus-per-task={cores}"] if cores else None,  # which srun does not take from sbatch
        "additional_parameters": {**given, **fixed},
    }


def follow(job: Job, on_progress: OnProgress, is_whole: Callable[[], bool]) -> None:
    """Wait until a run is whole or the job is over, whichever comes first; tasks that wait in vain are taken back."""
    asked_last = 0.0
    while True:
        on_progress()
        if time.monotonic() - asked_last >= QUEUE_SECONDS:
            asked_last = time.monotonic()
            if is_whole():
                _slurm("scancel", "--quiet", "--state=PENDING", job.id)
                return
            if not in_queue(job.id):
                return
        time.sleep(WATCH_SECONDS)


def in_queue(job: str) -> bool:
    """Whether tasks of a job are pending or at work; also where Slurm cannot say, which is no sign of an end."""
    done = _slurm("squeue", "--noheader", "--jobs", job, "--format=%i")
    if done is None or done.returncode:
        return done is None or "invalid job id" not in done.stderr.lower()
    return bool(done.stdout.strip())


def failure(job: Job) -> RunError:
    """Why a job ended and left a run unfinished: what its tasks said, each sentence once."""
    said = [
        line.removeprefix(SENTENCE)
        for path in sorted(job.logs.glob(f"{job.id}_*.err"))
        for line in _tail(path)
        if line.startswith(SENTENCE)
    ]
    reasons = few(list(dict.fromkeys(said))) or "no task said why"
    return RunError(
        f"job {job.id} is over and the run is not whole: {reasons.rstrip('.')}; logs are in {job.logs}, and the same "
        "command goes on."
    )


def _tail(path: Path, most: int = 1 << 16) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read().decode("utf-8", "replace").splitlines()


def _slurm(*line: str) -> "subprocess.CompletedProcess[str] | None":
    """A command of Slurm; None where it cannot be run or does not answer."""
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None

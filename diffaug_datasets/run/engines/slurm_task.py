"""What a task of a Slurm job does: a worker, until nothing is missing or the allocation ends.

Slurm says so ahead: USR2 some seconds before the time limit, TERM where another job takes the place. Then the worker
finishes what it can still finish, at the least its batch, gives the rest back and has itself requeued; the requeued
task takes what is free, as any worker does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter

from diffaug_datasets.core.errors import DiffAugError, one_line, printable
from diffaug_datasets.run.engines import ranks
from diffaug_datasets.run.engines.local import SENTENCE
from diffaug_datasets.run.engines.slurm import FOLDER
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
MARGIN_SECONDS = 5.0  # of the time that is left, for the receipt and for leaving
FRUITLESS = 3  # time limits in a row that may come before a unit which was begun could be finished


class Leaving(BaseException):
    """The worker leaves; no method's `except Exception` may hold it up."""


class Notice:
    """What Slurm has said of this task's end, and whether the unit in hand can still be finished."""

    def __init__(self, lead: float, fits: Set[str] = frozenset()) -> None:
        """`lead`: seconds from USR2 to the time limit; `fits`: names of units that keep checkpoints."""
        self.until: float | None = None
        self.is_preempted = False
        self.is_fruitful = True  # as long as nothing was begun in vain
        self._lead, self._fits = lead, fits
        self._in_hand = ""
        self._has_kept = False
        self._pace: tuple[float, int] | None = None
        self._begun = 0.0

    def take(self, number: int, _: FrameType | None = None) -> None:
        """A signal has come. Raises Leaving at once where no unit is in hand."""
        self.is_preempted |= number == signal.SIGTERM
        ends = time.monotonic() + (0 if self.is_preempted else self._lead - MARGIN_SECONDS)
        self.until = min(ends, self.until or ends)
        if not self._in_hand:
            raise Leaving

    def heed(self, unit: str, done: int, total: int) -> None:
        """Between two steps of a unit. Raises Leaving where what is left of it takes longer than the task may run."""
        now = time.monotonic()
        if done == 0:
            self._in_hand, self._begun, self._pace = unit, now, None
            self.is_fruitful &= self._has_kept
        if done == total:
            self._in_hand = ""
        if done == total or (unit in self._fits and done > 0):
            self.is_fruitful = self._has_kept = True
        if self.until is not None and (done == total or now + self._seconds_left(now, done, total) > self.until):
            raise Leaving
        if done and self._pace is None:  # the first step waits for models
            self._pace = now, done

    def _seconds_left(self, now: float, done: int, total: int) -> float:
        since, before = self._pace or (self._begun, 0)
        return (now - since) / max(1, done - before) * (total - done)


def work(folder: str, options: str, lead: float) -> None:
    """Called by submitit on the node. `options`: of the worker, as JSON; `lead`: seconds from USR2 to the time limit.

    Leaves with code 2 and a sentence on standard error where the run cannot be continued here.
    """
    try:
        run = Run.open(folder)
        notice = Notice(lead, {unit.name for unit in run.plan.fits})
        try:
            with noticing(notice):
                execute(run, TypeAdapter(WorkerOptions).validate_json(options), workers=1, heed=notice.heed)
        except Leaving:
            _leave(notice, run.folder / FOLDER)
    except DiffAugError as error:
        _tell(one_line(error))
        sys.exit(2)


@contextmanager
def noticing(notice: Notice) -> Iterator[None]:
    """Meanwhile the notice takes USR2 and TERM, also those that came before: tasks are started with both held back."""
    before = {number: signal.signal(number, notice.take) for number in SIGNALS}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(notice: Notice, logs: Path) -> None:
    """Have this task requeued, by the first process of its step, at the end where there are others."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not ranks.leads():
        return
    if ranks.in_step() > 1 and notice.until is not None:
        time.sleep(max(0.0, notice.until - time.monotonic()))
    job = _job()
    if not notice.is_preempted and _in_vain(logs / f"{job}_in_vain", notice.is_fruitful) >= FRUITLESS:
        _tell(
            f"the time limit came {FRUITLESS} times in a row before a unit was finished; give a longer --time, or plan "
            "with a smaller shard_rows."
        )
        sys.exit(2)
    if "JobState=RUNNING" not in _scontrol("show", "job", job):  # cancelled, or requeued by Slurm itself
        return
    _scontrol("requeue", job)
    sys.exit(0)


def _in_vain(path: Path, is_fruitful: bool) -> int:
    """How often in a row a task's time was in vain, this time counted; kept in a file beside its logs."""
    if is_fruitful:
        path.unlink(missing_ok=True)
        return 0
    with path.open("a", encoding="utf-8") as file:
        file.write("x")
    return path.stat().st_size


def _job() -> str:
    """This job as `scontrol` takes it: the number of an array's last task alone would stand for the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _scontrol(*words: str) -> str:
    """What `scontrol` says; code 2 and a sentence where it fails."""
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        _tell(f"scontrol {' '.join(words)}: {one_line(done.stderr)}; what is finished stays.")
        sys.exit(2)
    return done.stdout


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{SENTENCE}{printable(sentence)}\n")

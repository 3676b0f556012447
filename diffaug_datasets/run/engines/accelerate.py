"""Under `accelerate launch` every process is a worker; the run folder shares the work, not a process group.

Only where batches are to be split do the processes speak to each other, and only while they learn concepts.

Concept fits learned by all processes of an `accelerate launch` at once, each computing its part of every batch.

The first process holds the unit, decides whether it is to be made, and writes it; the others follow. A process that
dies takes the others with it, and the same command goes on from the last checkpoint.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.run.engines.local import Tick
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import POLL_SECONDS, Worker, WorkerOptions

if TYPE_CHECKING:
    from diffaug_datasets.models.training import Team


def learn_together(worker: Worker) -> None:
    """Make the concept fits that a run lacks, one after the other.

    Raises:
        RunError: the run cannot be continued here.
    """
    from diffaug_datasets.models.training import Processes

    team = Processes(worker.options.device)  # accelerate may set CPU threads, so the plan's are set after it
    try:
        worker.begin()
        for unit in worker.plan.fits:
            if unit.kind == "concepts":
                _learn(worker, unit, team)
    finally:
        team.close()


def _learn(worker: Worker, unit: FitUnit, team: "Team") -> None:
    if team.rank:
        _follow(worker, unit, team)
        return
    with _held(worker.run, unit.name):
        lacking = not worker.is_intact(unit.name)
        if _agreed(team, lacking and worker.adoptable(unit) is None):
            with worker.joined(team):
                worker.make(unit)
        elif lacking:
            worker.make(unit)


def _follow(worker: Worker, unit: FitUnit, team: "Team") -> None:
    if _agreed(team, False):
        with worker.joined(team):
            worker.help(unit)


def _agreed(team: "Team", answer: bool) -> bool:
    """What the first process answers."""
    from diffaug_datasets.models.training import told_by_first

    return bool(told_by_first(team, int(answer)))


@contextmanager
def _held(run: Run, name: str) -> Iterator[None]:
    """The unit's lease, waited for."""
    while True:
        with run.lease(name) as mine:
            if mine:
                yield
                return
        time.sleep(POLL_SECONDS)


def launched() -> bool:
    """Whether this process was started by `accelerate launch` or `torchrun` as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def rank() -> int:
    """Number of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def execute(run: Run, options: WorkerOptions, tick: Tick) -> Worker:
    """Work on this process's device; gives its worker, which has the models loaded.

    Unless batches are split no collective is called, so one death stops no other.
    """
    device = options.device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    worker = Worker(run, replace(options, number=rank(), device=device))
    if options.split_batches:
        learn_together(worker)
    worker.work()
    tick()
    return worker

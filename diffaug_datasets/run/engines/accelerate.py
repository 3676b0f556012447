"""Under `accelerate launch` every process is a worker; the run folder shares the work, not a process group.

Where batches are to be split the processes speak to each other, and only while they learn concepts: each computes its
part of every batch. The first process holds the unit, decides whether it is to be made, and writes it; the others
follow. A process that dies takes the others with it, and the same command goes on from the last checkpoint.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions, growing_waits


def launched() -> bool:
    """Whether this process was started by `accelerate launch` or `torchrun` as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def rank() -> int:
    """Number of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def worker_of(run: Run, options: WorkerOptions) -> Worker:
    """This process's worker, on its own device; where batches are split, after the concept fits are learned.

    Unless batches are split no collective is called, so one death stops no other.

    Raises:
        RunError: the run cannot be continued here.
    """
    device = options.device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    worker = Worker(run, replace(options, number=rank(), device=device))
    if options.split_batches:
        learn_shared_fits(worker)
    return worker


def learn_shared_fits(worker: Worker) -> None:
    """Make the concept fits that a run lacks, one after the other, each with all processes of the launch.

    Raises:
        RunError: the run cannot be continued here.
    """
    from diffaug_datasets.models.training import Processes, broadcast

    team = Processes(worker.options.device)  # accelerate may set CPU threads, so the plan's are set after it
    try:
        worker.begin()
        for unit in worker.plan.fits:
            if unit.kind != "concepts":
                continue
            if team.rank:
                if broadcast(team, 0):
                    with worker.sharing(team):
                        worker.help(unit)
                continue
            with _held(worker.run, unit.name):
                worker.run.look_again(unit.name)
                is_lacking = not worker.is_intact(unit.name)
                if broadcast(team, int(is_lacking and worker.adoptable(unit) is None)):
                    with worker.sharing(team):
                        worker.make(unit)
                elif is_lacking:
                    worker.make(unit)
    finally:
        team.close()


@contextmanager
def _held(run: Run, name: str) -> Iterator[None]:
    """The unit's lease, waited for."""
    for wait in growing_waits():
        with run.lease(name) as mine:
            if mine:
                yield
                return
        time.sleep(wait)

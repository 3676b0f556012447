"""Concept fits learned by all processes of an `accelerate launch` at once, each computing its part of every batch.

The first process holds the unit, decides whether it is to be made, and writes it; the others follow. A process that
dies takes the others with it, and the same command goes on from the last checkpoint.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import POLL_SECONDS, Worker

if TYPE_CHECKING:
    from diffaug_datasets.models.team import Team


def learn_together(worker: Worker) -> None:
    """Make the concept fits that a run lacks, one after the other.

    Raises:
        RunError: the run cannot be continued here.
    """
    from diffaug_datasets.models.team import Processes

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
    from diffaug_datasets.models.team import told_by_first

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

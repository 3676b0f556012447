"""A worker without models for the tests of leases: `hands.py PLACE NAME SECONDS [UNIT]` makes the units of a run.

It takes units as `Worker` does and commits them as `Run` does; a unit is a file that says what it is. It prints `holds
UNIT GENERATION`, `made UNIT` or `lost UNIT`, a line each. Its host is called NAME.
"""

import os
import sys
import time

from diffaug_datasets.core.files import write_once
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.run.leases import Leases
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.worker import Worker


def say(*words: str) -> None:
    """A line in one write, whole among those of other threads and processes."""
    os.write(1, f"{' '.join(words)}\n".encode())


class Hands(Worker):
    """Makes units that are a line of text, in some seconds each."""

    seconds = 0.0

    def make(self, unit: FitUnit | Shard) -> None:
        lease = self.run.leases.held[unit.name]
        say("holds", unit.name, lease.key.rpartition("/")[2].lstrip("0"))
        time.sleep(self.seconds)
        path = self.run.folder / "shards" / f"{unit.name}.arrow"
        done = write_once(path, lambda temporary: temporary.write_text(f"this is {unit.name}\n"))
        receipt = Receipt(plan_id=self.plan.id, unit=unit.name, files=(done,), worker=self.run.leases.host)
        is_ours = self.run.write_receipt(receipt)
        say("made" if is_ours else "lost", unit.name)


def hands(place: str, name: str, seconds: float) -> Hands:
    """One such worker; of another machine than everybody else."""
    run = Run.open(place)
    run.leases = Leases(run.place, machine=name, host=name)
    worker = Hands(run)
    worker.seconds = seconds
    return worker


def main(place: str, name: str, seconds: str, only: str = "") -> None:
    worker = hands(place, name, float(seconds))
    if only:
        worker.run.units = lambda: iter([("synthetic", [s for s in worker.plan.shards() if s.name == only])])  # type: ignore[method-assign]
    for unit in worker._leased():
        worker.make(unit)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What runs on a node of a Ray cluster: one worker, which loads its models once and makes the units it is told to."""

from functools import cached_property

from pydantic import TypeAdapter

from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Shard
from diffaug_datasets.run.execute import assemble_once, resolved
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

ASSEMBLY = "assembly"  # the last unit of all


class Hand:
    """A worker as a Ray actor. What it raises, the driver gets."""

    def __init__(self, where: str, options: str) -> None:
        """`where`: folder or address of the run; `options`: of the worker, as JSON, its device resolved on the node."""
        self._where, self._options = where, TypeAdapter(WorkerOptions).validate_json(options)

    def begin(self) -> None:
        """Check that the run can be continued here. Raises RunError as `Worker.begin`."""
        self._worker.begin()

    def make(self, name: str) -> bool:
        """Make a unit, or assemble; False where somebody else holds it."""
        if name == ASSEMBLY:
            assemble_once(self._worker.run, self._worker)
            return True
        with self._worker.run.lease(name) as mine:
            if mine is None:
                return False
            self._worker.run.look_again(name)
            if not self._worker.is_intact(name):
                self._worker.make(self._units[name])
            mine.done = self._worker.is_intact(name)
            return mine.done

    @cached_property
    def _worker(self) -> Worker:
        return Worker(Run.open(self._where), resolved(self._options))

    @cached_property
    def _units(self) -> dict[str, FitUnit | Shard]:
        return {unit.name: unit for _, units in self._worker.run.units() for unit in units}

"""The end of a shard beside the beginning of the next: encoding, writing and the receipt, while batches go on.

The lease of a shard that is being finished is kept until its receipt is there. One shard at a time is finished; whoever
is done with the next one before that waits for it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from diffaug_datasets.core.plan import Shard
from diffaug_datasets.core.rows import FailedRow, Row
from diffaug_datasets.run.leases import Lease
from diffaug_datasets.run.shards import Spool
from diffaug_datasets.run.store import Receipt

MOST_ENCODERS = 4
BATCHES = 2  # whose rows may wait for an encoder


def encoders() -> int:
    """Threads that encode images: as many as this process has cores, at most four."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_ENCODERS, count))


@dataclass
class Drawn:
    """A shard whose batches are all made: rows on their way into its file, and what its receipt will say.

    `held`: the open spool, closed once the file is written.
    """

    shard: Shard
    spool: Spool
    encoding: list[Sequence[Future[list[Row]]]] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)
    shapes: set[int] = field(default_factory=set)
    facts: dict[str, object] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)

    def drain(self, left: int) -> None:
        """Put encoded rows away until at most so many batches wait."""
        while len(self.encoding) > left:
            for rows in self.encoding.pop(0):
                self.spool.add(rows.result())

    def finish(self, write: "Callable[[Drawn], Receipt]") -> Receipt:
        """Encode what is left, write the file, and give the receipt; the spool is gone then."""
        with self.held:
            self.drain(0)
            return write(self)


@dataclass
class _Finishing:
    """A shard that is being finished, its lease, and what to do once it is."""

    shard: Shard
    writing: "Future[Receipt]"
    settle: Callable[[Receipt], bool]
    lease: Lease | None = None
    held: ExitStack = field(default_factory=ExitStack)


class Overlap:
    """Finishes shards in a thread, one at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "finish")
        self._now: _Finishing | None = None
        self._lost: list[Shard] = []

    def begin(self, shard: Shard, finish: Callable[[], Receipt], settle: Callable[[Receipt], bool]) -> None:
        """Finish a shard from now on; the one before is waited for. `settle` is called with its receipt, here."""
        self.wait()
        self._now = _Finishing(shard, self._pool.submit(finish), settle)

    def keep(self, name: str, lease: Lease, held: ExitStack) -> bool:
        """Keep the lease of the unit of that name if it is being finished; False where it is not."""
        if self._now is None or self._now.shard.name != name:
            return False
        self._now.lease, self._now.held = lease, held.pop_all()
        return True

    def wait(self) -> None:
        """Until nothing is being finished; its lease is given back."""
        now, self._now = self._now, None
        if now is None:
            return
        with now.held:
            is_done = False
            try:
                is_done = now.settle(now.writing.result())
            finally:
                if now.lease:
                    now.lease.done = is_done
                if not is_done:
                    self._lost.append(now.shard)

    def close(self) -> None:
        """Finish what is being finished, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def lost(self) -> list[Shard]:
        """The shards that another worker took over meanwhile, asked for once."""
        lost, self._lost = self._lost, []
        return lost

"""Work that is bounded in bytes: a cache, threads that share a window, and shards of rows; and seldom collected."""

import gc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_BYTES = 512 << 20  # of images that are read and decoded at once
LIGHT_BYTES = 128 << 10  # what weighs less is done sooner than handed to another thread
COLLECTED_AFTER = (50_000, 20, 20)  # new objects, and collections of the younger generations

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Item = TypeVar("Item")


class ByteCache(Generic[Key, Value]):
    """Values of keys, made when they are missing; of those that weigh more than `most` together the last used stay.

    The value that was asked for last is always kept, however much it weighs. Not for several threads at once.
    """

    def __init__(self, make: Callable[[Key], Value], weigh: Callable[[Value], int], most: int) -> None:
        self.most, self.weight = most, 0
        self._make, self._weigh = make, weigh
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __call__(self, key: Key) -> Value:
        """The value of a key."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._make(key)
        self.weight += self._weigh(value)
        while self._values and self.weight > self.most:
            self.weight -= self._weigh(self._values.popitem(last=False)[1])
        self._values[key] = value
        return value

    def __len__(self) -> int:
        return len(self._values)


def in_order(
    work: Callable[[Item], Value], items: Iterable[Item], cost: Callable[[Item], int], most: int
) -> Iterator[Value]:
    """`work` of every item, in the items' order: by threads, but for items that cost no more than `LIGHT_BYTES`.

    Items are taken one by one, and only as many as cost `most` bytes together are worked on or wait to be taken; one
    that costs more than that is alone. An error of `work` comes in its turn and ends it.
    """
    waiting: deque[tuple[Future[Value], int]] = deque()
    used = 0
    pool = ThreadPoolExecutor(thread_name_prefix="in-order")
    try:
        for item in items:
            needed = cost(item)
            while waiting and used + needed > most:
                done, spent = waiting.popleft()
                yield done.result()
                del done
                used -= spent
            waiting.append((_done(work, item) if needed <= LIGHT_BYTES else pool.submit(work, item), needed))
            used += needed
            del item
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def few_collections() -> Iterator[None]:
    """Python looks for cycles among its objects seldom, for while millions are made that have none it only costs time.

    The thresholds are those of the whole process: of several threads the first sets them, and the last puts back what
    it found. Whoever has set other thresholds, or none, keeps what is rarer.
    """
    _RARE.enter()
    try:
        yield
    finally:
        _RARE.leave()


class _Rare:
    """How many blocks are inside, and the thresholds from before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (0, 0, 0)

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = gc.get_threshold()
                if self._before[0] in range(1, COLLECTED_AFTER[0]):
                    gc.set_threshold(*COLLECTED_AFTER)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                gc.set_threshold(*self._before)


_RARE = _Rare()


def _done(work: Callable[[Item], Value], item: Item) -> "Future[Value]":
    """Worked on here and now."""
    done: Future[Value] = Future()
    try:
        done.set_result(work(item))
    except Exception as error:
        done.set_exception(error)
    return done


def shard_sizes(
    weights: "Sequence[int] | NDArray[np.integer[Any]]", most_rows: int, most_bytes: int, step: int = 1
) -> tuple[int, ...] | None:
    """Rows of consecutive shards that hold at most so many rows and bytes; None where rows alone decide.

    A shard has a multiple of `step` rows, `step` even where those weigh more; the last one has what is left.
    """
    each = np.asarray(weights, np.int64)
    if not len(each) or int(np.add.reduceat(each, range(0, len(each), most_rows)).max()) <= most_bytes:
        return None
    sizes: list[int] = []
    rows = weight = 0
    begins = range(0, len(each), step)
    for begin, heavy in zip(begins, np.add.reduceat(each, begins).tolist(), strict=True):
        count = min(step, len(each) - begin)
        if rows and (rows + count > most_rows or weight + heavy > most_bytes):
            sizes.append(rows)
            rows = weight = 0
        rows, weight = rows + count, weight + heavy
    return (*sizes, rows)

"""What is bounded in bytes stays so: caches, windows of threads, shards."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock
from time import sleep

import pytest

from diffaug_datasets.core import memory
from diffaug_datasets.core.memory import ByteCache, few_collections, in_order, shard_sizes


def test_a_cache_keeps_what_was_used_last() -> None:
    made: list[int] = []

    def make(key: int) -> bytes:
        made.append(key)
        return bytes(key)

    cache = ByteCache(make, len, 100)
    for key in (40, 50, 40, 30):
        assert len(cache(key)) == key
    assert made == [40, 50, 30] and len(cache) == 2 and cache.weight == 70
    assert (len(cache(40)), len(cache(50))) == (40, 50) and made == [40, 50, 30, 50]


def test_a_value_above_the_bound_is_kept_alone() -> None:
    made: list[int] = []
    cache = ByteCache(lambda key: made.append(key) or bytes(key), len, 100)
    for key in (40, 500, 500, 40):
        cache(key)
    assert made == [40, 500, 40] and cache.weight == 40


@pytest.fixture(params=[0, 1 << 20], ids=["by threads", "here"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an item is light enough to be worked on at once."""
    monkeypatch.setattr(memory, "LIGHT_BYTES", request.param)


@pytest.mark.usefixtures("_where")
def test_work_comes_in_order_and_within_its_window() -> None:
    taken, done, lock = [0], [0], Lock()

    def items() -> Iterator[int]:
        for i in range(30):
            taken[0] += 1
            yield i

    def work(i: int) -> int:
        sleep(0.002 * (i % 3))
        with lock:
            done[0] += 1
        return i

    for i, value in enumerate(in_order(work, items(), lambda _: 10, 45)):
        assert value == i
        assert taken[0] - i <= 6  # four in the window, one that is taken out, one that waits to come in
    assert done[0] == 30


@pytest.mark.usefixtures("_where")
def test_an_item_above_the_window_is_alone() -> None:
    at_once, most, lock = [0], [0], Lock()

    def work(i: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        sleep(0.005)
        with lock:
            at_once[0] -= 1
        return i

    assert list(in_order(work, range(5), lambda _: 1000, 45)) == list(range(5))
    assert most[0] == 1


@pytest.mark.usefixtures("_where")
def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    def work(i: int) -> int:
        if i == 3:
            raise ValueError(f"item {i}")
        return i

    values = in_order(work, range(100), lambda _: 1, 2)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(values)
    assert list(values) == []


@pytest.mark.parametrize(
    ("weights", "step", "sizes"),
    [
        ([1] * 10, 1, None),
        ([], 1, None),
        ([40, 40, 40, 40], 1, (2, 2)),
        ([99, 99, 1, 1, 1, 1, 1], 1, (1, 2, 4)),
        ([500, 1, 500], 1, (1, 1, 1)),
        ([40] * 7, 2, (2, 2, 2, 1)),
        ([200] * 4, 3, (3, 1)),
    ],
)
def test_shards_are_cut_by_bytes_only_where_they_are_too_large(
    weights: list[int], step: int, sizes: tuple[int, ...] | None
) -> None:
    assert shard_sizes(weights, 4, 100, step) == sizes
    assert sizes is None or sum(sizes) == len(weights)


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        ((700, 10, 10), memory.COLLECTED_AFTER),
        ((0, 10, 10), (0, 10, 10)),
        ((80_000, 5, 5), (80_000, 5, 5)),
    ],
)
def test_collections_are_seldom_inside_and_as_before_after_an_error(
    before: tuple[int, int, int], inside: tuple[int, int, int]
) -> None:
    usual = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with pytest.raises(ZeroDivisionError), few_collections():
            assert gc.get_threshold() == inside
            raise ZeroDivisionError
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*usual)


def test_of_threads_that_overlap_the_last_puts_back_what_the_first_found() -> None:
    """The first leaves while the second is inside, as two plans of one process do."""
    before, both, first_left = gc.get_threshold(), Barrier(2), Event()
    after: list[tuple[int, int, int]] = []

    def first() -> None:
        with few_collections():
            both.wait(30)
        after.append(gc.get_threshold())
        first_left.set()

    def second() -> None:
        with few_collections():
            both.wait(30)
            assert first_left.wait(30)
        after.append(gc.get_threshold())

    try:
        gc.set_threshold(700, 10, 10)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(first), pool.submit(second)]:
                done.result()
        assert after == [memory.COLLECTED_AFTER, (700, 10, 10)]
    finally:
        gc.set_threshold(*before)

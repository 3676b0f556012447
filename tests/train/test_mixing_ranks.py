"""A stream shared by ranks and DataLoader workers: each row once per epoch, in one order, exact resume."""

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any

import datasets
import pytest
from test_mixing import ids, rows  # noqa: F401
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diffaug_datasets import MixedDataset, MixedStream
from diffaug_datasets.core.errors import RecipeError

RANKS, WORKERS, BATCH = 2, 2, 2


def stream(rows: datasets.Dataset, rank: int = 0, **words: Any) -> MixedStream:  # noqa: F811
    words = {"world_size": RANKS, "batch_size": BATCH, **words}
    return MixedStream(MixedDataset(rows, "class", 0.5, seed=4), rank=rank, **words)


def batches(source: IterableDataset[Any], workers: int = WORKERS) -> Iterator[list[str]]:
    """The row ids of every batch, as a training loop gets them from real worker processes."""
    loader = DataLoader(source, batch_size=BATCH, num_workers=workers, collate_fn=ids)
    return iter(loader)


def flat(found: Any) -> list[str]:
    return [row for batch in found for row in batch]


def test_two_ranks_of_two_workers_give_every_row_once_and_resume(rows: datasets.Dataset) -> None:  # noqa: F811
    whole = MixedStream(MixedDataset(rows, "class", 0.5, seed=4))
    expected = ids(whole)
    ranks = [stream(rows, rank) for rank in range(RANKS)]
    assert [len(each) for each in ranks] == [7, 7]
    first = flat(batches(ranks[0]))
    resumed = stream(rows, 1)
    resumed.set_epoch(0, 4)
    second = [*flat(islice(workers_of(stream(rows, 1)), 2)), *flat(batches(resumed))]
    assert [first, second] == [expected[0::2], expected[1::2]], "the order is not that of one process"
    assert sorted([*first, *second]) == sorted(expected)


def workers_of(source: MixedStream, workers: int = WORKERS) -> Iterator[list[str]]:
    """The batches of a DataLoader's workers, one after the other in turn, without processes."""
    shares = []
    for number in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            # private: torch tells a worker its number only inside its own process
            patch.setattr("diffaug_datasets.train.mixing._worker", lambda number=number: (number, workers))
            twin = MixedStream(
                source.mixed, batch_size=source.batch_size, rank=source.rank, world_size=source.world_size
            )
            twin.set_epoch(source.epoch, source.begin)
            given = ids(twin)
            shares.append([given[i : i + BATCH] for i in range(0, len(given), BATCH)])
    return (batch for turn in zip_longest(*shares) for batch in turn if batch)


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 15])
def test_any_number_of_ranks_and_workers_gives_the_order_of_one(
    rows: datasets.Dataset,  # noqa: F811
    world: int,
    workers: int,
) -> None:
    for epoch in (0, 3):
        whole = stream(rows, world_size=1)
        whole.set_epoch(epoch)
        expected, seen = ids(whole), []
        for rank in range(world):
            each = stream(rows, rank, world_size=world)
            for taken in range(0, len(each), 2):
                each.set_epoch(epoch, taken)
                assert flat(workers_of(each, workers)) == expected[rank::world][taken:]
            each.set_epoch(epoch)
            seen += flat(workers_of(each, workers))
        assert sorted(seen) == sorted(expected)


@pytest.mark.full
@pytest.mark.parametrize(("taken", "workers"), [(0, 2), (2, 2), (4, 0), (6, 1), (7, 2)])
def test_a_rank_resumes_behind_what_it_was_given(
    rows: datasets.Dataset,  # noqa: F811
    taken: int,
    workers: int,
) -> None:
    """For any number of workers; a whole epoch taken means that the next one begins."""
    for rank in range(RANKS):
        expected = [flat(batches(stream(rows, rank)))]
        after = stream(rows, rank)
        after.set_epoch(1)
        expected.append(flat(batches(after)))
        assert expected[0] != expected[1]
        resumed = stream(rows, rank)
        resumed.set_epoch(0, taken)
        left = expected[0][taken:] if taken < 7 else expected[1]
        assert flat(batches(resumed, workers)) == left


class Told(IterableDataset[Any]):
    """A stream whose items come with their worker's number and its state, which a loader like torchdata's keeps."""

    def __init__(self, inner: MixedStream, states: dict[int, dict[str, int]] | None = None) -> None:
        self.inner, self.states = inner, states or {}

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number = info.id if info else 0
        if number in self.states:
            self.inner.load_state_dict(self.states[number])
        for item in self.inner:
            yield item["row_id"], number, self.inner.state_dict()


def told(source: Told) -> list[tuple[str, int, dict[str, int]]]:
    return [
        one for batch in DataLoader(source, batch_size=BATCH, num_workers=WORKERS, collate_fn=list) for one in batch
    ]


@pytest.mark.full
@pytest.mark.parametrize("stop", [2, 4, 6])
def test_every_workers_state_resumes_it(rows: datasets.Dataset, stop: int) -> None:  # noqa: F811
    for rank in range(RANKS):
        whole = told(Told(stream(rows, rank)))
        states = {number: state for _, number, state in whole[:stop]}
        rest = told(Told(stream(rows, rank), states))
        assert len(states) == min(stop // BATCH, WORKERS)
        for worker in range(WORKERS):
            given = [row for row, number, _ in [*whole[:stop], *rest] if number == worker]
            assert given == [row for row, number, _ in whole if number == worker]


def test_a_state_of_another_stream_is_refused(rows: datasets.Dataset) -> None:  # noqa: F811
    sentence = "expected one of a stream over 14 real rows, rank 1 of 2, in batches of 2"
    for state in (stream(rows, 0).state_dict(), {"schema": 1, "epoch": 0, "position": 5, "rows": 14}):
        with pytest.raises(RecipeError, match=sentence):
            stream(rows, 1).load_state_dict(state)


@pytest.mark.parametrize("words", [{"rank": 2}, {"rank": -1}, {"batch_size": 0}])
def test_ranks_that_cannot_be(rows: datasets.Dataset, words: dict[str, int]) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="expected a rank from 0 below the world size and a batch size from 1"):
        stream(rows, **words)
    with pytest.raises(RecipeError, match="got 8 taken items, expected 0 to 7"):
        stream(rows).set_epoch(0, 8)


def test_ranks_come_from_torch_distributed(rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from torch import distributed

    mixed = MixedDataset(rows, "class", 0.0)
    assert (MixedStream(mixed).rank, MixedStream(mixed).world_size) == (0, 1)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert (MixedStream(mixed).rank, MixedStream(mixed).world_size) == (0, 1)
        monkeypatch.setattr(distributed, "get_rank", lambda: 3)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
        assert sorted(ids(MixedStream(mixed))) == sorted(ids(MixedStream(mixed, rank=3, world_size=4)))
        assert len(MixedStream(mixed)) == 3
    finally:
        distributed.destroy_process_group()

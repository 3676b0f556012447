"""The batch that is found by trying: the largest that gains, below what memory holds."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.run.batch_search import find_batch

RECIPE: dict[str, object] = {"builder": "fashion", "protocol": "2shot", "method": "txt2img"}


class Card:
    """A device of so many rows, on which a call takes a second and so much more a row."""

    def __init__(self, rows: int, seconds_a_row: float) -> None:
        self.rows, self.each, self.now = rows, seconds_a_row, 0.0
        self.seen: list[int] = []

    def clock(self) -> float:
        return self.now

    def call(self, states: torch.Tensor, *_: Any) -> torch.Tensor:
        rows = len(states) // 2
        self.seen.append(rows)
        if rows > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.now += 1 + self.each * rows
        return states


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    held = Card(6, 0.0)
    monkeypatch.setattr(Backbone, "said", lambda _, *given: held.call(*given))
    yield held


def test_it_stops_where_memory_ends(card: Card) -> None:
    found = find_batch(Recipe.from_dict(RECIPE), "cpu", card.clock)
    assert found.rows == 4 and [trial.rows for trial in found.trials] == [1, 2, 4, 8]
    assert found.trials[-1].rate is None and found.words.endswith("8 (out of memory)")


def test_it_stops_where_nothing_is_gained(card: Card) -> None:
    card.rows, card.each = 1000, 9.0
    found = find_batch(Recipe.from_dict(RECIPE), "cpu", card.clock)
    # A row takes 10, 9.5, 9.25, 9.125 s: 5 %, 3 % and 1 % less
    assert [trial.rows for trial in found.trials] == [1, 2, 4] and found.rows == 2


def test_a_card_too_small_for_one_row_is_one_sentence(card: Card) -> None:
    card.rows = 0
    with pytest.raises(RunError, match=r"^--find-batch: cpu has no memory for one image at 32 x 32 pixels; see which"):
        find_batch(Recipe.from_dict(RECIPE), "cpu", card.clock)


def test_another_error_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(Backbone, "said", fails)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        find_batch(Recipe.from_dict(RECIPE), "cpu")

"""Which rows a page shows follows from the plan's id alone."""

from collections.abc import Callable

import pytest

from diffaug_datasets.report import run_view
from diffaug_datasets.report.run_view import RunView, ScannedRow, sample, worst
from diffaug_datasets.run.store import Run

MakeRun = Callable[..., Run]


def row(
    number: int, label: int, seen: int | None = None, sure: float | None = None, margin: float | None = None
) -> ScannedRow:
    return ScannedRow(f"{number:024x}", label, None, seen, sure, margin, "synthetic-00000", number)


def test_samples_follow_the_seed_not_the_order() -> None:
    rows = [row(i, i % 3) for i in range(60)]
    first, again = sample(rows, "a", 4, 100), sample(rows[::-1], "a", 4, 100)
    assert first == again != sample(rows, "b", 4, 100)
    assert [len(group) for group in first.values()] == [4, 4, 4]


def test_many_classes_show_fewer_rows_then_fewer_classes() -> None:
    rows = [row(i, i // 10) for i in range(500)]
    assert {len(group) for group in sample(rows, "a", 6, 100).values()} == {2}
    few = sample(rows, "a", 6, 20)
    assert len(few) == 20 and {len(group) for group in few.values()} == {1} and list(few) == sorted(few)


def test_worst_begins_with_sure_mistakes_then_low_margins() -> None:
    rows = [row(0, 1, 1, 0.9, 0.2), row(1, 1, 2, 0.6, 0.1), row(2, 1, 2, 0.9, 0.3), row(3, 1, 1, 0.9, -0.1), row(4, 1)]
    assert [one.index for one in worst(rows)] == [2, 1, 3, 0]
    assert len(worst(rows * 10)) == 20 and worst([row(4, 1)]) == []
    assert [one.index for one in worst([row(0, 1, 1, 0.9), row(1, 1, 1, 0.4)])] == [1, 0]


def test_few_shards_are_open_at_once(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    usual = RunView(run)
    pictures = [usual.picture(one).data for one in usual.rows]
    monkeypatch.setattr(run_view, "OPEN_SHARDS", 1)
    view = RunView(run)
    assert view.rows == usual.rows and len({one.shard for one in view.rows}) > 1
    assert [view.picture(one).data for one in view.rows] == pictures and len(view._table) == 1

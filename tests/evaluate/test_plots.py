"""Places of figures are where the numbers are."""

import itertools
from pathlib import Path

import pytest
from answers import simulated

from diffaug_datasets.evaluate import plots
from diffaug_datasets.evaluate.table import table
from diffaug_datasets.report.rendering import Span


def test_intervals_lie_where_their_axis_says(tmp_path: Path) -> None:
    rows = table(simulated(tmp_path, {"good": 0.15, "bad": -0.15, "same": 0.0}))
    forest = plots.gains(rows)
    marks = {mark.line: mark for mark in forest.marks}
    assert marks["bad"].high < forest.zero < marks["good"].low
    assert (marks["good"].kind, marks["bad"].kind, marks["same"].kind) == ("better", "worse", "open")
    numbers = {float(tick.text): tick.at for tick in forest.ticks}
    assert numbers[0.0] == forest.zero and sorted(numbers.values()) == [numbers[n] for n in sorted(numbers)]
    scale = (numbers[max(numbers)] - forest.zero) / max(numbers)
    gain = next(row.gain.value for row in rows if row.line == "good")
    assert marks["good"].at == pytest.approx(forest.zero + 100 * gain * scale, abs=0.1)
    ranks = plots.ranks(rows)
    assert next(mark.line for mark in ranks.marks) == "good" and [mark.line for mark in ranks.marks][-1] == "bad"


def test_points_lie_inside_and_names_apart(tmp_path: Path) -> None:
    rows = table(simulated(tmp_path, {f"line {i}": 0.001 * i for i in range(9)}, draws=2))
    plot = plots.scatter(rows, "images", "images", lambda row: 5.0 if row.line == "real" else 100.0)
    for side in ("start", "end"):
        heights = sorted(dot.label_y for dot in plot.dots if dot.anchor == side)
        assert all(b - a >= plots.LABEL_GAP - 0.2 for a, b in itertools.pairwise(heights))
    assert all(plot.left <= dot.x <= plot.box.width and 0 <= dot.y <= plot.floor for dot in plot.dots)
    by_accuracy = sorted(rows, key=lambda row: row.accuracy)
    places = {dot.line: dot.y for dot in plot.dots}
    assert places[by_accuracy[0].line] > places[by_accuracy[-1].line]


def test_what_has_no_range_has_no_figure(tmp_path: Path) -> None:
    rows = table(simulated(tmp_path, {"a": 0.1}, draws=2))
    assert plots.scatter(rows, "", "", lambda row: 5.0) is None
    assert plots.scatter(rows, "", "", lambda row: None) is None
    assert plots.gains([row for row in rows if row.line == "real"]) is None


@pytest.mark.parametrize(("low", "high"), [(-0.013, 0.049), (0.5, 9.5), (0, 123456), (0.8611, 0.8612)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    ticks = plots.steps(Span(low, high))
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)

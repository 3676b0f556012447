"""Figures: the right numbers at the right places."""

import math

import pytest

from diffaug_datasets.report.rendering import Box, Span, bars, circle, curve, histogram, trajectory

BOX = Box(116, 92)


@pytest.mark.parametrize("alpha", [0.3, 1.5, 3.0])
def test_circle_starts_at_a_and_comes_to_b(alpha: float) -> None:
    at_a, at_b = circle(alpha, 0.0), circle(alpha, math.tau - alpha)
    assert at_a.result == at_a.a and at_b.result == at_b.b
    assert at_a.a.y == at_a.b.y < at_a.center and at_a.a.x < at_a.b.x
    assert not at_a.between and circle(alpha, math.tau - alpha / 2).between
    assert circle(alpha, math.tau - alpha / 2).result.y == pytest.approx(13, abs=0.1)


def test_trajectory_marks_the_chosen_level() -> None:
    figure = trajectory([0.5, 0.6, 0.7], [0.0, 0.1, 0.4], 0.6999999, BOX)
    assert figure is not None and figure.chosen == 2
    assert figure.points[0].y == figure.zero > figure.points[2].y
    assert trajectory([0.5], [0.1], None, BOX) is None and trajectory([0.5, 0.6], [0.1], None, BOX) is None
    flat = trajectory([0.5, 0.6], [0.0, 0.0], None, BOX, Span(0, 0))
    assert flat is not None and flat.chosen is None


def test_histogram_counts_every_value() -> None:
    found = histogram([-1, 0, 10, 95, 180, 200], 0, 180, 12, "°")
    assert sum(bar.count for bar in found) == 6 and found[0].count == 3 and found[0].name == "0 to 15°"
    assert max(bar.share for bar in found) == 1 and bars(["a"], [0])[0].share == 0


def test_curve_is_thinned_and_ignores_what_is_not_finite() -> None:
    figure = curve(range(5000), [1 / (1 + i) for i in range(5000)])
    assert figure is not None and figure.steps == 4999 and len(figure.raw.split()) <= 242
    assert figure.first > figure.last
    assert curve([0, 1], [math.nan, 1.0]) is None

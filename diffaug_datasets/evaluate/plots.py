"""The figures of a bench as coordinates, which the page's template draws as SVG: intervals in rows, and points.

Rows of intervals are stretched to whatever width there is, so their places are shares of it, in percent, and their
words stand outside. Points have a view box of `Box`, y pointing down.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffaug_datasets.evaluate.table import TableRow
from diffaug_datasets.evaluate.words import accuracy, difference, points, rank
from diffaug_datasets.report.rendering import Box, Span, count

PLOT = Box(360, 270)
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 42  # around the points
LABEL_GAP, LABEL_LETTERS = 12, 22
FEW_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A place of an axis and the number there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A line with its interval. `low`, `at`, `high`: percent of the width; `kind`: how it is coloured."""

    line: str
    low: float
    at: float
    high: float
    text: str
    kind: str


@dataclass(frozen=True)
class Forest:
    """Lines with intervals on one axis. `zero`: where nothing would be gained, None where that has no place."""

    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    zero: float | None


@dataclass(frozen=True)
class Dot:
    """A line in the plane and where its name stands; `anchor`: `start` or `end` of the name."""

    line: str
    label: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    kind: str
    text: str


@dataclass(frozen=True)
class Scatter:
    """Accuracy against something."""

    title: str
    unit: str
    box: Box
    dots: tuple[Dot, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    floor: float
    left: float


def kind_of(row: TableRow) -> str:
    """How a line is coloured: by its verdict, controls apart."""
    words = {"better": "better", "worse": "worse", "no difference seen": "open"}
    return words.get(row.verdict, "control")


def gains(rows: Sequence[TableRow]) -> Forest | None:
    """The gain of every line over the real images alone; None where nothing was compared."""
    known = [(row, row.gain) for row in rows if row.gain is not None]
    if not known:
        return None
    ends = [0.0, *(end for _, gain in known for end in (gain.low, gain.high))]
    span = padded(min(ends), max(ends))
    marks = tuple(
        Mark(row.line, at(span, g.low), at(span, g.value), at(span, g.high), difference(g), kind_of(row))
        for row, g in known
    )
    ticks = tuple(Tick(at(span, value), points(value)) for value in steps(span))
    return Forest(marks, ticks, at(span, 0.0))


def ranks(rows: Sequence[TableRow]) -> Forest | None:
    """The rank of every line, 1 on the left; None where there is none."""
    known = [(row, row.ranks) for row in rows if row.ranks is not None]
    if not known:
        return None
    span = Span(0.5, len(known) + 0.5)
    marks = tuple(
        Mark(row.line, at(span, r.low), at(span, r.mean), at(span, r.high), rank(row), kind_of(row))
        for row, r in sorted(known, key=lambda pair: (pair[1].mean, pair[0].line))
    )
    every = max(1, math.ceil(len(known) / 10))
    ticks = tuple(Tick(at(span, place), str(place)) for place in range(1, len(known) + 1, every))
    return Forest(marks, ticks, None)


def scatter(
    rows: Sequence[TableRow], title: str, unit: str, measure: Callable[[TableRow], float | None]
) -> Scatter | None:
    """Accuracy (up) against a measure (across); None where fewer than two lines have one, or all have the same."""
    known = [(row, value) for row in rows if (value := measure(row)) is not None]
    values = [value for _, value in known]
    if len(known) < 2 or min(values) == max(values):
        return None
    width, height = PLOT.width, PLOT.height
    x, y = padded(min(values), max(values)), padded(*_ends([row.accuracy for row, _ in known]))

    def across(value: float) -> float:
        return round(LEFT + x.share(value) * (width - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(height - BOTTOM - y.share(value) * (height - BOTTOM - TOP), 1)

    dots = [
        Dot(
            line=row.line,
            label=shortened(row.line),
            x=across(value),
            y=up(row.accuracy),
            label_x=across(value) + (8 if x.share(value) < 0.5 else -8),
            label_y=up(row.accuracy),
            anchor="start" if x.share(value) < 0.5 else "end",
            kind=kind_of(row),
            text=f"{row.line}: {accuracy(row)} at {count(round(value))} {unit}",
        )
        for row, value in known
    ]
    return Scatter(
        title=title,
        unit=unit,
        box=PLOT,
        dots=tuple(_apart(dots)),
        across=tuple(Tick(across(value), f"{value:,.4g}" if value < 10_000 else f"{value:.2g}") for value in steps(x)),
        up=tuple(Tick(up(value), f"{100 * value:.4g}") for value in steps(y)),
        floor=up(y.low),
        left=across(x.low),
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _apart(dots: Sequence[Dot]) -> list[Dot]:
    """Names of one side moved down until none covers another, then up again where they left the figure."""
    placed = []
    for side in ("start", "end"):
        ordered = sorted((dot for dot in dots if dot.anchor == side), key=lambda dot: (dot.y, dot.line))
        heights: list[float] = []
        for dot in ordered:
            heights.append(max(dot.y, heights[-1] + LABEL_GAP) if heights else dot.y)
        lowest = PLOT.height - BOTTOM - 4.0
        for place in reversed(range(len(heights))):
            heights[place] = min(heights[place], lowest)
            lowest = heights[place] - LABEL_GAP
        placed += [replace(dot, label_y=round(height, 1)) for dot, height in zip(ordered, heights, strict=True)]
    return placed


def shortened(name: str) -> str:
    """A name that fits into a figure."""
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "…"


def padded(low: float, high: float) -> Span:
    """A range with some room at both ends."""
    room = 0.06 * (high - low) or 0.01
    return Span(low - room, high + room)


def at(span: Span, value: float) -> float:
    """A value's place in percent of a range."""
    return round(100 * span.share(value), 2)


def steps(span: Span) -> list[float]:
    """Some round numbers inside a range."""
    rough = (span.high - span.low) / FEW_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    first = math.ceil(span.low / step)
    return [round(place * step, 12) for place in range(first, math.floor(span.high / step) + 1)]

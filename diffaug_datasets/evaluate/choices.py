"""What a method chose over a whole run: GeNIe-Ada's levels, Diff-II's angles. One figure each, where rows have them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from diffaug_datasets.evaluate.drawing import Bar, Box, Span, Trajectory, bars, histogram, trajectory
from diffaug_datasets.evaluate.gather import Gathered, Picture
from diffaug_datasets.evaluate.row_card import are_numbers, is_number

OVERLAID = 60
WIDE = Box(480, 190)


@dataclass(frozen=True)
class Levels:
    """How often each noise ratio was chosen, and the trajectories of some rows on one axis."""

    chosen: tuple[Bar, ...]
    trajectories: tuple[Trajectory, ...]
    rows: int


@dataclass(frozen=True)
class Turns:
    """Angles between the two inversions and turns on their circle, in degrees; `beyond`: share off the short arc."""

    alphas: tuple[Bar, ...]
    phis: tuple[Bar, ...]
    rows: int
    beyond: float
    mean_alpha: float


def levels(gathered: Gathered, sampled: Sequence[Picture]) -> Levels | None:
    """The figure of an adaptive method; None where no sampled row measured distances."""
    known = [p for p in sampled if are_numbers(p.measured.get("levels")) and are_numbers(p.measured.get("d"))]
    if not known:
        return None
    ratios = sorted({float(ratio) for picture in known for ratio in picture.measured["levels"]})
    found = Counter(_nearest(ratios, row.strength) for row in gathered.rows if row.strength is not None)
    every = [d for picture in known for d in picture.measured["d"]]
    span = Span(min(0.0, *every), max(0.0, *every))
    shown = known[:: max(1, len(known) // OVERLAID)][:OVERLAID]
    drawn = [trajectory(p.measured["levels"], p.measured["d"], p.planned.strength, WIDE, span) for p in shown]
    names = [f"{ratio:g}" for ratio in ratios]
    lines = tuple(figure for figure in drawn if figure is not None)
    return Levels(bars(names, [found[ratio] for ratio in ratios]), lines, sum(found.values()))


def _nearest(ratios: Sequence[float], strength: float) -> float:
    return min(ratios, key=lambda ratio: abs(ratio - strength))


def turns(sampled: Sequence[Picture]) -> Turns | None:
    """The figure of a method that turns on a circle; None where no sampled row did."""
    known = [p.measured for p in sampled if is_number(p.measured.get("alpha")) and is_number(p.measured.get("phi"))]
    if not known:
        return None
    alphas = [math.degrees(measured["alpha"]) for measured in known]
    phis = [math.degrees(measured["phi"]) for measured in known]
    beyond = sum(phi < 360 - alpha for alpha, phi in zip(alphas, phis, strict=True)) / len(known)
    mean = sum(alphas) / len(alphas)
    return Turns(histogram(alphas, 0, 180, 12, "°"), histogram(phis, 0, 360, 12, "°"), len(known), beyond, mean)

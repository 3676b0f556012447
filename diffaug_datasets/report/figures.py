"""Where a run's time went: its shards and its fits, from their receipts.

What a run amounts to, by class and in all: rows planned, written, failed, kept, and what the judge makes of them.

What a method chose over a whole run: GeNIe-Ada's levels, Diff-II's angles. One figure each, where rows have them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from diffaug_datasets.report.drawing import (
    Bar,
    Box,
    Curve,
    Span,
    Thumbnail,
    Trajectory,
    bars,
    curve,
    histogram,
    thumbnail,
    trajectory,
)
from diffaug_datasets.report.row import Fact, are_numbers, is_number
from diffaug_datasets.report.run_view import FitState, Gathered, Picture, Scanned
from diffaug_datasets.run.store import Receipt

CONFUSION_CLASSES = 20
LISTED_FAILURES = 40


@dataclass(frozen=True)
class ClassRow:
    """Counts of one class. `kept` is None before the selection is made, `accuracy` where nobody judged."""

    name: str
    real: int
    planned: int
    written: int
    failed: int
    kept: int | None
    accuracy: float | None


@dataclass(frozen=True)
class Totals:
    """Sums over the classes. `seconds` are worker seconds of the shards; those of the fits stand apart."""

    classes: int
    real: int
    planned: int
    written: int
    failed: int
    kept: int | None
    accuracy: float | None
    margin: float | None
    seconds: float
    fit_seconds: float
    evaluations: int

    @property
    def seconds_an_image(self) -> float | None:
        """Worker seconds of the shards for every image written."""
        return self.seconds / self.written if self.written and self.seconds else None


def accuracy(rows: Iterable[Scanned]) -> float | None:
    """Share of rows in which the judge sees the row's own class; None where nobody judged."""
    verdicts = [row.agrees for row in rows if row.agrees is not None]
    return fmean(verdicts) if verdicts else None


def class_rows(gathered: Gathered) -> tuple[ClassRow, ...]:
    """One row a class, in label order."""
    written: dict[int, list[Scanned]] = {label: [] for label in range(len(gathered.class_names))}
    for row in gathered.rows:
        written[row.label].append(row)
    planned = Counter(row.label for row in gathered.planned.values())
    failed = Counter(gathered.planned[row.row_id].label for row in gathered.failed if row.row_id in gathered.planned)
    decided = gathered.run.receipt("selection") is not None
    return tuple(
        ClassRow(
            name=name,
            real=len(gathered.real_of(label)),
            planned=planned[label],
            written=len(written[label]),
            failed=failed[label],
            kept=sum(row.row_id not in gathered.dropped for row in written[label]) if decided else None,
            accuracy=accuracy(written[label]),
        )
        for label, name in enumerate(gathered.class_names)
    )


def totals(gathered: Gathered, rows: Sequence[ClassRow]) -> Totals:
    """The sums of the class rows, with times and scores of the whole run."""
    kept = [row.kept for row in rows if row.kept is not None]
    margins = [row.clip_margin for row in gathered.rows if row.clip_margin is not None]
    fits = [fit.receipt for fit in gathered.fits if fit.receipt is not None]
    shards = list(gathered.receipts.values())
    return Totals(
        classes=len(rows),
        real=sum(row.real for row in rows),
        planned=sum(row.planned for row in rows),
        written=sum(row.written for row in rows),
        failed=sum(row.failed for row in rows),
        kept=sum(kept) if kept else None,
        accuracy=accuracy(gathered.rows),
        margin=fmean(margins) if margins else None,
        seconds=sum(receipt.seconds for receipt in shards),
        fit_seconds=sum(receipt.seconds for receipt in fits),
        evaluations=sum(receipt.evaluations for receipt in [*shards, *fits]),
    )


@dataclass(frozen=True)
class ConfusionRow:
    """How often the judge saw each class in the rows of one class: counts, and shares in [0, 1]."""

    name: str
    counts: tuple[int, ...]
    shares: tuple[float, ...]


def confusion(gathered: Gathered) -> tuple[ConfusionRow, ...]:
    """Rows are labels, columns what the judge sees; empty without a judge or with more classes than one can read."""
    names = gathered.class_names
    seen = Counter((row.label, row.judge_label) for row in gathered.rows if row.judge_label is not None)
    if not seen or len(names) > CONFUSION_CLASSES:
        return ()
    table = []
    for label, name in enumerate(names):
        counts = [seen[label, other] for other in range(len(names))]
        table.append(ConfusionRow(name, tuple(counts), tuple(count / max(1, sum(counts)) for count in counts)))
    return tuple(table)


@dataclass(frozen=True)
class LostRow:
    """A failed row of a listing."""

    row_id: str
    class_name: str
    attempts: int


@dataclass(frozen=True)
class Failure:
    """A reason, how many rows failed for it, and the first of them."""

    reason: str
    count: int
    rows: tuple[LostRow, ...]


def failures(gathered: Gathered) -> tuple[Failure, ...]:
    """Reasons, the most frequent first."""
    groups: dict[str, list[LostRow]] = {}
    for row in gathered.failed:
        known = gathered.planned.get(row.row_id)
        name = gathered.class_names[known.label] if known else ""
        groups.setdefault(row.reason, []).append(LostRow(row.row_id, name, row.attempts))
    each = max(1, LISTED_FAILURES // max(1, len(groups)))
    found = [Failure(reason, len(rows), tuple(rows[:each])) for reason, rows in groups.items()]
    return tuple(sorted(found, key=lambda failure: (-failure.count, failure.reason)))


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


LISTED_SHARDS = 24


@dataclass(frozen=True)
class ShardTime:
    """One shard, or the sum of those beyond the listed ones."""

    name: str
    rows: int
    seconds: float
    evaluations: int
    device: str

    @property
    def rate(self) -> float | None:
        """Images a worker second."""
        return self.rows / self.seconds if self.seconds else None


@dataclass(frozen=True)
class Look:
    """What a class looked like after so many steps."""

    step: int
    thumb: Thumbnail


@dataclass(frozen=True)
class Growth:
    """A class while it was learned, from the first look to the last."""

    class_name: str
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class FitView:
    """A fit: what it is, what it measured and, where they are left, its losses and pictures."""

    name: str
    kind: str
    done: bool
    seconds: float
    evaluations: int
    facts: tuple[Fact, ...]
    curve: Curve | None
    growth: tuple[Growth, ...] = ()


def shard_times(gathered: Gathered) -> tuple[ShardTime, ...]:
    """The shards that are done, in order; where they are many, the last line sums up the rest."""
    times = [_shard_time(receipt) for receipt in gathered.receipts.values()]
    listed, rest = times[:LISTED_SHARDS], times[LISTED_SHARDS:]
    if len(rest) > 1:
        rows, evaluations = sum(time.rows for time in rest), sum(time.evaluations for time in rest)
        rest = [ShardTime(f"{len(rest)} more", rows, sum(time.seconds for time in rest), evaluations, "")]
    return (*listed, *rest)


def _shard_time(receipt: Receipt) -> ShardTime:
    device = receipt.stack.get("device", "")
    return ShardTime(receipt.unit, receipt.rows, receipt.seconds, receipt.evaluations, device)


def fit_views(gathered: Gathered) -> tuple[FitView, ...]:
    """Every fit of the plan, in order; fits of a kind that measure nothing are summed up in one line."""
    views = [_fit_view(gathered, state) for state in gathered.fits]
    telling = [view for view in views if view.facts or view.curve or view.growth]
    kinds = dict.fromkeys(view.kind for view in views if view not in telling)
    return (*telling, *(_summed(kind, [v for v in views if v.kind == kind and v not in telling]) for kind in kinds))


def _fit_view(gathered: Gathered, state: FitState) -> FitView:
    receipt, unit = state.receipt, state.unit
    seconds, evaluations = (receipt.seconds, receipt.evaluations) if receipt else (0.0, 0)
    losses = gathered.losses(unit.name)
    drawn = curve([point.step for point in losses], [point.loss for point in losses])
    facts = _measured(receipt.measured) if receipt else ()
    growth = _growth(gathered, unit.name)
    return FitView(unit.name, unit.kind, receipt is not None, seconds, evaluations, facts, drawn, growth)


def _growth(gathered: Gathered, fit: str) -> tuple[Growth, ...]:
    looks: dict[int, list[Look]] = {}
    for preview in gathered.previews(fit):
        if shown := thumbnail(preview.data):
            looks.setdefault(preview.label, []).append(Look(preview.step, shown))
    return tuple(Growth(gathered.class_names[label], tuple(seen)) for label, seen in looks.items())


def _summed(kind: str, views: list[FitView]) -> FitView:
    if len(views) == 1:
        return views[0]
    done = sum(view.done for view in views)
    seconds, evaluations = sum(view.seconds for view in views), sum(view.evaluations for view in views)
    name = f"{done} of {len(views)} units"
    return FitView(name, kind, done == len(views), seconds, evaluations, (), None)


def _measured(content: Mapping[str, Any]) -> tuple[Fact, ...]:
    """The numbers and texts of a fit's receipt."""
    return tuple(Fact(name.replace("_", " "), _text(value)) for name, value in content.items() if _is_plain(value))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

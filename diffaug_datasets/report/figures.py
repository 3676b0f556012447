"""A run in numbers: counts per class and in all, what the judge makes of it, failures, what the method chose, times."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from diffaug_datasets.release.provenance import INVERTED, QUALITY_TITLES
from diffaug_datasets.report.rendering import (
    Bar,
    Box,
    Curve,
    Span,
    Thumbnail,
    Trajectory,
    are_numbers,
    bars,
    curve,
    histogram,
    is_number,
    thumbnail,
    trajectory,
)
from diffaug_datasets.report.row import Fact
from diffaug_datasets.report.run_view import FitState, Picture, RunView, ScannedRow
from diffaug_datasets.run.scores import measured_rows

CONFUSION_CLASSES = 20  # with more, nobody can read the matrix
LISTED_FAILURES = 40
LISTED_SHARDS = 24  # the rest is summed up
OVERLAID = 60  # trajectories on one axis
WIDE = Box(480, 190)


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
    def seconds_per_image(self) -> float | None:
        """Worker seconds of the shards for every image written."""
        return self.seconds / self.written if self.written and self.seconds else None


def accuracy(rows: Iterable[ScannedRow]) -> float | None:
    """Share of rows in which the judge sees the row's own class; None where nobody judged."""
    verdicts = [row.agrees for row in rows if row.agrees is not None]
    return fmean(verdicts) if verdicts else None


def class_rows(view: RunView) -> tuple[ClassRow, ...]:
    """One row per class, in label order."""
    written: dict[int, list[ScannedRow]] = {label: [] for label in range(len(view.class_names))}
    for row in view.rows:
        written[row.label].append(row)
    failed = Counter(view.failed_labels.values())
    decided = view.run.receipt("selection") is not None
    return tuple(
        ClassRow(
            name=name,
            real=len(view.real_of(label)),
            planned=view.planned.get(label, 0),
            written=len(written[label]),
            failed=failed[label],
            kept=sum(row.row_id not in view.dropped for row in written[label]) if decided else None,
            accuracy=accuracy(written[label]),
        )
        for label, name in enumerate(view.class_names)
    )


def totals(view: RunView, rows: Sequence[ClassRow]) -> Totals:
    """The sums of the class rows, with times and scores of the whole run."""
    kept = [row.kept for row in rows if row.kept is not None]
    margins = [row.clip_margin for row in view.rows if row.clip_margin is not None]
    fits = [fit.receipt for fit in view.fits if fit.receipt is not None]
    shards = list(view.receipts.values())
    return Totals(
        classes=len(rows),
        real=sum(row.real for row in rows),
        planned=sum(row.planned for row in rows),
        written=sum(row.written for row in rows),
        failed=sum(row.failed for row in rows),
        kept=sum(kept) if kept else None,
        accuracy=accuracy(view.rows),
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


def confusion(view: RunView) -> tuple[ConfusionRow, ...]:
    """Rows are labels, columns what the judge sees; empty without a judge or with more classes than one can read."""
    names = view.class_names
    seen = Counter((row.label, row.judge_label) for row in view.rows if row.judge_label is not None)
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


def failures(view: RunView) -> tuple[Failure, ...]:
    """Reasons, the most frequent first."""
    groups: dict[str, list[LostRow]] = {}
    for row in view.failed:
        label = view.failed_labels.get(row.row_id)
        name = "" if label is None else view.class_names[label]
        groups.setdefault(row.reason, []).append(LostRow(row.row_id, name, row.attempts))
    each = max(1, LISTED_FAILURES // max(1, len(groups)))
    failures = [Failure(reason, len(rows), tuple(rows[:each])) for reason, rows in groups.items()]
    return tuple(sorted(failures, key=lambda failure: (-failure.count, failure.reason)))


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


def levels(view: RunView, sampled: Sequence[Picture]) -> Levels | None:
    """The figure of an adaptive method; None where no sampled row measured distances."""
    known = [
        (tried, distances, picture.planned.strength)
        for picture in sampled
        if are_numbers(tried := picture.measured.get("levels")) and are_numbers(distances := picture.measured.get("d"))
    ]
    if not known:
        return None
    ratios = sorted({float(ratio) for tried, _, _ in known for ratio in tried})
    strengths = [row.strength for row in view.rows if row.strength is not None]
    chosen = Counter(min(ratios, key=lambda ratio: abs(ratio - strength)) for strength in strengths)
    every = [distance for _, distances, _ in known for distance in distances]
    span = Span(min(0.0, *every), max(0.0, *every))
    shown = known[:: max(1, len(known) // OVERLAID)][:OVERLAID]
    drawn = [trajectory(tried, distances, strength, WIDE, span) for tried, distances, strength in shown]
    names = [f"{ratio:g}" for ratio in ratios]
    lines = tuple(figure for figure in drawn if figure is not None)
    return Levels(bars(names, [chosen[ratio] for ratio in ratios]), lines, sum(chosen.values()))


def turns(sampled: Sequence[Picture]) -> Turns | None:
    """The figure of a method that turns on a circle; None where no sampled row did."""
    known = [
        (math.degrees(alpha), math.degrees(phi))
        for picture in sampled
        if is_number(alpha := picture.measured.get("alpha")) and is_number(phi := picture.measured.get("phi"))
    ]
    if not known:
        return None
    alphas, phis = [alpha for alpha, _ in known], [phi for _, phi in known]
    beyond = sum(phi < 360 - alpha for alpha, phi in zip(alphas, phis, strict=True)) / len(known)
    mean = sum(alphas) / len(alphas)
    return Turns(histogram(alphas, 0, 180, 12, "°"), histogram(phis, 0, 360, 12, "°"), len(known), beyond, mean)


@dataclass(frozen=True)
class Inverted:
    """What one score of inversions says of the real images that it was measured of."""

    title: str
    images: int
    lowest: float
    mean: float
    highest: float


def inversions(view: RunView) -> tuple[Inverted, ...]:
    """How well real images came back from their inversions; none where nothing was inverted or the run goes on."""
    measured = [scores.model_dump() for scores in measured_rows(view.run).values()]
    columns = {name: [row[name] for row in measured if row[name] is not None] for name in INVERTED}
    return tuple(
        Inverted(QUALITY_TITLES[name].removesuffix(", mean"), len(values), min(values), fmean(values), max(values))
        for name, values in columns.items()
        if values
    )


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
class Snapshot:
    """What a class looked like after so many steps."""

    step: int
    thumb: Thumbnail


@dataclass(frozen=True)
class Growth:
    """A class while it was learned, from the first snapshot to the last."""

    class_name: str
    snapshots: tuple[Snapshot, ...]


@dataclass(frozen=True)
class FitSummary:
    """A fit: what it is, what it measured and, where they are left, its losses and pictures."""

    name: str
    kind: str
    done: bool
    seconds: float
    evaluations: int
    facts: tuple[Fact, ...]
    curve: Curve | None
    growth: tuple[Growth, ...] = ()


def shard_times(view: RunView) -> tuple[ShardTime, ...]:
    """The shards that are done, in order; where they are many, the last line sums up the rest."""
    times = [
        ShardTime(done.unit, done.rows, done.seconds, done.evaluations, done.stack.get("device", ""))
        for done in view.receipts.values()
    ]
    listed, rest = times[:LISTED_SHARDS], times[LISTED_SHARDS:]
    if len(rest) > 1:
        rows, evaluations = sum(time.rows for time in rest), sum(time.evaluations for time in rest)
        rest = [ShardTime(f"{len(rest)} more", rows, sum(time.seconds for time in rest), evaluations, "")]
    return (*listed, *rest)


def fit_summaries(view: RunView) -> tuple[FitSummary, ...]:
    """Every fit of the plan, in order; fits of a kind that measure nothing are summed up in one line."""
    fits = [_fit_summary(view, state) for state in view.fits]
    telling = [fit for fit in fits if fit.facts or fit.curve or fit.growth]
    kinds = dict.fromkeys(fit.kind for fit in fits if fit not in telling)
    return (*telling, *(_summed(kind, [f for f in fits if f.kind == kind and f not in telling]) for kind in kinds))


def _fit_summary(view: RunView, state: FitState) -> FitSummary:
    receipt, unit = state.receipt, state.unit
    losses = view.losses(unit.name)
    snapshots: dict[int, list[Snapshot]] = {}
    for preview in view.previews(unit.name):
        if thumb := thumbnail(preview.data):
            snapshots.setdefault(preview.label, []).append(Snapshot(preview.step, thumb))
    measured = receipt.measured if receipt else {}
    plain = {name: value for name, value in measured.items() if isinstance(value, str | int | float)}
    return FitSummary(
        name=unit.name,
        kind=unit.kind,
        done=receipt is not None,
        seconds=receipt.seconds if receipt else 0.0,
        evaluations=receipt.evaluations if receipt else 0,
        facts=tuple(
            Fact(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
            for name, value in plain.items()
        ),
        curve=curve([point.step for point in losses], [point.loss for point in losses]),
        growth=tuple(Growth(view.class_names[label], tuple(seen)) for label, seen in snapshots.items()),
    )


def _summed(kind: str, fits: Sequence[FitSummary]) -> FitSummary:
    """The line of several fits; that of one fit is its own."""
    if len(fits) == 1:
        return fits[0]
    done, seconds = sum(fit.done for fit in fits), sum(fit.seconds for fit in fits)
    evaluations, name = sum(fit.evaluations for fit in fits), f"{done} of {len(fits)} units"
    return FitSummary(name, kind, done == len(fits), seconds, evaluations, (), None)

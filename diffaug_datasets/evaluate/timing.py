"""Where a run's time went: its shards and its fits, from their receipts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffaug_datasets.evaluate.drawing import Curve, curve
from diffaug_datasets.evaluate.gather import FitState, Gathered
from diffaug_datasets.evaluate.row_card import Fact
from diffaug_datasets.evaluate.thumbnails import Thumbnail, thumbnail
from diffaug_datasets.run.store import Receipt

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

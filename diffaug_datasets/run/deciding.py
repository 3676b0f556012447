"""Which written rows stay: filters drop rows, and `min_keep` saves some of them. Pure functions of the scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffaug_datasets.core.canonical import canonical
from diffaug_datasets.core.recipe import CAPTION_PROBABILITY, CLASS_PROBABILITY, Filter

DECIDING = ("row_id", "label", "clip_score", "clip_margin", "judge_confidence", "source_similarity", "judge_label")


@dataclass(frozen=True)
class Decision:
    """Row id -> reason: of the rows that go, and of those that stay although a filter speaks against them."""

    dropped: Mapping[str, str]
    spared: Mapping[str, str]

    def reason(self, row_id: str) -> str | None:
        """What speaks against a row; None where nothing does."""
        return self.dropped.get(row_id) or self.spared.get(row_id)


def columns_for(filters: Sequence[Filter]) -> tuple[str, ...]:
    """The columns that filters look at."""
    return (*DECIDING, "measured") if _probabilities(filters) else DECIDING


def scored(row: Mapping[str, Any], filters: Sequence[Filter]) -> Mapping[str, Any]:
    """A row with what filters read out of its measurements."""
    asked = _probabilities(filters)
    if not asked:
        return row
    measured = json.loads(row["measured"])
    return {**row, **{name: measured.get(name) for name in asked}}


def _probabilities(filters: Sequence[Filter]) -> list[str]:
    asked = {rule.column for rule in filters}
    return [name for name in (CLASS_PROBABILITY, CAPTION_PROBABILITY) if name in asked]


def verdicts(rows: Sequence[Mapping[str, Any]], filters: Sequence[Filter]) -> Decision:
    """What the filters make of the rows; each class keeps a filter's `min_keep` best."""
    dropped: dict[str, str] = {}
    spared: dict[str, str] = {}
    for rule in filters:
        left = [row for row in rows if row["row_id"] not in dropped]
        worst = _lowest(left, rule)
        losers = [row for row in left if row["row_id"] in worst or _breaks(row, rule)]
        saved = _saved(rows, losers, dropped, rule)
        dropped |= {row["row_id"]: _reason(rule) for row in losers if row["row_id"] not in saved}
        spared |= dict.fromkeys(saved, _reason(rule))
    return Decision(dropped, {row_id: reason for row_id, reason in spared.items() if row_id not in dropped})


def decide(rows: Sequence[Mapping[str, Any]], filters: Sequence[Filter]) -> Mapping[str, str]:
    """row id -> reason of every row that a filter drops."""
    return verdicts(rows, filters).dropped


def _breaks(row: Mapping[str, Any], rule: Filter) -> bool:
    value = row[rule.column]
    if value is None:
        return False
    low = rule.minimum is not None and value < rule.minimum
    high = rule.maximum is not None and value > rule.maximum
    return low or high or (rule.equals_label and value != row["label"])


def _lowest(rows: Sequence[Mapping[str, Any]], rule: Filter) -> set[str]:
    """Ids of the share of rows with the lowest values, rounded down; rows without a value are not counted."""
    known = sorted((row[rule.column], row["row_id"]) for row in rows if row[rule.column] is not None)
    return {row_id for _, row_id in known[: int(rule.lowest * len(known))]}


def _reason(rule: Filter) -> str:
    return canonical(rule.model_dump(exclude_defaults=True))


def _saved(
    rows: Sequence[Mapping[str, Any]], losers: Sequence[Mapping[str, Any]], dropped: Mapping[str, str], rule: Filter
) -> set[str]:
    left = Counter(row["label"] for row in rows if row["row_id"] not in dropped)
    left.subtract(Counter(row["label"] for row in losers))
    saved: set[str] = set()
    for row in sorted(losers, key=lambda r: (_distance(r, rule), r["row_id"])):
        if left[row["label"]] < rule.min_keep:
            left[row["label"]] += 1
            saved.add(row["row_id"])
    return saved


def _distance(row: Mapping[str, Any], rule: Filter) -> float:
    """How far a row that the rule speaks against is from passing; the least is the best.

    Of rows with another class than their label, the one that the judge is least sure of is the best.
    """
    if rule.equals_label and row[rule.column] != row["label"]:
        return float(row["judge_confidence"])
    value = float(row[rule.column])
    if rule.maximum is not None and value > rule.maximum:
        return value - rule.maximum
    return (rule.minimum or 0.0) - value

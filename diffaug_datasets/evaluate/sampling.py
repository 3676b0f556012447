"""Which rows a page shows: a seeded sample of every class, and the worst of all."""

import hashlib
from collections.abc import Iterable, Sequence

from diffaug_datasets.evaluate.gather import Scanned

WORST = 20


def ranked(seed: str, names: Iterable[str]) -> list[str]:
    """The names in an order that only the seed decides."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest())


def by_class(rows: Sequence[Scanned], seed: str) -> dict[int, list[Scanned]]:
    """Class id -> its rows in seeded order; classes in label order, only those that have rows."""
    named = {row.row_id: row for row in rows}
    groups: dict[int, list[Scanned]] = {}
    for row_id in ranked(seed, named):
        groups.setdefault(named[row_id].label, []).append(named[row_id])
    return {label: groups[label] for label in sorted(groups)}


def some_labels(labels: Iterable[int], seed: str, at_most: int) -> list[int]:
    """Up to `at_most` class ids, drawn by the seed, in label order."""
    return sorted(int(name) for name in ranked(seed, map(str, labels))[:at_most])


def sample(rows: Sequence[Scanned], seed: str, per_class: int, at_most: int) -> dict[int, list[Scanned]]:
    """Up to `per_class` rows of every class, and never more than `at_most` in all.

    Where the classes are many, each shows fewer rows; where they are more than `at_most`, some show none.
    """
    groups = by_class(rows, seed)
    each = max(1, min(per_class, at_most // max(1, len(groups))))
    return {label: groups[label][:each] for label in some_labels(groups, seed, at_most)}


def worst(rows: Sequence[Scanned], count: int = WORST) -> list[Scanned]:
    """The rows to look at first: what the judge takes for another class, surest first, then the lowest CLIP margins.

    Without CLIP margins the judge's least sure come second. Rows that nobody scored are left out.
    """
    mistaken = sorted((row for row in rows if row.agrees is False), key=_most_mistaken)
    scored = (row for row in rows if row.agrees is not False and _margin(row) is not None)
    return (mistaken + sorted(scored, key=lambda row: (_margin(row) or 0.0, row.row_id)))[:count]


def _most_mistaken(row: Scanned) -> tuple[float, str]:
    return (-(row.judge_confidence or 0.0), row.row_id)


def _margin(row: Scanned) -> float | None:
    return row.judge_confidence if row.clip_margin is None else row.clip_margin

"""What a run amounts to, by class and in all: rows planned, written, failed, kept, and what the judge makes of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from diffaug_datasets.evaluate.gather import Gathered, Scanned

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

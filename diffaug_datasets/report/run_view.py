"""A run folder as a report sees it, finished or not: its rows, real images, receipts, and what is missing.

Which rows a page shows is drawn by the plan's id: a sample of every class, and the worst of all.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import PlanHeader, Shard, labels_of
from diffaug_datasets.core.plan_table import columns_of
from diffaug_datasets.core.rows import FailedRow, Outcome, PlanRow, row_urn
from diffaug_datasets.run.assembly import Assembled, finished
from diffaug_datasets.run.progress import Event, read_event
from diffaug_datasets.run.scores import FILE as QUALITY_FILE
from diffaug_datasets.run.scores import UNIT as QUALITY
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Receipt, Run

PREVIEW = re.compile(r"step-(?P<step>\d{1,9})-class-(?P<label>\d{1,6})\.png", re.ASCII)
WORST = 20  # rows to look at first
OPEN_SHARDS = 64  # at once
SCANNED = ("row_id", "label", "strength", "judge_label", "judge_confidence", "clip_margin")


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """The little that is read of every written row, and where the rest of it lies.

    `judge_label`: the class that a judge sees, or else whoever says what the images of this run show.
    """

    row_id: str
    label: int
    strength: float | None
    judge_label: int | None
    judge_confidence: float | None
    clip_margin: float | None
    shard: str
    index: int

    @property
    def agrees(self) -> bool | None:
        """Whether the judge sees the row's own class; None where nobody judged."""
        return None if self.judge_label is None else self.judge_label == self.label

    @property
    def margin(self) -> float | None:
        """How well the image fits its class: the CLIP margin, else the judge's confidence; None where neither is."""
        return self.judge_confidence if self.clip_margin is None else self.clip_margin


@dataclass(frozen=True)
class Picture:
    """One row with its encoded image."""

    planned: PlanRow
    outcome: Outcome
    data: bytes
    plan_id: str

    @property
    def urn(self) -> str:
        """Who the row is, under the plan that made it."""
        return row_urn(self.plan_id, self.planned.row_id)

    @property
    def draw(self) -> Mapping[str, object]:
        """The method's draws, parsed."""
        return _json_object(self.planned.draw)

    @property
    def measured(self) -> Mapping[str, object]:
        """What generation measured, parsed."""
        return _json_object(self.outcome.measured)


@dataclass(frozen=True)
class LossPoint:
    """Loss of a fit after so many steps."""

    step: int
    loss: float


@dataclass(frozen=True)
class FitPreview:
    """A picture of a class, drawn after so many steps of a fit."""

    step: int
    label: int
    data: bytes


@dataclass(frozen=True)
class FitState:
    """A fit of the plan and its receipt, None while it is not done."""

    unit: FitUnit
    receipt: Receipt | None


class RunView:
    """A run as a report sees it. Damaged or missing shards are left out and named in `gaps`."""

    def __init__(self, run: Run, row: PlanRow | None = None) -> None:
        """`row`: the only one that is looked at, with its sources; no other shard is opened."""
        self.run = run
        made, real = run.plan.shards(), run.plan.real_shards()
        if row is not None:
            made = tuple(shard for shard in made if any(one.row_id == row.row_id for one in shard.rows))
            real = tuple(shard for shard in real if any(one.source_ids[0] in row.source_ids for one in shard.rows))
        self.header: PlanHeader = run.plan.header
        self.assembled: Assembled | None = finished(run)
        self.gaps: list[str] = []
        self.receipts: dict[str, Receipt] = {}
        self._paths: dict[str, str] = {}
        self._table: ByteCache[str, pa.Table] = ByteCache(self._opened, lambda _: 1, OPEN_SHARDS)
        self.rows: tuple[ScannedRow, ...] = tuple(self._scan(made))
        self._real = [receipt.unit for receipt, _ in self._readable(real)]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels verbatim, in their order."""
        return self.header.class_names

    @property
    def failed(self) -> tuple[FailedRow, ...]:
        """Rows without an image, of the shards that are done."""
        return tuple(row for receipt in self.receipts.values() for row in receipt.failed)

    @cached_property
    def planned(self) -> Mapping[int, int]:
        """Class id -> synthetic rows of the plan."""
        return labels_of(self.run.plan.rows)

    @cached_property
    def failed_labels(self) -> Mapping[str, int]:
        """Row id -> class id of every failed row that is in the plan."""
        lost = {row.row_id for row in self.failed}
        rows = columns_of(self.run.plan.rows, "row_id", "label") if lost else ()
        return {row_id: label for row_id, label in rows if row_id in lost}

    @cached_property
    def dropped(self) -> Mapping[str, str]:
        """Row id -> reason of every row that the selection takes out; empty before there is one."""
        return self._selected(~pc.field("keep"))

    @cached_property
    def spared(self) -> Mapping[str, str]:
        """Row id -> what speaks against it, of every row that only a filter's `min_keep` keeps."""
        return self._selected(pc.field("keep") & pc.field("reason").is_valid())

    def _selected(self, rows: pc.Expression) -> Mapping[str, str]:
        """Row id -> reason, or '', of the written rows that are meant."""
        if self._selection is None:
            return {}
        chosen = self._selection.filter(rows)
        ids, reasons = chosen.column("row_id").to_pylist(), chosen.column("reason").to_pylist()
        return {row_id: reason or "" for row_id, reason in zip(ids, reasons, strict=True)}

    @cached_property
    def _selection(self) -> pa.Table | None:
        """Row id, whether it is kept, and the reason of every written row; None where there is none."""
        if self.run.receipt("selection") is None:
            return None
        try:
            return pq.read_table(self.run.fetched("selection.parquet"), columns=["row_id", "keep", "reason"])
        except (OSError, pa.ArrowException):
            self.gaps.append("selection.parquet cannot be read")
            return None

    @cached_property
    def fits(self) -> tuple[FitState, ...]:
        """Every fit of the plan."""
        return tuple(FitState(unit, self.run.receipt(unit.name)) for unit in self.run.plan.fits)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of fits and shards that a finished run would have."""
        fits = [fit.unit.name for fit in self.fits if fit.receipt is None]
        return (*fits, *(s.name for s in self.run.plan.shards() if s.name not in self.receipts))

    @cached_property
    def seen(self) -> Mapping[str, int]:
        """Row id -> the class that the run's oracle sees in it, where no column of the shards says so."""
        receipt = self.run.receipt(QUALITY)
        if receipt is None or not receipt.files:
            return {}
        try:
            table = pq.read_table(self.run.fetched(QUALITY_FILE), columns=["row_id", "seen_label"])
        except (OSError, pa.ArrowException):
            self.gaps.append(f"{QUALITY_FILE} cannot be read")
            return {}
        return {row["row_id"]: row["seen_label"] for row in table.to_pylist() if row["seen_label"] is not None}

    def picture(self, row: ScannedRow) -> Picture:
        """The whole of a scanned row."""
        return _picture(self._table(row.shard), row.index)

    def data(self, row: ScannedRow) -> bytes:
        """The encoded image of a scanned row alone."""
        image = self._table(row.shard).column("image")[row.index].as_py()
        return bytes(image["bytes"])

    def source(self, source_id: str) -> Picture | None:
        """The real image of that id; None where this run does not hold it (retrieved images, damaged shards)."""
        place = self._sources.get(source_id)
        return None if place is None else _picture(self._table(place[0]), place[1])

    def real_of(self, label: int) -> tuple[str, ...]:
        """Source ids of the real training images of a class, in the plan's order."""
        return self._real_by_label.get(label, ())

    def losses(self, fit: str) -> list[LossPoint]:
        """The loss curve of a fit as the run's events tell it, steps that overflowed left out; empty without events."""
        latest = {e.step: e.loss for e in self._events if e.unit == fit and e.loss is not None}
        return [LossPoint(step, latest[step]) for step in sorted(latest)]

    def previews(self, fit: str) -> list[FitPreview]:
        """Pictures that were drawn while a fit was learned here, by class and step; none where it was taken over."""
        receipt = self.run.receipt(fit)
        if receipt is not None and not receipt.evaluations:
            return []
        matches = [
            (PREVIEW.fullmatch(path.name), path) for path in (self.run.fit_folder(fit) / "previews").glob("*.png")
        ]
        known = [(int(match["label"]), int(match["step"]), path) for match, path in matches if match and path.is_file()]
        rows = [(label, step, path) for label, step, path in sorted(known) if label < len(self.class_names)]
        return [FitPreview(step, label, path.read_bytes()) for label, step, path in rows]

    @cached_property
    def _events(self) -> list[Event]:
        path = self.run.folder / "events.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        events = (read_event(line) for line in lines if b'"fit"' in line)
        return [event for event in events if event and event.kind == "fit"]

    @cached_property
    def _real_by_label(self) -> Mapping[int, tuple[str, ...]]:
        groups: dict[int, list[str]] = {}
        for split, label, sources in columns_of(self.run.plan.real, "split", "label", "source_ids"):
            if split == "train":
                groups.setdefault(label, []).append(sources[0])
        return {label: tuple(ids) for label, ids in groups.items()}

    @cached_property
    def _sources(self) -> Mapping[str, tuple[str, int]]:
        places: dict[str, tuple[str, int]] = {}
        for name in self._real:
            ids = self._table(name).column("source_ids").to_pylist()
            places |= {source_ids[0]: (name, index) for index, source_ids in enumerate(ids)}
        return places

    def _readable(self, shards: Sequence[Shard]) -> Iterator[tuple[Receipt, pa.Table]]:
        """The shards that are done and whole, one after the other; each is opened again by its path."""
        for shard in shards:
            if (receipt := self.run.receipt(shard.name)) is None:
                continue
            try:
                table = self.run.table(shard)
            except (OSError, pa.ArrowException):
                self.gaps.append(f"{shard.name}.arrow has a receipt but cannot be read")
                continue
            self._paths[shard.name] = str(self.run.shard_path(shard.name))
            yield receipt, table

    def _opened(self, name: str) -> pa.Table:
        return read_stream(self._paths[name])

    def _scan(self, shards: Sequence[Shard]) -> Iterator[ScannedRow]:
        for receipt, table in self._readable(shards):
            self.receipts[receipt.unit] = receipt
            for index, row in enumerate(table.select(SCANNED).to_pylist()):
                if (seen := self.seen.get(row["row_id"])) is not None:  # by whoever the run's own number rests on
                    row |= {"judge_label": seen, "judge_confidence": None}
                yield ScannedRow(**row, shard=receipt.unit, index=index)


def _picture(table: pa.Table, index: int) -> Picture:
    columns = table.slice(index, 1).to_pylist()[0]
    planned = PlanRow(**{name: columns[name] for name in PlanRow.model_fields if name in columns}, k=0)
    outcome = Outcome(**{name: columns[name] for name in Outcome.model_fields})
    return Picture(planned, outcome, bytes(columns["image"]["bytes"]), columns["plan_id"])


def _json_object(text: str) -> Mapping[str, object]:
    """A parsed JSON object; empty where the text is none (a column that somebody else wrote)."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def ranked(seed: str, names: Iterable[str]) -> list[str]:
    """The names in an order that only the seed decides."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest())


def by_class(rows: Sequence[ScannedRow], seed: str) -> dict[int, list[ScannedRow]]:
    """Class id -> its rows in seeded order; classes in label order, only those that have rows."""
    named = {row.row_id: row for row in rows}
    groups: dict[int, list[ScannedRow]] = {}
    for row_id in ranked(seed, named):
        groups.setdefault(named[row_id].label, []).append(named[row_id])
    return {label: groups[label] for label in sorted(groups)}


def some_labels(labels: Iterable[int], seed: str, at_most: int) -> list[int]:
    """Up to `at_most` class ids, drawn by the seed, in label order."""
    return sorted(int(name) for name in ranked(seed, map(str, labels))[:at_most])


def sample(rows: Sequence[ScannedRow], seed: str, per_class: int, at_most: int) -> dict[int, list[ScannedRow]]:
    """Up to `per_class` rows of every class, and never more than `at_most` in all.

    Where the classes are many, each shows fewer rows; where they are more than `at_most`, some show none.
    """
    groups = by_class(rows, seed)
    each = max(1, min(per_class, at_most // max(1, len(groups))))
    return {label: groups[label][:each] for label in some_labels(groups, seed, at_most)}


def worst(rows: Sequence[ScannedRow], count: int = WORST) -> list[ScannedRow]:
    """The rows to look at first: what the judge takes for another class, surest first, then the lowest CLIP margins.

    Without CLIP margins the judge's least sure come second. Rows that nobody scored are left out.
    """
    mistaken = [row for row in rows if row.agrees is False]
    scored = [row for row in rows if row.agrees is not False and row.margin is not None]
    mistaken.sort(key=lambda row: (-(row.judge_confidence or 0.0), row.row_id))
    scored.sort(key=lambda row: (row.margin or 0.0, row.row_id))
    return (mistaken + scored)[:count]

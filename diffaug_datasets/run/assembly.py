"""Once all shards are in: which written rows stay, then `run.json`, the list of files that readers trust.

Filters drop rows, and `min_keep` saves some of them; both are pure functions of the scores.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import sha256_file, write_atomically, write_text
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.numbered import listed
from diffaug_datasets.core.plan import Plan, labels_of, of_split
from diffaug_datasets.core.plan_table import column_of, columns_of
from diffaug_datasets.core.recipe import (
    CAPTION_MARGIN,
    CAPTION_PROBABILITY,
    CLASS_PROBABILITY,
    CONFIDENCE_MARGIN,
    LABEL_RANK,
    Filter,
)
from diffaug_datasets.core.rows import FailedRow, RowScores, Split
from diffaug_datasets.run.scores import UNIT, measured_rows
from diffaug_datasets.run.shards import schema_digest, stored_rows, write_arrow
from diffaug_datasets.run.shown import Oracle, Shown, class_shown, with_seen
from diffaug_datasets.run.stacks import merged_stacks
from diffaug_datasets.run.store import Receipt, Run

SELECTION_COLUMNS = ("row_id", "label", *(name for name in RowScores.model_fields))
# Which filters read out of `measured`.
PROBABILITIES = (CLASS_PROBABILITY, CAPTION_PROBABILITY, CAPTION_MARGIN, CONFIDENCE_MARGIN, LABEL_RANK)
RUN_SCHEMA = 1
REAL_MODES = (
    "Every image is decoded as RGB, so that rows go into one batch as they are; real images keep the bytes that they "
    "came with, grey and CMYK ones too."
)

ScoredRow = Mapping[str, Any]
"""What filters look at: `SELECTION_COLUMNS` of a written row by name, and the probabilities that some filter names."""


@dataclass(frozen=True)
class Selection:
    """Row id -> reason: of the rows that go, and of those that stay although a filter speaks against them."""

    dropped: Mapping[str, str]
    spared: Mapping[str, str]

    def reason(self, row_id: str) -> str | None:
        """What speaks against a row; None where nothing does."""
        return self.dropped.get(row_id) or self.spared.get(row_id)


class RunFile(BaseModel):
    """One file of the assembled set, relative to the run folder."""

    model_config = ConfigDict(frozen=True)

    path: str
    split: Split
    origin: str
    sha256: str
    size: int
    rows: int
    num_bytes: int


class ClassCount(BaseModel):
    """planned = written + failed; kept = written that the selection left in."""

    model_config = ConfigDict(frozen=True)

    name: str
    real: int
    planned: int
    written: int
    failed: int
    kept: int


class Assembled(BaseModel):
    """`run.json`: what a finished run consists of.

    `shown`: how often the kept images show their class. `columns`: of the dataset's own, as the plan's header has them.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(default=RUN_SCHEMA, alias="schema")
    name: str
    plan_id: str
    method: str
    class_names: tuple[str, ...]
    schema_digest: str
    files: tuple[RunFile, ...]
    counts: tuple[ClassCount, ...]
    shown: Shown | None = None
    failed: tuple[FailedRow, ...]
    stacks: tuple[dict[str, str], ...]
    tier: str
    seconds: float
    evaluations: int
    finished: str
    columns: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _only_what_is_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "columns" or value}

    def split_files(self, split: str) -> tuple[RunFile, ...]:
        """The files of a split, in order: real rows first."""
        return tuple(file for file in self.files if file.split == split)


def assemble(run: Run) -> Assembled:
    """Decide what stays, list the files, write `run.json` last.

    Raises:
        RunError: shards are missing.
    """
    plan, shards = run.plan, run.plan.shards()
    receipts = [receipt for shard in shards if (receipt := run.receipt(shard.name))]
    if missing := len(shards) - len(receipts):
        raise RunError(f"{run.where}: {missing} of {len(shards)} shards are missing; `diffaug generate` makes them.")
    dropped = _selection(run).dropped.keys()
    fits = [receipt for unit in plan.fits if (receipt := run.receipt(unit.name))]
    stacks = merged_stacks(receipt.stack for receipt in [*receipts, *fits])
    failed = tuple(row for receipt in receipts for row in receipt.failed)
    assembled = Assembled(
        name=plan.header.name,
        plan_id=plan.id,
        method=str(plan.header.recipe["method"]),
        class_names=plan.header.class_names,
        schema_digest=schema_digest(plan.header.class_names, plan.header.columns),
        files=tuple(_files(run, dropped)),
        counts=_counts(plan, {row.row_id for row in failed}, dropped),
        shown=_shown(run, dropped),
        failed=failed,
        stacks=stacks,
        tier="T0" if len(stacks) == 1 else "T2",
        seconds=round(sum(receipt.seconds for receipt in [*receipts, *fits]), 3),
        evaluations=sum(receipt.evaluations for receipt in [*receipts, *fits]),
        finished=max((receipt.finished for receipt in receipts), default=""),
        columns=plan.header.columns,
    )
    for file in assembled.files:
        if file.path.startswith("kept/"):
            run.send(file.path)
    texts = {"README.md": _card(assembled), "run.json": assembled.model_dump_json(indent=1, by_alias=True)}
    for name, text in texts.items():
        write_text(run.folder / name, text)
        run.send(name)
    return assembled


def finished(run: Run) -> Assembled | None:
    """`run.json`, if the run is finished and belongs to this plan."""
    path = run.fetched("run.json")
    try:
        assembled = Assembled.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: unreadable ({str(error).splitlines()[0]}); `diffaug generate` writes it again."
        ) from None
    return assembled if assembled.plan_id == run.plan.id else None


def current(run: Run) -> Assembled | None:
    """`run.json`, if every file that it names is there as it says, and is the one that its receipt names."""
    try:
        done = finished(run)
    except RunError:  # damaged: whoever asks this writes it again
        return None
    if done is None or not run.has("README.md") or not run.intact("selection"):
        return None
    run.refresh()
    shards = [run.receipt(shard.name) for shard in (*run.plan.real_shards(), *run.plan.shards())]
    receipts = {f"shards/{r.files[0].file}": r.files[0].sha256 for r in shards if r is not None}
    for file in done.files:
        path, stated = run.folder / file.path, receipts.get(file.path)
        if stated is None:  # kept rows, whose files have no receipt
            stated = sha256_file(path) if run.has(file.path) and path.is_file() else ""
        if stated != file.sha256 or not run.has(file.path):
            return None
    return done


def scored_rows(tables: Iterable[pa.Table], filters: Sequence[Filter]) -> list[ScoredRow]:
    """What filters look at of the rows of shards, in order."""
    asked = [name for name in PROBABILITIES if any(rule.column == name for rule in filters)]
    columns = [*SELECTION_COLUMNS, "measured"] if asked else SELECTION_COLUMNS
    rows: list[dict[str, Any]] = [row for table in tables for row in table.select(columns).to_pylist()]
    for row in rows if asked else ():
        measured = json.loads(row.pop("measured"))
        row.update({name: measured.get(name) for name in asked})
    return list(rows)


def select_rows(rows: Sequence[ScoredRow], filters: Sequence[Filter]) -> Selection:
    """What the filters make of the rows; each class keeps a filter's `min_keep` best."""
    dropped: dict[str, str] = {}
    spared: dict[str, str] = {}
    for rule in filters:
        reason = canonical(rule.model_dump(exclude_defaults=True))
        left = [row for row in rows if row["row_id"] not in dropped]
        known = sorted((row[rule.column], row["row_id"]) for row in left if row[rule.column] is not None)
        lowest = {row_id for _, row_id in known[: int(rule.lowest * len(known))]}  # ties go by row id
        losers = [row for row in left if row["row_id"] in lowest or _breaks(row, rule)]
        saved = _saved(left, losers, rule)
        dropped |= {row["row_id"]: reason for row in losers if row["row_id"] not in saved}
        spared |= dict.fromkeys(saved, reason)
    return Selection(dropped, {row_id: reason for row_id, reason in spared.items() if row_id not in dropped})


def _breaks(row: ScoredRow, rule: Filter) -> bool:
    value = row[rule.column]
    if value is None:
        return False
    low = rule.minimum is not None and value < rule.minimum
    high = rule.maximum is not None and value > rule.maximum
    return low or high or (rule.equals_label and value != row["label"])


def _saved(left: Sequence[ScoredRow], losers: Sequence[ScoredRow], rule: Filter) -> set[str]:
    """Ids of the losers that stay, so that each class keeps `min_keep` of the rows that are left."""
    kept = Counter(row["label"] for row in left)
    kept.subtract(Counter(row["label"] for row in losers))
    saved: set[str] = set()
    for row in sorted(losers, key=lambda r: (_distance(r, rule), r["row_id"])):
        if kept[row["label"]] < rule.min_keep:
            kept[row["label"]] += 1
            saved.add(row["row_id"])
    return saved


def _distance(row: ScoredRow, rule: Filter) -> float:
    """How far a row that the rule speaks against is from passing; the least is the best.

    Of rows with another class than their label, the one that the judge is least sure of is the best.
    """
    if rule.equals_label and row[rule.column] != row["label"]:
        return float(row["judge_confidence"])
    value = float(row[rule.column])
    if rule.maximum is not None and value > rule.maximum:
        return value - rule.maximum
    return (rule.minimum or 0.0) - value


def _selection(run: Run) -> Selection:
    """Which written rows stay; stored as selection.parquet and its receipt.

    A row that stays and has a reason is one that a filter's `min_keep` saved.
    """
    filters, shards = run.recipe.filters, run.plan.shards()
    selection = select_rows(scored_rows(map(run.table, shards), filters), filters) if filters else Selection({}, {})
    ids = [row_id for shard in shards for row_id in run.table(shard).column("row_id").to_pylist()]
    content = {
        "row_id": ids,
        "keep": [row_id not in selection.dropped for row_id in ids],
        "reason": list(map(selection.reason, ids)),
    }
    schema = pa.schema([("row_id", pa.string()), ("keep", pa.bool_()), ("reason", pa.string())])
    done = write_atomically(
        run.folder / "selection.parquet", lambda path: pq.write_table(pa.table(content, schema=schema), path)
    )
    run.write_receipt(Receipt(plan_id=run.plan.id, unit="selection", files=(done,), rows=len(ids)))
    return selection


def _files(run: Run, dropped: Set[str]) -> Iterator[RunFile]:
    """Whole shards; but where some row is dropped, the kept rows of every synthetic one, written once into `kept/`."""
    for shard in (*run.plan.real_shards(), *run.plan.shards()):
        receipt = run.receipt(shard.name)
        if receipt is None:
            continue
        path, file = f"shards/{receipt.files[0].file}", receipt.files[0]
        rows, num_bytes = receipt.rows, receipt.num_bytes
        if shard.kind == "synthetic" and dropped:
            table = run.table(shard)
            kept = [row_id for row_id in table["row_id"].to_pylist() if row_id not in dropped]
            if not kept:
                continue
            path = f"kept/{shard.name}-{digest(sorted(dropped))[:8]}.arrow"
            header = run.plan.header
            rows_left = stored_rows(table, kept, header.columns)
            written = write_arrow(run.folder / path, rows_left, header.class_names, header.columns)
            file, rows, num_bytes = written.done, written.rows, written.num_bytes
        yield RunFile(
            path=path,
            split=shard.split,
            origin=column_of(shard.rows[:1], "origin")[0].as_py(),
            sha256=file.sha256,
            size=file.size,
            rows=rows,
            num_bytes=num_bytes,
        )


def _counts(plan: Plan, failed: Set[str], dropped: Set[str]) -> tuple[ClassCount, ...]:
    def count(chosen: Set[str]) -> Counter[int]:
        rows = columns_of(plan.rows, "row_id", "label") if chosen else ()
        return Counter(label for row_id, label in rows if row_id in chosen)

    real, planned = labels_of(of_split(plan.real, "train")), labels_of(plan.rows)
    lost, out = count(failed), count(dropped)
    return tuple(
        ClassCount(
            name=name,
            real=real[i],
            planned=planned[i],
            written=planned[i] - lost[i],
            failed=lost[i],
            kept=planned[i] - lost[i] - out[i],
        )
        for i, name in enumerate(plan.header.class_names)
    )


def _shown(run: Run, dropped: Set[str]) -> Shown:
    """What the set's oracle, whom the receipt of its quality names, sees in the rows that stay."""
    receipt = run.receipt(UNIT)
    facts = receipt.measured if receipt else {}
    oracle = Oracle.model_validate(facts["oracle"]) if facts.get("oracle") else None
    seen = {}
    if oracle and oracle.column == "seen_label":
        seen = {row_id: row.seen_label for row_id, row in measured_rows(run).items() if row.seen_label is not None}
    table = with_seen(map(run.table, run.plan.shards()), seen, dropped)
    return class_shown(oracle, table, run.plan.header, str(facts.get("withheld") or ""))


def _card(assembled: Assembled) -> str:
    """A README that lets `load_dataset(<run folder>)` work; it names files, see `core.numbered`."""
    import yaml

    configs = [_config(assembled, assembled.name, default=True)]
    configs.append(_config(assembled, f"{assembled.name}_synthetic", default=False))
    head = yaml.safe_dump({"configs": configs}, sort_keys=False, allow_unicode=True)
    title = f"# {assembled.name}\n\nAugmented with {assembled.method}; plan {assembled.plan_id[:16]}.\n"
    modes = f"\n{REAL_MODES}\n" if any(file.origin == "real" for file in assembled.files) else ""
    return f"---\n{head}---\n\n{title}{modes}"


def _config(assembled: Assembled, name: str, *, default: bool) -> dict[str, object]:
    """All files, or, for a config that is not the default, those beside the real images: made or retrieved."""
    splits = []
    for split in ("train", "test"):
        paths = [f.path for f in assembled.split_files(split) if default or f.origin != "real"]
        if paths:
            splits.append({"split": split, "path": listed(paths)})
    return {"config_name": name, "data_files": splits, **({"default": True} if default else {})}

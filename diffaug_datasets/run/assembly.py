"""Selection, once all shards are in, then `run.json`: the list of files that readers trust.

Which written rows stay: filters drop rows, and `min_keep` saves some of them. Pure functions of the scores.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import sha256_file, write_atomically, write_text
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.recipe import CAPTION_PROBABILITY, CLASS_PROBABILITY, Filter
from diffaug_datasets.core.rows import FailedRow, Split
from diffaug_datasets.run.shards import read_stream, schema_digest, stored_rows, write_arrow
from diffaug_datasets.run.stacks import merged_stacks
from diffaug_datasets.run.store import Receipt, Run

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


RUN_SCHEMA = 1
REAL_MODES = (
    "Made images are RGB. Real ones keep the bytes that they came with, so a grey, CMYK or transparent one decodes to "
    'its own colour mode; `image.convert("RGB")` gives one for all.'
)


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
    """`run.json`: what a finished run consists of."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = Field(default=RUN_SCHEMA, alias="schema")
    name: str
    plan_id: str
    method: str
    class_names: tuple[str, ...]
    schema_digest: str
    files: tuple[RunFile, ...]
    counts: tuple[ClassCount, ...]
    failed: tuple[FailedRow, ...]
    stacks: tuple[dict[str, str], ...]
    tier: str
    seconds: float
    evaluations: int
    finished: str

    def split_files(self, split: str) -> tuple[RunFile, ...]:
        """The files of a split, in order: real rows first."""
        return tuple(file for file in self.files if file.split == split)


def assemble(run: Run) -> Assembled:
    """Decide what stays, list the files, write `run.json` last. Does nothing where that is done already.

    Raises:
        RunError: shards are missing.
    """
    receipts = _receipts(run)
    selection = _select(run, receipts)
    files = _real_files(run) + _kept_files(run, receipts, selection)
    assembled = _describe(run, receipts, selection, files)
    write_text(run.folder / "README.md", _card(assembled))
    write_text(run.folder / "run.json", assembled.model_dump_json(indent=1, by_alias=True))
    return assembled


def finished(run: Run) -> Assembled | None:
    """`run.json`, if the run is finished and belongs to this plan."""
    path = run.folder / "run.json"
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
    if done is None or not (run.folder / "README.md").exists() or not run.intact("selection"):
        return None
    shards = [run.receipt(shard.name) for shard in (*run.plan.real_shards(), *run.plan.shards())]
    receipts = {f"shards/{r.unit}.arrow": r.files[0].sha256 for r in shards if r is not None}
    return done if all(_is_current(run, file, receipts.get(file.path)) for file in done.files) else None


def _is_current(run: Run, file: RunFile, of_receipt: str | None) -> bool:
    """Shards are looked at with their receipts; the files of kept rows have none."""
    path = run.folder / file.path
    if of_receipt is not None:
        return of_receipt == file.sha256 and path.exists()
    return path.is_file() and sha256_file(path) == file.sha256


def _receipts(run: Run) -> list[Receipt]:
    shards = run.plan.shards()
    receipts = [run.receipt(shard.name) for shard in shards]
    missing = [s.name for s, r in zip(shards, receipts, strict=True) if r is None]
    if missing:
        raise RunError(
            f"{run.folder}: {len(missing)} of {len(shards)} shards are missing; `diffaug generate` makes them."
        )
    return [receipt for receipt in receipts if receipt is not None]


def _select(run: Run, receipts: Sequence[Receipt]) -> Mapping[str, str]:
    """row id -> reason for every written row that does not stay; stored as selection.parquet and its receipt.

    A row that stays and has a reason is one that a filter's `min_keep` saved.
    """
    filters = run.recipe.filters
    tables = [read_stream(str(run.shard_path(r.unit))).select(columns_for(filters)) for r in receipts]
    rows = [scored(row, filters) for row in pa.concat_tables(tables).to_pylist()]
    decision = verdicts(rows, filters)
    content = {
        "row_id": [row["row_id"] for row in rows],
        "keep": [row["row_id"] not in decision.dropped for row in rows],
        "reason": [decision.reason(row["row_id"]) for row in rows],
    }
    schema = pa.schema([("row_id", pa.string()), ("keep", pa.bool_()), ("reason", pa.string())])
    done = write_atomically(
        run.folder / "selection.parquet", lambda path: pq.write_table(pa.table(content, schema=schema), path)
    )
    run.write_receipt(Receipt(plan_id=run.plan.id, unit="selection", files=(done,), rows=len(rows)))
    return decision.dropped


def _real_files(run: Run) -> list[RunFile]:
    receipts = [(shard, run.receipt(shard.name)) for shard in run.plan.real_shards()]
    split: dict[str, Split] = {"real": "train", "test": "test"}
    return [_file(r, f"shards/{s.name}.arrow", split[s.name[:4]], "real") for s, r in receipts if r is not None]


def _file(receipt: Receipt, path: str, split: Split, origin: str) -> RunFile:
    done = receipt.files[0]
    return RunFile(
        path=path,
        split=split,
        origin=origin,
        sha256=done.sha256,
        size=done.size,
        rows=receipt.rows,
        num_bytes=receipt.num_bytes,
    )


def _kept_files(run: Run, receipts: Sequence[Receipt], dropped: Mapping[str, str]) -> list[RunFile]:
    """Whole shards where nothing is dropped; else the kept rows, written once into `kept/`."""
    origin = run.plan.rows[0].origin
    if not dropped:
        return [_file(r, f"shards/{r.unit}.arrow", "train", origin) for r in receipts]
    return [file for r in receipts if (file := _rewritten(run, r, dropped)) is not None]


def _rewritten(run: Run, receipt: Receipt, dropped: Mapping[str, str]) -> RunFile | None:
    table = read_stream(str(run.shard_path(receipt.unit)))
    kept = [row_id for row_id in table["row_id"].to_pylist() if row_id not in dropped]
    if not kept:
        return None
    path = f"kept/{receipt.unit}-{digest(sorted(dropped))[:8]}.arrow"
    written = write_arrow(run, run.folder / path, stored_rows(table, kept))
    return _file(written.receipt(run.plan.id, receipt.unit), path, "train", run.plan.rows[0].origin)


def _describe(run: Run, receipts: Sequence[Receipt], dropped: Mapping[str, str], files: Sequence[RunFile]) -> Assembled:
    plan = run.plan
    fits = [r for unit in plan.fits if (r := run.receipt(unit.name))]
    stacks = merged_stacks(r.stack for r in [*receipts, *fits])
    failed = tuple(row for receipt in receipts for row in receipt.failed)
    return Assembled(
        name=plan.header.name,
        plan_id=plan.id,
        method=str(plan.header.recipe["method"]),
        class_names=plan.header.class_names,
        schema_digest=schema_digest(plan.header.class_names),
        files=tuple(files),
        counts=_counts(plan, {f.row_id for f in failed}, set(dropped)),
        failed=failed,
        stacks=stacks,
        tier="T0" if len(stacks) == 1 else "T2",
        seconds=round(sum(r.seconds for r in [*receipts, *fits]), 3),
        evaluations=sum(r.evaluations for r in [*receipts, *fits]),
        finished=max((r.finished for r in receipts), default=""),
    )


def _counts(plan: Plan, failed: set[str], dropped: set[str]) -> tuple[ClassCount, ...]:
    def count(keep: Callable[[str], bool]) -> Counter[int]:
        return Counter(row.label for row in plan.rows if keep(row.row_id))

    real = Counter(row.label for row in plan.real if row.split == "train")
    planned, lost, out = count(lambda _: True), count(failed.__contains__), count(dropped.__contains__)
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


def _card(assembled: Assembled) -> str:
    """A README that lets `load_dataset(<run folder>)` work; it names files, never a pattern."""
    import yaml

    configs = [_config(assembled, assembled.name, default=True)]
    configs.append(_config(assembled, f"{assembled.name}_synthetic", default=False))
    head = yaml.safe_dump({"configs": configs}, sort_keys=False, allow_unicode=True)
    title = f"# {assembled.name}\n\nAugmented with {assembled.method}; plan {assembled.plan_id[:16]}.\n"
    modes = f"\n{REAL_MODES}\n" if any(file.origin == "real" for file in assembled.files) else ""
    return f"---\n{head}---\n\n{title}{modes}"


def _config(assembled: Assembled, name: str, *, default: bool) -> dict[str, Any]:
    """All files, or, for a config that is not the default, those beside the real images: made or retrieved."""
    splits = []
    for split in ("train", "test"):
        paths = [f.path for f in assembled.split_files(split) if default or f.origin != "real"]
        if paths:
            splits.append({"split": split, "path": paths})
    return {"config_name": name, "data_files": splits, **({"default": True} if default else {})}

"""Checking a published set: every digest, the plan, all rows and statements; and a sample of rows made again.

A check ends in one of three words: `ok`, which for a row means bit-equal, or within tolerance on another stack and said
so; `WRONG` for what is wrong; `could not check` where a model, a source or a version is not here.

The plan of a release, gone through once in parts: its id, its header, and what its rows add up to.

What `run.json` states, against the plan, the provenance, the recipe and the fits: whoever edits it is found out.

Not compared, for nothing published says the same: `seconds` and `evaluations` (receipts of shards stay with the
publisher), `finished`, `package`, `num_bytes` (memory, which follows from the version of Arrow), stacks of shards,
overrides of the gates `rows`, `local-model` and `test-leak`, `leak_check` of a set without its test split,
`release_schema` (the form of the file itself).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import DiffAugError, PublishError, install
from diffaug_datasets.core.identity import __version__, canonical
from diffaug_datasets.core.method import FitUnit, discover_methods
from diffaug_datasets.core.models import ALIASES, TINY
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA, PlanRow
from diffaug_datasets.release.layout import RELEASE_SCHEMA, Release, faults
from diffaug_datasets.release.provenance import (
    DIGITS,
    EXTRA,
    FAILED,
    FILTERED,
    KEPT,
    QUALITY_COLUMNS,
    SHOWN,
    licence_counts,
    model_terms,
    quality,
)
from diffaug_datasets.release.read import PART_ROWS, PROVENANCE_FILE, Provenance, Repository, shard_table
from diffaug_datasets.release.remake import Rebuilder
from diffaug_datasets.run.execute import resolve_device
from diffaug_datasets.run.rebuild import Closeness, levels
from diffaug_datasets.run.shards import schema_digest
from diffaug_datasets.sources.real import builder_facts


@dataclass(frozen=True)
class Planned:
    """What a plan says. `planned`: rows to make by label; `real`: real ones for training; `test`: real test rows."""

    id: str
    header: PlanHeader
    fits: tuple[str, ...]
    planned: Counter[int]
    real: Counter[int]
    test: int
    ids: pa.ChunkedArray


def read_planned(header: Path, rows: Path) -> Planned:
    """The plan in `plan.json` and `plan.parquet`, of any size.

    Raises:
        PublishError: it cannot be read, or its real rows do not come first.
    """
    try:
        told = json.loads(header.read_text(encoding="utf-8"))
        fits = tuple(FitUnit(unit["kind"], unit["payload"], tuple(unit["after"])).name for unit in told["fits"])
        return _added_up(PlanHeader(**told["header"]), fits, rows)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(f"{rows.name}: the plan cannot be read ({reason}); do not use it.") from None


def _added_up(header: PlanHeader, fits: tuple[str, ...], path: Path) -> Planned:
    hasher, made, real, test = hashlib.sha256(), Counter[int](), Counter[int](), 0
    hasher.update(_line(header.model_dump(mode="json", exclude={"source_revision"})))
    ids = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(PART_ROWS):
            batch.validate(full=True)
            ids.append(batch.column("row_id"))
            for row in (PlanRow(**columns) for columns in batch.to_pylist()):
                if row.origin == "real" and made:
                    raise ValueError(f"the real row {row.row_id} stands behind rows to make")
                counts = made if row.origin != "real" else real if row.split == "train" else Counter[int]()
                counts[row.label] += 1
                test += row.origin == "real" and row.split == "test"
                hasher.update(_line(row.model_dump(mode="json", by_alias=True)))
    return Planned(hasher.hexdigest(), header, fits, made, real, test, pa.chunked_array(ids, pa.string()))


def _line(value: Any) -> bytes:
    return canonical(value).encode() + b"\n"


ALWAYS = (PROVENANCE_FILE, "recipe.yaml", "plan.json", "plan.parquet", "selection.parquet")
COUNTED = ("origin", "split", "status", "label")


@dataclass(frozen=True)
class Statements:
    """A release and everything that its `run.json` is compared with; the digests are right already."""

    repository: Repository
    release: Release
    plan: Planned
    provenance: Provenance
    recipe: Recipe

    def disagreements(self) -> Iterator[str]:
        """A sentence for each statement that something else contradicts; it begins with the statement's key."""
        for key, (stated, found) in {**self._of_the_plan(), **self._of_the_rows()}.items():
            if stated != found:
                yield f"{key}: run.json states {_short(stated)}, {_short(found)} is so"
        yield from self._files()
        yield from self._beside()
        yield from self._stacks()
        yield from self._overrides()

    def _of_the_plan(self) -> dict[str, tuple[Any, Any]]:
        release, header = self.release, self.plan.header
        ours = release.schema_digest == schema_digest(release.class_names)
        return {
            **({"row_schema": (release.row_schema, ROW_SCHEMA)} if ours else {}),
            "name": (release.name, header.name),
            "plan_id": (release.plan_id, self.plan.id),
            "method": (release.method, header.recipe["method"]),
            "method_version": (release.method_version, header.method_version),
            "class_names": (release.class_names, header.class_names),
            "tier": (release.tier, "T0" if len(release.stacks) == 1 else "T2"),
        }

    def _of_the_rows(self) -> dict[str, tuple[Any, Any]]:
        """What the provenance gives anew."""
        release = self.release
        table = self.provenance.table(list(dict.fromkeys((*COUNTED, *QUALITY_COLUMNS, "row_id", "reason", "attempt"))))
        counted = table.group_by(list(COUNTED)).aggregate([("row_id", "count")]).to_pylist()
        found: dict[str, tuple[Any, Any]] = {}
        for label, count in enumerate(release.counts):
            found[f"counts of class {count.name}"] = (count.model_dump(), self._count(label, counted))
        found["counts"] = (len(release.counts), len(self.plan.header.class_names))
        real = {row["status"] for row in counted if row["origin"] == "real"}
        made = {row["status"] for row in counted if row["origin"] != "real"}
        found["real"] = (release.real, KEPT in real)
        found["recipe_only"] = (release.recipe_only, not release.files and KEPT not in made)
        found["failed"] = (_failed(release), _lost(table) if "reason" in table.column_names else set())
        close = quality(table)
        far = [n for n in {*close, *release.quality} if not _is_near(close.get(n), release.quality.get(n))]
        found["quality"] = ({n: release.quality.get(n) for n in far}, {n: close.get(n) for n in far})
        if release.row_schema == ROW_SCHEMA:
            stated = self.provenance.columns()
            found["extra"] = (release.extra, tuple(name for name in stated if name in EXTRA))
            found["licences"] = (release.licences, licence_counts(_Origins(self.provenance), SHOWN))
        if self.release.leak_check and self.plan.test:
            found["leak_check"] = (self.release.leak_check.test_images, self.plan.test)
        return found

    def _count(self, label: int, counted: list[dict[str, Any]]) -> dict[str, Any]:
        ended: Counter[str] = Counter()
        for row in counted:
            if row["label"] == label and row["origin"] != "real":
                ended[row["status"]] += row["row_id_count"]
        names, planned = self.plan.header.class_names, self.plan.planned[label]
        return {
            "name": names[label] if label < len(names) else "",
            "real": self.plan.real[label],
            "planned": planned,
            "written": ended.total() - ended[FAILED],
            "failed": ended[FAILED],
            "kept": ended.total() - ended[FAILED] - ended[FILTERED],
        }

    def _files(self) -> Iterator[str]:
        """Names say split, number and count; the origin of the rows is looked at in the shards."""
        release = self.release
        for split in dict.fromkeys(file.split for file in release.files):
            files = release.split_files(split)
            for number, file in enumerate(files):
                expected = f"{split}-{number:05d}-of-{len(files):05d}.{release.file_format}"
                if file.path != expected:
                    yield f"files: run.json names {file.path}, {expected} should stand there"

    def _beside(self) -> Iterator[str]:
        release = self.release
        named = {file.file for file in release.beside}
        needed = {*ALWAYS, *(f"fits/{name}/receipt.json" for name in self.plan.fits)}
        needed |= {"provenance.arrow"} if release.file_format == "arrow" else set()
        if missing := sorted(needed - named):
            yield f"beside: run.json does not name {missing[0]}"

    def _stacks(self) -> Iterator[str]:
        """Those of the fits are published with them; a fit names the networks that it needed, a set all of them."""
        stated = [stack.items() for stack in self.release.stacks]
        for file in self.repository.beside(self.release, "fits/"):
            if file.file.endswith("/receipt.json"):
                text = self.repository.checked(self.release, file.file, check=False).read_text(encoding="utf-8")
                stack = json.loads(text).get("stack") or {}
                if not any(stack.items() <= known for known in stated):
                    yield f"stacks: {file.file} was made on {_short(stack)}, which run.json does not state"

    def _overrides(self) -> Iterator[str]:
        """Gates whose reasons follow from what is published; judged as the same version of this package does."""
        release, header = self.release, self.plan.header
        if release.package != __version__:
            return
        planned, lost = self.plan.planned.total(), len(release.failed)
        emptied = not any(count.kept for count in release.counts)
        objected = {
            "licence": not (builder_facts(str(header.recipe["builder"])).redistributable or release.recipe_only),
            "model-licence": model_terms(header.backbone).licence == "unknown",
            "failed-rows": lost > self.recipe.failure_budget * planned or emptied,
        }
        for gate, says_no in objected.items():
            if says_no != (gate in release.overrides):
                said = "was not overruled" if says_no else "was overruled"
                yield f"overrides: run.json states that the gate {gate} {said}, and it {_does(says_no)}"


def _does(says_no: bool) -> str:
    return "says no" if says_no else "has nothing against this set"


@dataclass(frozen=True)
class _Origins:
    """What licences are counted from, row after row, each time anew."""

    provenance: Provenance

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.provenance.rows(columns=(*COUNTED, "source_ids", "measured"))


def _failed(release: Release) -> set[tuple[str, str | None, int]]:
    return {(row.row_id, row.reason, row.attempts) for row in release.failed}


def _lost(table: pa.Table) -> set[tuple[str, str | None, int]]:
    rows = table.filter(pc.field("status") == FAILED).select(["row_id", "reason", "attempt"]).to_pylist()
    return {(row["row_id"], row["reason"], row["attempt"]) for row in rows}


def _is_near(one: float | None, other: float | None) -> bool:
    """Equal but for the last digit, which another version of Arrow may round the other way."""
    return one is not None and other is not None and abs(one - other) < 1.5 * 10**-DIGITS


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


Outcome = Literal["ok", "WRONG", "could not check"]
OK: Outcome = "ok"
WRONG: Outcome = "WRONG"
UNKNOWN: Outcome = "could not check"
SAMPLE = "sample"
NAMED = 5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `told` says what was found."""

    name: str
    outcome: Outcome
    told: str


@dataclass(frozen=True)
class Verification:
    """What is known of a published set: where it is, the name and plan of its config, and every check in its order."""

    where: str
    name: str
    plan_id: str
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; what could not be checked is not wrong."""
        return all(check.outcome != WRONG for check in self.checks)


def verify(
    place: str | os.PathLike[str],
    *,
    sample: int = 0,
    config: str | None = None,
    revision: str | None = None,
    source: str | None = None,
    backbone: str | None = None,
    device: str = "auto",
    progress: Callable[[Verification], None] | None = None,
) -> Verification:
    """Check a published set: every digest, plan, schema, labels and counts, and a sample of rows made again.

    Args:
        place: `org/name` on the Hub, a folder, or an address such as `s3://bucket/name`.
        sample: how many rows are made again, spread evenly over the plan; more than 0 needs the extra `generate`.
        config: the config that is checked; default: the first of the set.
        revision: a tag, branch or commit of the Hub.
        source: your own copy of the real images, where the set does not carry them: a folder or a Hub id.
        backbone: your own copy of a model that the publisher has in a folder; it is compared by its digest.
        device: where the sample is made: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: called once before the first check, and after each with what is known by then.

    Returns:
        The checks. Each ends in `ok`, `WRONG` or `could not check`; after a wrong digest nothing else is opened.

    Raises:
        PublishError: nothing is published there, no such config is, or it cannot be reached.
        RunError: a sample is wanted on a device that is not there.

    >>> from pathlib import Path
    >>> from diffaug_datasets import generate, plan, publish, verify
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> published = publish(run, Path("shelf/shirts").absolute().as_uri())
    >>> found = verify("shelf/shirts", sample=1)
    >>> found.passed, found.checks[0].name, found.checks[0].outcome
    (True, 'digests', 'ok')
    """
    where = resolve_device(device) if sample else "cpu"
    opened = Rebuilder.open(
        os.fspath(place), config=config, revision=revision, source=source, backbone=backbone, device=where
    )
    with opened as rebuilder:
        repository, release = rebuilder.repository, rebuilder.release
        found = Verification(repository.where, release.name, release.plan_id)
        if progress:
            progress(found)
        for check in run_checks(repository, release, rebuilder, sample):
            found = replace(found, checks=(*found.checks, check))
            if progress:
                progress(found)
    return found


def run_checks(repository: Repository, release: Release, rebuilder: Rebuilder, sample: int) -> Iterator[Check]:
    """Check after check; a file whose digest is wrong is not opened, and nothing is looked at after that.

    `sample`: how many rows are made again, spread evenly over the plan; the last check sums them up.
    """
    digests = _tried("digests", lambda: _digests(repository, release))
    yield digests
    if digests.outcome != OK:
        return
    looked = Looked(repository, release)
    yield _tried("plan", looked.at_plan)
    yield _tried("rows", looked.at_rows)
    yield _tried("counts", looked.at_counts)
    yield _tried("statements", looked.at_statements)
    yield _version(release)
    made_again, found = [], []
    for row in rebuilder.sample(sample) if sample else ():
        check, closeness = _rebuilt(rebuilder, row)
        made_again.append(check)
        found += [closeness] if closeness else []
        yield check
    if made_again:
        yield _summed_up(made_again, found)


class Wrong(Exception):
    """A check that failed, in words."""


class NotHere(Exception):
    """What keeps a check from being made here, in words."""


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, OK, check())
    except NotHere as error:
        return Check(name, UNKNOWN, str(error))
    except (Wrong, DiffAugError) as error:
        return Check(name, WRONG, str(error))


def _digests(repository: Repository, release: Release) -> str:
    names = [*(file.path for file in release.files), *(file.file for file in release.beside)]
    for name in names:
        repository.checked(release, name)
    return f"{len(names)} files have the bytes that run.json states"


@dataclass
class Looked:
    """A release whose digests are right, looked at in parts; tables are never in memory whole."""

    repository: Repository
    release: Release
    plan: Planned | None = None

    def at_plan(self) -> str:
        """The id is the digest of the rows, so nobody changed a row without changing the id."""
        if self.release.method not in discover_methods():
            raise NotHere(f"method {self.release.method!r} is not installed here; install the package that brings it")
        header, rows = (self.repository.checked(self.release, name) for name in ("plan.json", "plan.parquet"))
        self.plan = read_planned(header, rows)
        if self.plan.id != self.release.plan_id:
            raise Wrong(f"the plan's rows give {self.plan.id[:16]}, run.json states {self.release.plan_id[:16]}")
        stated, planned = self.recipe.identity(), self.plan.header.recipe
        if wrong := [key for key in planned if stated.get(key) != planned[key]]:
            raise Wrong(f"recipe.yaml is not the recipe of the plan: {', '.join(wrong)}")
        model = {TINY: "diffaug-tiny", **ALIASES}.get(self.recipe.backbone.id, self.recipe.backbone.id)
        if model != (made := self.plan.header.backbone.rpartition("@")[0]):
            raise Wrong(f"recipe.yaml is not the recipe of the plan: it names the model {model}, the plan {made}")
        return f"plan {self.plan.id[:16]} is the digest of its {self.plan.planned.total()} rows"

    @cached_property
    def recipe(self) -> Recipe:
        """The published recipe."""
        return Recipe.from_yaml(self.repository.checked(self.release, "recipe.yaml"), folder=None)

    def at_rows(self) -> str:
        """Schema, labels, origin and images of every shard."""
        release = self.release
        ours = schema_digest(release.class_names) == release.schema_digest
        if release.row_schema > ROW_SCHEMA or (release.row_schema == ROW_SCHEMA and not ours):
            raise Wrong(f"the columns are not those of row schema {ROW_SCHEMA}, which this version writes; update it")
        total = 0
        for file in release.files:
            table = shard_table(self.repository, release, file.path, check=False)
            for fault in faults(table, file, release.class_names, release.schema_digest):
                raise Wrong(fault)
            if not pc.all(pc.equal(table.column("origin"), file.origin), min_count=0).as_py():
                raise Wrong(f"{file.path} has rows that are not {file.origin}, as run.json states")
            total += table.num_rows
        older = "" if ours else f", columns of the older row schema {release.row_schema}"
        classes, shards = len(release.counts), len(release.files)
        return f"{total} rows in {shards} shards have images, one schema, labels of {classes} classes{older}"

    def at_counts(self) -> str:
        """The plan, the provenance and the shards have the same rows."""
        provenance = Provenance.of(self.repository, self.release, check=False)
        table = provenance.table(("row_id", "origin", "status"))
        if self.plan is not None and (odd := _unlike(self.plan.ids, table.column("row_id"))):
            raise Wrong(f"{odd} rows are not in both the plan and the provenance, or are there twice")
        shards = (shard_table(self.repository, self.release, f.path, check=False) for f in self.release.files)
        there = [chunk for shard in shards for chunk in shard.column("row_id").chunks]
        named = table.filter(pc.field("status") == KEPT).column("row_id")
        if odd := _unlike(pa.chunked_array(there, pa.string()), named):
            raise Wrong(f"{odd} rows are not in both the shards and the provenance, or are there twice")
        made = table.filter(pc.field("origin") != "real")
        kept = made.filter(pc.field("status").isin(SHOWN)).num_rows
        return f"{made.num_rows} planned rows, {kept} kept, the same in plan, provenance and shards"

    def at_statements(self) -> str:
        """Everything else that `run.json` states."""
        if self.plan is None:
            raise NotHere("there is no plan that run.json could be compared with")
        provenance = Provenance.of(self.repository, self.release, check=False)
        found = Statements(self.repository, self.release, self.plan, provenance, self.recipe)
        if wrong := list(found.disagreements()):
            raise Wrong("; ".join(wrong[:NAMED]) + (f"; and {len(wrong) - NAMED} more" if wrong[NAMED:] else ""))
        return "run.json agrees with the plan, the recipe, the provenance and the fits"


def _unlike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """How many ids are not in both, or there twice; 0 where both hold the same ids once each."""
    ids = [pc.take(ids, pc.sort_indices(ids)).combine_chunks() for ids in (one, other)]
    if ids[0].equals(ids[1]) and pc.count_distinct(ids[0]).as_py() == len(ids[0]):
        return 0
    lone = [pc.sum(pc.invert(pc.is_in(a, b))).as_py() or 0 for a, b in (ids, ids[::-1])]
    twice = sum(len(found) - pc.count_distinct(found).as_py() for found in ids)
    return int(sum(lone) + twice)


def _version(release: Release) -> Check:
    """An older form is read, and said so; rows of another method version cannot be made again here."""
    method = discover_methods().get(release.method)
    ours = f"{method.VERSION}" if method else "none"
    schema = f"release schema {release.release_schema} of {RELEASE_SCHEMA}"
    rows = "" if release.row_schema == ROW_SCHEMA else f"; row schema {release.row_schema} of {ROW_SCHEMA}"
    return Check("version", OK, f"{release.method} version {release.method_version}, here {ours}; {schema}{rows}")


def _rebuilt(rebuilder: Rebuilder, row: Mapping[str, Any]) -> tuple[Check, Closeness | None]:
    """A row made again; wrong is only what the set itself gets wrong, not what is missing here."""
    try:
        _, closeness = rebuilder.rebuild(row)
    except PublishError as error:
        return Check("rebuild", WRONG, str(error)), None
    except DiffAugError as error:
        return Check("rebuild", UNKNOWN, str(error)), None
    except ModuleNotFoundError as error:
        told = f"row {row['row_id']}: {error.name} is not installed; run {install('generate')}"
        return Check("rebuild", UNKNOWN, told), None
    outcome = OK if closeness.is_good else UNKNOWN if closeness.is_unknown else WRONG
    return Check("rebuild", outcome, str(closeness)), closeness


def _summed_up(checks: Sequence[Check], found: Sequence[Closeness]) -> Check:
    """All rows of the sample in one sentence."""
    wrong = [check for check in checks if check.outcome == WRONG]
    unknown = [check for check in checks if check.outcome == UNKNOWN]
    within = [closeness for closeness in found if closeness.is_within]
    if wrong:
        return Check(SAMPLE, WRONG, f"{len(wrong)} of {len(checks)} rows are not what they should be")
    left = f"; {len(unknown)} could not be checked" if unknown else ""
    if len(unknown) == len(checks):
        return Check(SAMPLE, UNKNOWN, f"none of {len(checks)} rows could be made again or compared")
    if within:
        most = max(closeness.largest or 0 for closeness in within)
        where = f"on {len(within)} of {len(checks)} rows ({within[0].elsewhere})"
        return Check(SAMPLE, OK, f"within tolerance: {levels(most)} {where}{left}")
    return Check(SAMPLE, OK, f"{len(checks) - len(unknown)} of {len(checks)} rows are bit-equal{left}")

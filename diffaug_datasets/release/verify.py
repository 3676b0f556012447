"""Checking a published set: every digest, the plan, all rows and statements; and a sample of rows made again.

A check ends in one of three words: `ok`, which for a row means bit-equal, or within tolerance on another stack and said
so; `WRONG` for what is wrong; `could not check` where a model, a source or a version is not here.

What `run.json` states is compared with the plan, the provenance, the recipe and the fits, so that whoever edits it is
found out. Not compared, for nothing published says the same: `seconds` and `evaluations` (receipts of shards stay with
the publisher), `finished`, `package`, `num_bytes` (memory, which follows from the version of Arrow), stacks of shards,
overrides of the gates `rows`, `local-model` and `test-leak`, `leak_check` of a set without its test split,
`release_schema` (the form of the file itself), and the numbers of `measures.json`, which only measuring again gives.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import DiffAugError, PublishError, install, one_line
from diffaug_datasets.core.files import read_text, sha256_file
from diffaug_datasets.core.identity import __version__, canonical
from diffaug_datasets.core.method import FitUnit, discover_methods
from diffaug_datasets.core.models import ALIASES, TINY
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA, PlanRow
from diffaug_datasets.release.bench_files import stated_digests
from diffaug_datasets.release.card_metadata import UNKNOWN_TERMS, model_terms
from diffaug_datasets.release.layout import PART_ROWS, PROVENANCE_FILE, README, RELEASE_SCHEMA, Release, shard_faults
from diffaug_datasets.release.measures import (
    MEASURES_FILE,
    SELECTION_FILE,
    MeasuresFile,
    differs,
    selection_digest,
)
from diffaug_datasets.release.provenance import (
    DIGITS,
    FAILED,
    FILTERED,
    KEPT,
    QUALITY_COLUMNS,
    SHOWN,
    ProvenanceRow,
    extra_columns,
    licence_counts,
    quality,
)
from diffaug_datasets.release.read import Provenance, shard_table
from diffaug_datasets.release.rebuild import Rebuilder
from diffaug_datasets.release.repository import MOST_BYTES, Repository
from diffaug_datasets.run.execute import resolve_device
from diffaug_datasets.run.rebuild import Closeness, levels
from diffaug_datasets.run.shards import schema_digest
from diffaug_datasets.run.shown import SEEN_COLUMNS, class_shown
from diffaug_datasets.run.store import Receipt
from diffaug_datasets.sources.real import recipe_facts

Outcome = Literal["ok", "WRONG", "could not check"]
OK: Outcome = "ok"
WRONG: Outcome = "WRONG"
UNKNOWN: Outcome = "could not check"
SAMPLE = "sample"
MOST_NAMED = 5  # statements in one sentence
ALWAYS = (PROVENANCE_FILE, "recipe.yaml", "plan.json", "plan.parquet", "selection.parquet")
COUNTED = ("origin", "split", "status", "label")


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
    >>> verification = verify("shelf/shirts", sample=1)
    >>> verification.passed, verification.checks[0].name, verification.checks[0].outcome
    (True, 'digests', 'ok')
    """
    where = resolve_device(device) if sample else "cpu"
    opened = Rebuilder.open(
        os.fspath(place), config=config, revision=revision, source=source, backbone=backbone, device=where
    )
    with opened as rebuilder:
        repository, release = rebuilder.repository, rebuilder.release
        verification = Verification(repository.where, release.name, release.plan_id)
        if progress:
            progress(verification)
        for check in run_checks(repository, release, rebuilder, sample):
            verification = replace(verification, checks=(*verification.checks, check))
            if progress:
                progress(verification)
    return verification


def run_checks(repository: Repository, release: Release, rebuilder: Rebuilder, sample: int) -> Iterator[Check]:
    """Check after check; a file whose digest is wrong is not opened, and nothing is looked at after that.

    `sample`: how many rows are made again, spread evenly over the plan; the last check sums them up.
    """

    def digests_are_right() -> str:
        names = [*(file.path for file in release.files), *(file.file for file in release.beside)]
        for name in names:
            repository.checked(release, name)
        return f"{len(names)} files have the bytes that run.json states"

    digests = _tried("digests", digests_are_right)
    yield digests
    if digests.outcome != OK:
        return
    checks = ReleaseChecks(repository, release)
    yield _tried("plan", checks.plan_is_its_digest)
    yield _tried("rows", checks.rows_are_whole)
    yield _tried("counts", checks.rows_are_the_same)
    yield _tried("statements", checks.statements_agree)
    if stated := checks.bench_files():
        yield _tried("bench", lambda: checks.bench_is_whole(stated))
    method = discover_methods().get(release.method)
    here = f"{method.VERSION}" if method else "none"
    schema = f"release schema {release.release_schema} of {RELEASE_SCHEMA}"
    rows = "" if release.row_schema == ROW_SCHEMA else f"; row schema {release.row_schema} of {ROW_SCHEMA}"
    yield Check("version", OK, f"{release.method} version {release.method_version}, here {here}; {schema}{rows}")
    outcomes, measured = [], []
    for row in rebuilder.sample(sample) if sample else ():
        check, closeness = _rebuilt(rebuilder, row)
        outcomes.append(check)
        measured += [closeness] if closeness else []
        yield check
    if outcomes:
        yield _summed_up(outcomes, measured)


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


def _rebuilt(rebuilder: Rebuilder, row: ProvenanceRow) -> tuple[Check, Closeness | None]:
    """A row made again; wrong is only what the set itself gets wrong, not what is missing here."""
    try:
        _, closeness = rebuilder.rebuild(row)
    except PublishError as error:
        return Check("rebuild", WRONG, str(error)), None
    except DiffAugError as error:
        return Check("rebuild", UNKNOWN, str(error)), None
    except ModuleNotFoundError as error:
        missing = f"row {row['row_id']}: {error.name} is not installed; run {install('generate')}"
        return Check("rebuild", UNKNOWN, missing), None
    outcome = OK if closeness.is_good else UNKNOWN if closeness.is_unknown else WRONG
    return Check("rebuild", outcome, str(closeness)), closeness


def _summed_up(checks: Sequence[Check], measured: Sequence[Closeness]) -> Check:
    """All rows of the sample in one sentence."""
    wrong = [check for check in checks if check.outcome == WRONG]
    unknown = [check for check in checks if check.outcome == UNKNOWN]
    within = [closeness for closeness in measured if closeness.is_within]
    if wrong:
        return Check(SAMPLE, WRONG, f"{len(wrong)} of {len(checks)} rows are not what they should be")
    left = f"; {len(unknown)} could not be checked" if unknown else ""
    if len(unknown) == len(checks):
        return Check(SAMPLE, UNKNOWN, f"none of {len(checks)} rows could be made again or compared")
    if within:
        most = max(closeness.largest or 0 for closeness in within)
        where = f"on {len(within)} of {len(checks)} rows ({within[0].why})"
        return Check(SAMPLE, OK, f"within tolerance: {levels(most)} {where}{left}")
    return Check(SAMPLE, OK, f"{len(checks) - len(unknown)} of {len(checks)} rows are bit-equal{left}")


@dataclass
class ReleaseChecks:
    """Checks of a release whose digests are right, each a sentence of what holds; tables are never in memory whole.

    A check raises `Wrong` with what is wrong, and `NotHere` with what keeps it from being made here.
    """

    repository: Repository
    release: Release
    plan: "Planned | None" = None

    def plan_is_its_digest(self) -> str:
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

    def rows_are_whole(self) -> str:
        """Schema, labels, origin and images of every shard."""
        release = self.release
        if (release.row_schema, release.schema_digest) != (
            ROW_SCHEMA,
            schema_digest(release.class_names, release.columns),
        ):
            raise Wrong(f"the columns are not those of row schema {ROW_SCHEMA}, which this version writes; update it")
        total = 0
        for file in release.files:
            table = shard_table(self.repository, release, file.path, check=False)
            for fault in shard_faults(table, file, release):
                raise Wrong(fault)
            if not pc.all(pc.equal(table.column("origin"), file.origin), min_count=0).as_py():
                raise Wrong(f"{file.path} has rows that are not {file.origin}, as run.json states")
            total += table.num_rows
        classes, shards = len(release.counts), len(release.files)
        return f"{total} rows in {shards} shards have images, one schema, labels of {classes} classes"

    def rows_are_the_same(self) -> str:
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

    def statements_agree(self) -> str:
        """Everything else that `run.json` states."""
        if self.plan is None:
            raise NotHere("there is no plan that run.json could be compared with")
        provenance = Provenance.of(self.repository, self.release, check=False)
        statements = Statements(self.repository, self.release, self.plan, provenance, self.recipe)
        if wrong := list(statements.disagreements()):
            more = f"; and {len(wrong) - MOST_NAMED} more" if wrong[MOST_NAMED:] else ""
            raise Wrong("; ".join(wrong[:MOST_NAMED]) + more)
        return "run.json agrees with the plan, the recipe, the provenance and the fits"

    def bench_files(self) -> dict[str, str]:
        """Path -> sha256 of the tables that the card's bench names; none where it has no bench."""
        return stated_digests(read_text(self.repository.files.local(README), MOST_BYTES[README]))

    def bench_is_whole(self, stated: Mapping[str, str]) -> str:
        """The tables of the bench have the bytes that the card states."""
        for path, sha256 in stated.items():
            if sha256_file(self.repository.files.local(path)) != sha256:
                raise Wrong(f"{path} has other bytes than README.md states")
        return f"{len(stated)} tables of a bench have the bytes that README.md states"


def _unlike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """How many ids are not in both, or there twice; 0 where both hold the same ids once each."""
    ids = [pc.take(ids, pc.sort_indices(ids)).combine_chunks() for ids in (one, other)]
    if ids[0].equals(ids[1]) and pc.count_distinct(ids[0]).as_py() == len(ids[0]):
        return 0
    lone = [pc.sum(pc.invert(pc.is_in(a, b))).as_py() or 0 for a, b in (ids, ids[::-1])]
    twice = sum(len(column) - pc.count_distinct(column).as_py() for column in ids)
    return int(sum(lone) + twice)


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
        content = json.loads(header.read_text(encoding="utf-8"))
        fits = tuple(FitUnit(unit["kind"], unit["payload"], tuple(unit["after"])).name for unit in content["fits"])
        return _added_up(PlanHeader(**content["header"]), fits, rows)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, pa.ArrowException) as error:
        reason = one_line(error)
        raise PublishError(f"{rows.name}: the plan cannot be read ({reason}); do not use it.") from None


def _added_up(header: PlanHeader, fits: tuple[str, ...], path: Path) -> Planned:
    hasher, made, real, test = hashlib.sha256(), Counter[int](), Counter[int](), 0

    def digest_line(value: Mapping[str, object]) -> None:
        hasher.update(canonical(value).encode() + b"\n")

    digest_line(header.model_dump(mode="json", exclude={"source_revision"}))
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
                digest_line(row.model_dump(mode="json", by_alias=True))
    return Planned(hasher.hexdigest(), header, fits, made, real, test, pa.chunked_array(ids, pa.string()))


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
        release, header = self.release, self.plan.header
        of_the_plan = {
            "row_schema": (release.row_schema, ROW_SCHEMA),
            "name": (release.name, header.name),
            "plan_id": (release.plan_id, self.plan.id),
            "method": (release.method, header.recipe["method"]),
            "method_version": (release.method_version, header.method_version),
            "class_names": (release.class_names, header.class_names),
            "tier": (release.tier, "T0" if len(release.stacks) == 1 else "T2"),
        }
        for key, (stated, actual) in {**of_the_plan, **self._of_the_rows()}.items():
            if stated != actual:
                yield f"{key}: run.json states {_short(stated)}, {_short(actual)} is so"
        yield from self._files()
        yield from self._stacks()
        yield from self._overrides()
        yield from self._measures()

    def _of_the_rows(self) -> dict[str, tuple[object, object]]:
        """Statement -> what is stated, and what the provenance gives anew."""
        release, class_names = self.release, self.plan.header.class_names
        columns = (*COUNTED, *QUALITY_COLUMNS, *SEEN_COLUMNS, "row_id", "reason", "attempt")
        table = self.provenance.table(list(dict.fromkeys(columns)))
        counted = table.group_by(list(COUNTED)).aggregate([("row_id", "count")]).to_pylist()
        ended: dict[int, Counter[str]] = {}
        for group in counted:
            if group["origin"] != "real":
                ended.setdefault(group["label"], Counter())[group["status"]] += group["row_id_count"]
        statements: dict[str, tuple[object, object]] = {}
        for label, count in enumerate(release.counts):
            name, of_class = class_names[label] if label < len(class_names) else "", ended.get(label, Counter())
            actual = {
                "name": name,
                "real": self.plan.real[label],
                "planned": self.plan.planned[label],
                "written": of_class.total() - of_class[FAILED],
                "failed": of_class[FAILED],
                "kept": of_class.total() - of_class[FAILED] - of_class[FILTERED],
            }
            statements[f"counts of class {count.name}"] = (count.model_dump(), actual)
        real = {group["status"] for group in counted if group["origin"] == "real"}
        made = {group["status"] for group in counted if group["origin"] != "real"}
        failed = table.filter(pc.field("status") == FAILED).select(["row_id", "reason", "attempt"]).to_pylist()
        stated, measured = release.quality, quality(table)
        rounding = 1.5 * 10**-DIGITS  # another version of Arrow may round the last digit the other way
        far = [
            name
            for name in {*measured, *stated}
            if name not in measured or name not in stated or not abs(measured[name] - stated[name]) < rounding
        ]
        statements |= {
            "counts": (len(release.counts), len(class_names)),
            "real": (release.real, KEPT in real),
            "recipe_only": (release.recipe_only, not release.files and KEPT not in made),
            "failed": (
                {(row.row_id, row.reason, row.attempts) for row in release.failed},
                {(row["row_id"], row["reason"], row["attempt"]) for row in failed},
            ),
            "quality": ({name: stated.get(name) for name in far}, {name: measured.get(name) for name in far}),
            "shown": self._shown(table),
            "extra": (release.extra, extra_columns(self.provenance.columns())),
            "licences": (release.licences, licence_counts(LicenceRows(self.provenance), SHOWN)),
        }
        if release.leak_check and self.plan.test:
            statements["leak_check"] = (release.leak_check.test_images, self.plan.test)
        return statements

    def _shown(self, table: pa.Table) -> tuple[object, object]:
        """Class -> what the stated oracle sees in its kept rows, as stated and counted anew; its own word is taken."""
        if self.release.shown is None or self.release.shown.oracle is None:
            return None, None
        kept = table.filter((pc.field("origin") != "real") & pc.field("status").isin(SHOWN))
        counted = class_shown(self.release.shown.oracle, kept, self.plan.header)
        stated, actual = (
            {one.name: one.model_dump(exclude={"remark"}) for one in shown.classes}
            for shown in (self.release.shown, counted)
        )
        return stated, actual

    def _files(self) -> Iterator[str]:
        """Names say split, number and count; the origin of the rows is looked at in the shards."""
        release = self.release
        for split in dict.fromkeys(file.split for file in release.files):
            files = release.split_files(split)
            for number, file in enumerate(files):
                expected = f"{split}-{number:05d}-of-{len(files):05d}.{release.file_format}"
                if file.path != expected:
                    yield f"files: run.json names {file.path}, {expected} should stand there"
        needed = {*ALWAYS, *(f"fits/{name}/receipt.json" for name in self.plan.fits)}
        needed |= {"provenance.arrow"} if release.file_format == "arrow" else set()
        if missing := sorted(needed - {file.file for file in release.beside}):
            yield f"beside: run.json does not name {missing[0]}"

    def _stacks(self) -> Iterator[str]:
        """Those of the fits are published with them; a fit names the networks that it needed, a set all of them."""
        stated = [stack.items() for stack in self.release.stacks]
        for file in self.repository.beside(self.release, "fits/"):
            if file.file.endswith("/receipt.json"):
                path = self.repository.checked(self.release, file.file, check=False)
                try:
                    stack = Receipt.model_validate_json(path.read_bytes()).stack
                except ValueError:
                    yield f"stacks: {file.file} is no receipt that can be read"
                    continue
                if not any(stack.items() <= known for known in stated):
                    yield f"stacks: {file.file} was made on {_short(stack)}, which run.json does not state"

    def _measures(self) -> Iterator[str]:
        """Published measures are of these rows; that the numbers are right, only who measures again can say."""
        if not self.repository.beside(self.release, MEASURES_FILE):
            return
        path = self.repository.checked(self.release, MEASURES_FILE, check=False)
        try:
            kept = MeasuresFile.model_validate_json(read_text(path))
        except (OSError, ValueError):
            yield f"{MEASURES_FILE}: cannot be read"
            return
        selection = selection_digest(self.repository.checked(self.release, SELECTION_FILE, check=False))
        if reason := differs(kept, self.plan.id, selection):
            yield f"{MEASURES_FILE}: {reason}"

    def _overrides(self) -> Iterator[str]:
        """Gates whose reasons follow from what is published; judged as the same version of this package does."""
        release, header = self.release, self.plan.header
        if release.package != __version__:
            return
        planned, lost = self.plan.planned.total(), len(release.failed)
        emptied = not any(count.kept for count in release.counts)
        objected = {
            "licence": not (recipe_facts(self.recipe).redistributable or release.recipe_only),
            "model-licence": model_terms(header.backbone) == UNKNOWN_TERMS,
            "failed-rows": lost > self.recipe.failure_budget * planned or emptied,
        }
        for gate, says_no in objected.items():
            if says_no != (gate in release.overrides):
                stated = "was not overruled" if says_no else "was overruled"
                actual = "says no" if says_no else "has nothing against this set"
                yield f"overrides: run.json states that the gate {gate} {stated}, and it {actual}"


@dataclass(frozen=True)
class LicenceRows:
    """What licences are counted from, row after row, each time anew."""

    provenance: Provenance

    def __iter__(self) -> Iterator[ProvenanceRow]:
        return self.provenance.rows(columns=(*COUNTED, "source_ids", "measured"))


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "..."

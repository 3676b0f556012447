"""Checking a published set: every digest, the plan, all rows and statements; and a sample of rows made again.

A check ends in one of three words: `ok`, which for a row means bit-equal, or within tolerance on another stack and said
so; `WRONG` for what is wrong; `could not check` where a model, a source or a version is not here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from diffaug_datasets.core.backbone_spec import ALIASES, TINY
from diffaug_datasets.core.errors import DiffAugError, PublishError
from diffaug_datasets.core.extras import install
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.foreign_tables import Provenance, shard_table
from diffaug_datasets.data.release import RELEASE_SCHEMA, Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.planned import Planned, read_planned
from diffaug_datasets.publish.provenance import KEPT, SHOWN
from diffaug_datasets.publish.rebuild import Rebuilder
from diffaug_datasets.publish.statements import Statements
from diffaug_datasets.publish.tables import faults
from diffaug_datasets.run.closeness import Closeness, levels
from diffaug_datasets.run.features import schema_digest

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


def verify(repository: Repository, release: Release, rebuilder: Rebuilder, sample: int) -> Iterator[Check]:
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
    checks, found = [], []
    for row in rebuilder.sample(sample) if sample else ():
        check, closeness = _rebuilt(rebuilder, row)
        checks.append(check)
        found += [closeness] if closeness else []
        yield check
    if checks:
        yield _summed_up(checks, found)


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

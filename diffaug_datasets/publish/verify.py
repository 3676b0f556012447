"""Checking a published set: every digest, the plan, schema, labels and counts; and a sample of rows made again."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.foreign_tables import provenance_rows, shard_table
from diffaug_datasets.data.release import RELEASE_SCHEMA, Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.provenance import FAILED, KEPT
from diffaug_datasets.publish.rebuild import Rebuilder
from diffaug_datasets.publish.tables import faults
from diffaug_datasets.run.features import schema_digest
from diffaug_datasets.run.store import Run

PLAN_FILES = ("plan.json", "plan.parquet", "recipe.yaml")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `told` says what was found."""

    name: str
    passed: bool
    told: str


def verify(repository: Repository, release: Release, rebuilder: Rebuilder, sample: int) -> Iterator[Check]:
    """Check after check; a file whose digest is wrong is not opened, and nothing is looked at after that.

    `sample`: how many rows are made again, spread evenly over the plan.
    """
    digests = _tried("digests", lambda: _digests(repository, release))
    yield digests
    if not digests.passed:
        return
    yield _tried("plan", lambda: _plan(repository, release, rebuilder.folder))
    yield _tried("rows", lambda: _rows(repository, release))
    yield _tried("counts", lambda: _counts(repository, release))
    yield _version(release)
    kept = [row for row in rebuilder.rows if row["status"] != FAILED]
    for place in range(min(sample, len(kept))):
        row = kept[place * len(kept) // min(sample, len(kept))]
        yield _tried("rebuild", lambda row=row: _rebuilt(rebuilder, row))  # type: ignore[misc]


class Wrong(Exception):
    """A check that failed, in words."""


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (Wrong, DiffAugError) as error:
        return Check(name, False, str(error))


def _digests(repository: Repository, release: Release) -> str:
    names = [*(file.path for file in release.files), *(file.file for file in release.beside)]
    for name in names:
        repository.checked(release, name)
    return f"{len(names)} files have the bytes that run.json states"


def _plan(repository: Repository, release: Release, folder: Path) -> str:
    """The id is the digest of the rows, so nobody changed a row without changing the id."""
    place = folder / "plan"
    place.mkdir(exist_ok=True)
    for name in PLAN_FILES:
        shutil.copyfile(repository.checked(release, name), place / name)
    run = Run.open(place)
    if run.plan.id != release.plan_id:
        raise Wrong(f"the plan's rows give {run.plan.id[:16]}, run.json states {release.plan_id[:16]}")
    stated, planned = run.recipe.identity(), run.plan.header.recipe
    if any(stated.get(key) != planned[key] for key in planned):
        raise Wrong("recipe.yaml is not the recipe of the plan")
    return f"plan {release.plan_id[:16]} is the digest of its {len(run.plan.rows)} rows"


def _rows(repository: Repository, release: Release) -> str:
    """Schema, labels and images of every shard."""
    ours = schema_digest(release.class_names) == release.schema_digest
    if release.row_schema > ROW_SCHEMA or (release.row_schema == ROW_SCHEMA and not ours):
        raise Wrong(f"the columns are not those of row schema {ROW_SCHEMA}, which this version writes; update it")
    total = 0
    for file in release.files:
        table = shard_table(repository, release, file.path, check=False)
        for fault in faults(table, file, release.class_names, release.schema_digest):
            raise Wrong(fault)
        total += table.num_rows
    older = "" if ours else f", columns of the older row schema {release.row_schema}"
    classes = len(release.counts)
    return f"{total} rows in {len(release.files)} shards have images, one schema, labels of {classes} classes{older}"


def _counts(repository: Repository, release: Release) -> str:
    """The provenance, the shards and the stated counts say the same."""
    rows = provenance_rows(repository, release)
    made = [row for row in rows if row["origin"] != "real"]
    for label, count in enumerate(release.counts):
        ended = Counter(row["status"] for row in made if row["label"] == label)
        kept = ended.total() - ended[FAILED] - ended["filtered"]
        if (ended.total(), ended[FAILED], kept) != (count.planned, count.failed, count.kept):
            raise Wrong(f"class {count.name}: the provenance has {dict(ended)}, stated are {count.model_dump()}")
    there = _row_ids(repository, release)
    named = {row["row_id"] for row in rows if row["status"] == KEPT}
    if there != Counter(named):
        raise Wrong(f"{len(set(there) ^ named)} rows are not in both the shards and the provenance, or are there twice")
    return f"{len(made)} planned rows, {sum(count.kept for count in release.counts)} kept, as stated"


def _row_ids(repository: Repository, release: Release) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in release.files:
        table = shard_table(repository, release, file.path, check=False)
        found.update(table.column("row_id").to_pylist())
    return found


def _version(release: Release) -> Check:
    """An older form is read, and said so; rows of another method version cannot be made again here."""
    method = discover_methods().get(release.method)
    ours = f"{method.VERSION}" if method else "none"
    schema = f"release schema {release.release_schema} of {RELEASE_SCHEMA}"
    rows = "" if release.row_schema == ROW_SCHEMA else f"; row schema {release.row_schema} of {ROW_SCHEMA}"
    return Check("version", True, f"{release.method} version {release.method_version}, here {ours}; {schema}{rows}")


def _rebuilt(rebuilder: Rebuilder, row: dict[str, object]) -> str:
    _, closeness = rebuilder.rebuild(row)
    if not closeness.equal:
        raise Wrong(str(closeness))
    return str(closeness)

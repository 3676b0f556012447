"""Checking a published set: every digest, the plan, schema, labels and counts; and a sample of rows made again.

A check ends in one of three words: `ok`, which for a row means bit-equal, or within tolerance on another stack and said
so; `WRONG` for what is wrong; `could not check` where a model, a source or a version is not here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffaug_datasets.core.errors import DiffAugError, PublishError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.foreign_tables import provenance_rows, shard_table
from diffaug_datasets.data.release import RELEASE_SCHEMA, Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.provenance import FAILED, KEPT
from diffaug_datasets.publish.rebuild import Rebuilder
from diffaug_datasets.publish.tables import faults
from diffaug_datasets.run.closeness import Closeness, levels
from diffaug_datasets.run.features import schema_digest

Outcome = Literal["ok", "WRONG", "could not check"]
OK: Outcome = "ok"
WRONG: Outcome = "WRONG"
UNKNOWN: Outcome = "could not check"
SAMPLE = "sample"


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
    yield _tried("plan", lambda: _plan(release, rebuilder))
    yield _tried("rows", lambda: _rows(repository, release))
    yield _tried("counts", lambda: _counts(repository, release))
    yield _version(release)
    kept = [row for row in rebuilder.rows if row["status"] != FAILED]
    count = min(sample, len(kept))
    checks, found = [], []
    for place in range(count):
        check, closeness = _rebuilt(rebuilder, kept[place * len(kept) // count])
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


def _plan(release: Release, rebuilder: Rebuilder) -> str:
    """The id is the digest of the rows, so nobody changed a row without changing the id."""
    if release.method not in discover_methods():
        raise NotHere(f"method {release.method!r} is not installed here; install the package that brings it")
    run = rebuilder.run
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
        told = f"row {row['row_id']}: {error.name} is not installed; `pip install 'diffaug-datasets[generate]'`"
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

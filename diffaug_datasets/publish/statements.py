"""What `run.json` states, against the plan, the provenance, the recipe and the fits: whoever edits it is found out.

Not compared, for nothing published says the same: `seconds` and `evaluations` (receipts of shards stay with the
publisher), `finished`, `package`, `num_bytes` (memory, which follows from the version of Arrow), stacks of shards,
overrides of the gates `rows`, `local-model` and `test-leak`, `leak_check` of a set without its test split,
`release_schema` (the form of the file itself).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diffaug_datasets import __version__
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import ROW_SCHEMA
from diffaug_datasets.data.foreign_tables import PROVENANCE_FILE, Provenance
from diffaug_datasets.data.real import builder_facts
from diffaug_datasets.data.release import Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.licences import model_terms
from diffaug_datasets.publish.origins import licence_counts
from diffaug_datasets.publish.planned import Planned
from diffaug_datasets.publish.provenance import EXTRA, FAILED, FILTERED, KEPT, SHOWN
from diffaug_datasets.publish.quality import COLUMNS, DIGITS, quality
from diffaug_datasets.run.features import schema_digest

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
        table = self.provenance.table(list(dict.fromkeys((*COUNTED, *COLUMNS, "row_id", "reason", "attempt"))))
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

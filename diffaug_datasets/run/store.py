"""The run folder: plan, fits, shards, receipts. What is written last marks it as done, and carries its digest.

Who works on a unit is known by a lock on a small file, which the kernel frees when its process dies. Locks are asked
for only where something is made. Planning, loading, checking and publishing need none, so they work on systems and file
systems that have none, and looking at a run there only leaves open who works on it.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.errors import RecipeError, RunError, one_line
from diffaug_datasets.core.files import (
    TEMPORARY,
    FileDigest,
    finished_name,
    is_abandoned,
    is_temporary,
    sha256_file,
    write_atomically,
    write_text,
    writer_is_gone,
)
from diffaug_datasets.core.identity import canonical, differences
from diffaug_datasets.core.method import FitUnit, discover_methods
from diffaug_datasets.core.models import HUB_ID, MODELS, TINY, BackboneSpec, find_backbone
from diffaug_datasets.core.plan import Plan, PlanHeader, Shard
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import FailedRow, PlanRow, Row, column_types, rows_beginning
from diffaug_datasets.run.shards import arrow_type, read_stream, write_arrow

AT_WORK = "at-work"
RUNS = Path("runs")
RECEIPT_SCHEMA = 1
LISTED = 5  # row ids that a message names


@contextmanager
def lease(folder: Path, unit: str) -> Iterator[bool]:
    """True while this process alone holds a unit of the run in a folder.

    Raises:
        RunError: the folder may not be written, or this system or its file system has no locks.
    """
    path = folder / ".locks" / f"{unit}.lock"
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise RunError(f"{folder}: cannot lock units here ({error.strerror}); a run folder must be writable.") from None
    try:
        yield _locked(handle, folder)
    finally:
        os.close(handle)


def held(folder: Path, unit: str) -> bool | None:
    """Whether some process works on a unit now; None where no locks can be read. Writes nothing."""
    path = folder / ".locks" / f"{unit}.lock"
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not _locked(handle, folder)
    except RunError:
        return None
    finally:
        os.close(handle)


def check_locks(folder: Path) -> None:
    """Raises RunError, as `lease`, where units of this folder cannot be locked."""
    with lease(folder, AT_WORK):
        pass


def _locked(handle: int, folder: Path) -> bool:
    """Whether the file was free; then it is this process's until the file is closed."""
    try:
        import fcntl
    except ImportError:
        raise RunError(
            f"{folder}: making images needs the file locks of Linux or macOS (Python's fcntl), which are not here; "
            "generate there or under WSL. Planning, loading, verifying and publishing work here."
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(
            f"{folder}: this file system refuses locks ({error.strerror}), and without them two workers would make the "
            "same images; plan or copy the run to another disk, such as a local one, and generate there."
        ) from None
    return True


class Receipt(BaseModel):
    """Says that a unit is done: written last, names its files with their digests.

    `evaluations`: rows that the U-Net computed for it, those included that filled a batch up or were made again.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = RECEIPT_SCHEMA
    plan_id: str
    unit: str
    files: tuple[FileDigest, ...]
    rows: int = 0
    num_bytes: int = 0
    schema_digest: str = ""
    failed: tuple[FailedRow, ...] = ()
    batch_shapes: tuple[int, ...] = ()
    evaluations: int = 0
    seconds: float = 0.0
    worker: str = ""
    stack: dict[str, str] = {}
    finished: str = ""
    measured: Mapping[str, object] = {}


def on_this_machine(place: Path | str, what: str = "run folder") -> Path:
    """A place as a path.

    Raises:
        RunError: it is an address, such as one of a bucket.
    """
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+(?=:/)", str(place)):  # `Path` makes one slash of two
        raise RunError(
            f"{what}: got an address ({scheme[0]}://...), expected a folder on a disk of this machine; runs are made "
            "on a disk, and `diffaug publish RUN ADDRESS` takes a finished one to an address."
        )
    return Path(place)


def default_folder(plan: Plan, parent: Path = RUNS) -> Path:
    """Where a run of a plan goes if nobody says: `runs/NAME-PLANID`."""
    return parent / f"{plan.header.name}-{plan.id[:8]}"


class Run:
    """A folder of recipe, plan, fits, shards and receipts; its state is computed from receipts alone.

    `plan` writes one, `Run.open` opens one that is there, `generate` fills it.

    >>> from diffaug_datasets import Run, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> run = Run.open("runs/shirts")
    >>> run.recipe.method, len(run.plan.rows), [shard.name for shard in run.plan.shards()]
    ('txt2img', 20, ['synthetic-00000'])
    """

    def __init__(self, folder: Path | str, plan: Plan | None = None) -> None:
        """`plan`: what the folder is to hold, where it is not written yet; default: it is read when it is asked for."""
        self.folder = on_this_machine(folder)
        if plan is not None:
            self.plan = plan

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """An existing run.

        Raises:
            RunError: the folder has no plan, or the plan belongs neither to its header nor to the recipe beside it.
        """
        run = cls(folder)
        if not (run.folder / "plan.json").exists():
            raise RunError(f"{folder}: no plan.json here; `diffaug plan RECIPE --run {folder}` makes a run folder.")
        if run.plan.id != str(run._plan_json.get("plan_id")):
            raise RunError(f"{folder}: plan.parquet does not belong to plan.json; plan again into another folder.")
        run._check_recipe()
        return run

    def _check_recipe(self) -> None:
        """The recipe beside the plan is read by whoever makes images, so it must say what the plan was drawn from.

        Where the method is not installed nothing can be made, and nothing is compared.
        """
        header = self.plan.header
        if str(header.recipe.get("method")) not in discover_methods():
            return
        try:
            recipe = self.recipe
        except RecipeError as error:
            raise RunError(
                f"{self.folder}: the recipe of its plan cannot be read: {str(error).rstrip('.')}; put recipe.yaml back "
                "as it was, or plan again into another folder."
            ) from None
        changes = differences(header.recipe, recipe.identity(), _same_place)
        if not _may_be(recipe.backbone, header.backbone):
            changes.append(f"backbone: {header.backbone} -> {recipe.backbone.id} at {recipe.backbone.revision}")
        if changes:
            raise RunError(
                f"{self.folder}: recipe.yaml is not what the plan was drawn from; what differs: "
                f"{'; '.join(changes[:5])}. Put it back, or plan it into another folder."
            )

    @cached_property
    def _plan_json(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
            return content
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self.folder / 'plan.json'}: unreadable ({error}); plan again.") from None

    @cached_property
    def plan(self) -> Plan:
        """The plan, read back from its two files."""
        try:
            header = PlanHeader(**self._plan_json["header"])
            fits = tuple(map(_unit, self._plan_json["fits"]))
            table = pq.read_table(self.folder / "plan.parquet")
            table.validate(full=True)
            rows = [PlanRow(**row) for row in table.to_pylist()]
            made = tuple(row for row in rows if row.origin != "real")
            plan = Plan(header, made, tuple(row for row in rows if row.origin == "real"), fits)
            _ = plan.id, plan.shards()
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, pa.ArrowException) as e:
            reason = one_line(e)
            raise RunError(f"{self.folder}: the plan cannot be read ({reason}); plan again.") from None
        return plan

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe beside the plan."""
        return Recipe.from_yaml(self.folder / "recipe.yaml")

    def write_plan(self, recipe: Recipe, plan: Plan) -> None:
        """Write recipe, plan.parquet, then plan.json: the folder is a run from then on."""
        write_text(self.folder / "recipe.yaml", recipe.to_yaml())
        rows = [row.model_dump(mode="json", by_alias=True) for row in (*plan.real, *plan.rows)]
        schema = pa.schema([(name, arrow_type(kind)) for name, kind in column_types(PlanRow).items()])
        write_atomically(self.folder / "plan.parquet", lambda p: pq.write_table(pa.Table.from_pylist(rows, schema), p))
        fits = [{"kind": u.kind, "payload": u.payload, "after": list(u.after), "name": u.name} for u in plan.fits]
        content = {"schema": 1, "plan_id": plan.id, "header": plan.header.model_dump(mode="json"), "fits": fits}
        write_text(self.folder / "plan.json", json.dumps(content, indent=1, ensure_ascii=False))

    def row(self, prefix: str) -> PlanRow:
        """The planned row, made or real, that a row id or the beginning of one names.

        Raises:
            RunError: none, or several; names some of them.
        """
        rows = {row.row_id: row for row in (*self.plan.rows, *self.plan.real)}
        named = rows_beginning(rows, prefix) if prefix.strip() else []
        if len(named) == 1:
            return rows[named[0]]
        if not named:
            raise RunError(
                f"{self.folder}: no row id begins with {prefix!r}; ids are 24 hex digits, such as "
                f"{self.plan.rows[0].row_id}."
            )
        listed = ", ".join(named[:LISTED])
        raise RunError(f"{self.folder}: {len(named)} row ids begin with {prefix!r} ({listed}, ...); give more digits.")

    def shard_path(self, name: str) -> Path:
        """File of a shard."""
        return self.folder / "shards" / f"{name}.arrow"

    def table(self, shard: Shard) -> pa.Table:
        """The rows of a finished shard, memory-mapped."""
        return read_stream(str(self.shard_path(shard.name)))

    def write_shard(self, shard: Shard, rows: Iterable[Row]) -> Receipt:
        """Write the file of a shard; gives its receipt, not yet written.

        Raises:
            RunError: the disk is full or the folder is read-only.
        """
        header = self.plan.header
        if header.columns and shard.kind == "synthetic":
            rows = self._with_own_columns(rows)
        written = write_arrow(self.shard_path(shard.name), rows, header.class_names, header.columns)
        return Receipt(
            plan_id=self.plan.id,
            unit=shard.name,
            files=(written.done,),
            rows=written.rows,
            num_bytes=written.num_bytes,
            schema_digest=written.schema_digest,
        )

    def _with_own_columns(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with what the dataset says of their first source; those without a source say nothing."""
        names = self.plan.header.columns
        stated: dict[str, dict[str, str | None]] = {}
        for shard in self.plan.real_shards():
            if shard.kind == "real":
                for row in self.table(shard).select(["source_ids", *names]).to_pylist():
                    stated[row["source_ids"][0]] = {name: row[name] for name in names}
        for row in rows:
            ids = row.plan.source_ids
            yield row.model_copy(update={"own": stated[ids[0]]}) if ids and ids[0] in stated else row

    @property
    def pool_path(self) -> Path:
        """The list of a retrieval pool's images, where the method has one."""
        return self.folder / "pool.parquet"

    def fit_folder(self, name: str) -> Path:
        """Folder of a fit."""
        return self.folder / "fits" / name

    def receipt_path(self, unit: str) -> Path:
        """Receipt of a shard, a fit, `selection` or `quality`."""
        if unit in ("selection", "quality"):
            return self.folder / f"{unit}.json"
        is_fit = (self.folder / "fits" / unit).exists() or any(f.name == unit for f in self.plan.fits)
        return self.fit_folder(unit) / "receipt.json" if is_fit else self.folder / "shards" / f"{unit}.json"

    def receipt(self, unit: str) -> Receipt | None:
        """The receipt of a finished unit of this plan, or None."""
        try:
            receipt = Receipt(**json.loads(self.receipt_path(unit).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        return receipt if receipt.plan_id == self.plan.id else None

    def intact(self, unit: str) -> bool:
        """Whether a unit is finished and every one of its files still has the digest its receipt states."""
        receipt = self.receipt(unit)
        if receipt is None:
            return False
        folder = self.receipt_path(unit).parent
        return all((folder / f.file).is_file() and sha256_file(folder / f.file) == f.sha256 for f in receipt.files)

    def write_receipt(self, receipt: Receipt) -> None:
        """The last write of a unit."""
        write_text(self.receipt_path(receipt.unit), receipt.model_dump_json(indent=1))

    def lease(self, unit: str) -> AbstractContextManager[bool]:
        """True while this process alone holds the unit; see `lease`."""
        return lease(self.folder, unit)

    def held(self, unit: str) -> bool | None:
        """Whether some process works on the unit now; None where that cannot be known."""
        return held(self.folder, unit)

    def event(self, **content: object) -> None:
        """Append one line to events.jsonl; nothing but progress displays reads it."""
        line = canonical({"time": round(time.time(), 3), "pid": os.getpid(), **content}) + "\n"
        with (self.folder / "events.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def sweep(self) -> None:
        """Remove temporary files whose process is gone.

        Whether those of another machine, container or pid namespace are still written cannot be known, so they stay
        until they are a day old and nobody holds their unit.
        """
        for leftover in filter(is_temporary, self.folder.rglob(TEMPORARY)):
            with suppress(FileNotFoundError):  # whoever wrote it has just finished it
                if writer_is_gone(leftover) or (is_abandoned(leftover) and self._is_free(leftover)):
                    leftover.unlink()

    def _is_free(self, leftover: Path) -> bool:
        """Whether nobody holds the unit that a temporary file belongs to."""
        place = leftover.relative_to(self.folder).parts
        if place[0] == "fits" and len(place) > 2:
            unit = place[1]
        else:
            unit = finished_name(leftover).partition(".")[0] if place[0] == "shards" else "assembly"
        with self.lease(unit) as free:
            return free

    def units(self) -> Iterator[tuple[str, Sequence[FitUnit | Shard]]]:
        """Stages in their order: fits by kind, as the method declared them, then the synthetic shards."""
        for kind in dict.fromkeys(unit.kind for unit in self.plan.fits):
            yield kind, [unit for unit in self.plan.fits if unit.kind == kind]
        yield "synthetic", self.plan.shards()


def _unit(content: dict[str, Any]) -> FitUnit:
    """A fit of plan.json; its name becomes a folder's."""
    kind, payload, after = content["kind"], content["payload"], tuple(content["after"])
    if not re.fullmatch(r"\w[\w-]*", kind) or not isinstance(payload, str):
        raise ValueError(f"a fit of kind {kind!r}")
    return FitUnit(kind, payload, after)


def _same_place(key: str, planned: object, found: object) -> bool:
    """Whether a model's place may hold what the plan knows as `name@digest`: what is not there cannot be looked at."""
    if key.rpartition(".")[2] not in MODELS or not (isinstance(planned, str) and isinstance(found, str)):
        return False
    return "@" in planned and PurePath(found).name == planned.rpartition("@")[0]


def _may_be(spec: BackboneSpec, planned: str) -> bool:
    """Whether a recipe's backbone is the planned `name@revision`, as far as no weights need be read for that."""
    name, _, revision = planned.rpartition("@")
    if spec.id == TINY or name == "diffaug-tiny":
        return spec.id == TINY and name == "diffaug-tiny"
    if Path(spec.id).is_dir():
        return Path(spec.id).resolve().name == name
    if "/" not in name:
        return not HUB_ID.fullmatch(spec.id)
    model = find_backbone(spec)
    is_pinned_so = re.fullmatch(r"[0-9a-f]{40}", model.wanted or "") is None or str(model.wanted).startswith(revision)
    return model.id == name and is_pinned_so

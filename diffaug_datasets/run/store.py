"""The run folder: plan, fits, shards, receipts. What is written last marks it as done, and carries its digest.

Any number of workers may make the same unit, and one of them has made it: whose receipt was created first. A file that
somebody finished is never overwritten (`write_once`), so whoever comes second changes nothing, and where its bytes are
others it says so. Leases (`run.leases`) only keep workers from making the same unit at the same time.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.errors import RecipeError, RunError, few, one_line
from diffaug_datasets.core.files import (
    FileDigest,
    finished_name,
    is_abandoned,
    is_temporary,
    sha256_file,
    temporary_path,
    write_atomically,
    write_once,
    write_text,
    writer_is_gone,
)
from diffaug_datasets.core.identity import canonical, differences, digest
from diffaug_datasets.core.method import FitUnit, discover_methods
from diffaug_datasets.core.models import HUB_ID, MODELS, TINY, BackboneSpec, find_backbone
from diffaug_datasets.core.plan import Plan, PlanHeader, Shard
from diffaug_datasets.core.plan_table import FileGroups, PlanRows, column_of, tables_of, write_groups
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import FailedRow, PlanRow, Row, rows_beginning
from diffaug_datasets.run.leases import Lease, Leases
from diffaug_datasets.run.place import FolderPlace, Place, address_of, probe, scheme_of
from diffaug_datasets.run.shards import read_stream, write_arrow

RUNS = Path("runs")
RECEIPT_SCHEMA = 1
OF_THE_SET = ("selection", "quality")  # units that whoever assembles the set decides again
LISTED = 5  # row ids that a message names
IMAGE_DIGITS = 8  # of a real image, that name it


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
    def open(cls, folder: "str | os.PathLike[str]", *, whole: bool = False) -> "Run":
        """An existing run, in a folder or at an address such as s3://bucket/run.

        `whole`: with every file of it on this machine, for whoever reads them by their paths.

        Raises:
            RunError: the folder has no plan, or the plan belongs neither to its header nor to the recipe beside it.
        """
        if scheme_of(folder):
            from diffaug_datasets.run.remote import RemoteRun

            run: Run = RemoteRun.at(address_of(folder))
        else:
            run = cls(Path(folder))
            if not (run.folder / "plan.json").exists():
                if inside := [str(path.parent) for path in sorted(run.folder.glob("*/plan.json"))]:
                    runs = "a run folder" if len(inside) == 1 else f"{len(inside):,} run folders"
                    raise RunError(f"{folder}: is no run folder, but holds {runs}: {few(inside)}; give one of them.")
                raise RunError(f"{folder}: no plan.json here; `diffaug plan RECIPE --run {folder}` makes a run folder.")
            run.check()
        if whole:
            run.fetch_all()
        return run

    def check(self) -> None:
        """Raises RunError where plan.json, plan.parquet and recipe.yaml do not belong together."""
        if self.plan.id != str(self._plan_json.get("plan_id")):
            raise RunError(f"{self.where}: plan.parquet does not belong to plan.json; plan again into another folder.")
        self._check_recipe()

    @property
    def where(self) -> str:
        """The folder or address that a person gives for this run."""
        return str(self.folder)

    @property
    def from_anywhere(self) -> str:
        """The same for a process that began in another folder."""
        return str(self.folder.resolve())

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
        """The plan of the two files; rows are read when they are asked for.

        Its id is computed from all rows, unless plan.json says which bytes of plan.parquet it was computed from.
        """
        content, path = self._plan_json, self.folder / "plan.parquet"
        try:
            header = PlanHeader(**content["header"])
            fits = tuple(map(_unit, content["fits"]))
            groups = FileGroups(path)
            is_sealed = "seal" in content and content["seal"] == _seal(content, path)
            count = int(content["rows"]["real"]) if is_sealed else _count_real(PlanRows(groups))
            known = str(content["plan_id"]) if is_sealed else None
            plan = Plan(header, PlanRows(groups, count), PlanRows(groups, 0, count), fits, known)
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
        path = self.folder / "plan.parquet"
        write_atomically(path, lambda p: write_groups(p, tables_of(plan.real), tables_of(plan.rows)))
        fits = [{"kind": u.kind, "payload": u.payload, "after": list(u.after), "name": u.name} for u in plan.fits]
        content = {"schema": 1, "plan_id": plan.id, "header": plan.header.model_dump(mode="json"), "fits": fits}
        content["rows"] = {"real": len(plan.real), "made": len(plan.rows)}
        content["seal"] = _seal(content, path)
        write_text(self.folder / "plan.json", json.dumps(content, indent=1, ensure_ascii=False))

    def row(self, prefix: str) -> PlanRow:
        """The planned row, made or real, that a row id or the beginning of one names; a real one, by its image's too.

        Raises:
            RunError: none, or several; names some of them.
        """
        named: dict[str, PlanRow] = {}
        count = 0
        for rows in (self.plan.rows, self.plan.real) if prefix.strip() else ():
            ids = column_of(rows, "row_id")
            places = pc.starts_with(ids, prefix.strip().lower()).to_numpy().nonzero()[0].tolist()
            named.update((ids[place].as_py(), rows[place]) for place in places[:LISTED])
            count += len(places)
        matches = rows_beginning(named, prefix)
        if len(matches) == 1 and (count == 1 or len(matches[0]) == len(prefix.strip())):
            return named[matches[0]]
        if not matches and (real := self._real_row(prefix.strip().lower())):
            return real
        if not matches:
            raise RunError(
                f"{self.where}: no row id begins with {prefix!r}; ids are 24 hex digits, such as "
                f"{self.plan.rows[0].row_id}."
            )
        listed = ", ".join(matches[:LISTED])
        raise RunError(f"{self.where}: {count} row ids begin with {prefix!r} ({listed}, ...); give more digits.")

    def _real_row(self, image: str) -> PlanRow | None:
        """The row of the one real image whose sha256 begins so: gates and provenance name images by it."""
        if len(image) < IMAGE_DIGITS:
            return None
        ids = pc.list_element(column_of(self.plan.real, "source_ids"), 0)
        places = pc.starts_with(ids, image).to_numpy().nonzero()[0].tolist()
        return self.plan.real[places[0]] if len(places) == 1 else None

    def shard_path(self, name: str) -> Path:
        """File of a shard: the one that its receipt names; before there is one, that of its name."""
        receipt = self.receipt(name)
        return self.folder / "shards" / (receipt.files[0].file if receipt and receipt.files else f"{name}.arrow")

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
        self.make_way(shard.name)
        path = self.folder / "shards" / f"{shard.name}.arrow"
        written = write_arrow(path, rows, header.class_names, header.columns, write_once)
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
        if unit in OF_THE_SET:
            return self.folder / f"{unit}.json"
        is_fit = unit in self._fits or (unit not in self.shard_names and (self.folder / "fits" / unit).exists())
        return self.fit_folder(unit) / "receipt.json" if is_fit else self.folder / "shards" / f"{unit}.json"

    @cached_property
    def _fits(self) -> frozenset[str]:
        return frozenset(unit.name for unit in self.plan.fits)

    @cached_property
    def shard_names(self) -> frozenset[str]:
        """The names of all shards to make, without those of real images."""
        return frozenset(shard.name for shard in self.plan.shards())

    def receipt(self, unit: str) -> Receipt | None:
        """The receipt of a finished unit of this plan, or None; one that was cut or is of another plan counts for none.

        Raises:
            RunError: the disk cannot be read.
        """
        path = self.receipt_path(unit)
        try:
            return self.read_receipt(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); check the disk and its rights.") from None

    def read_receipt(self, content: bytes) -> Receipt | None:
        """The receipt of those bytes, if they are whole and of this plan."""
        try:
            receipt = Receipt(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        return receipt if receipt.plan_id == self.plan.id else None

    def intact(self, unit: str) -> bool:
        """Whether a unit is finished and every one of its files still is what its receipt states.

        A file that was not touched since its receipt was written is looked at no further than its size, so that who
        starts to work on a run of a thousand shards need not read them all; any other one is hashed.
        """
        receipt = self.receipt(unit)
        return receipt is not None and not self._damaged(receipt, self._untouched(receipt))

    def _untouched(self, receipt: Receipt) -> frozenset[str]:
        """The files of a unit that are as large as its receipt says, and older than it by the same clock."""
        path = self.receipt_path(receipt.unit)
        names = set()
        with suppress(OSError):
            written = path.stat().st_mtime_ns
            for file in receipt.files:
                found = (path.parent / file.file).stat()
                if found.st_size == file.size and max(found.st_mtime_ns, found.st_ctime_ns) < written:
                    names.add(file.file)
        return frozenset(names)

    def _damaged(self, receipt: Receipt, trusted: Set[str] = frozenset()) -> list[Path]:
        """The files that a receipt names and that are missing, or not what it says; `trusted` ones are not read."""
        folder = self.receipt_path(receipt.unit).parent
        return [
            folder / f.file
            for f in receipt.files
            if f.file not in trusted and (not (folder / f.file).is_file() or sha256_file(folder / f.file) != f.sha256)
        ]

    def make_way(self, unit: str) -> None:
        """Before a unit is made again: where a file that its receipt names is damaged, both go, the receipt first."""
        receipt = self.receipt(unit)
        damaged = self._damaged(receipt) if receipt else []
        if damaged:
            self._take_away(self.receipt_path(unit))
        for path in damaged:
            self._take_away(path)

    def _take_away(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.place.delete(path.relative_to(self.folder).as_posix())

    def write_receipt(self, receipt: Receipt) -> bool:
        """The last write of a unit: its receipt, created if nobody was first.

        False, and nothing is written, where somebody was, with the same bytes; also where this process holds a lease of
        the unit that has been taken over: it was taken for dead, and another one makes the unit.

        Raises:
            RunError: the unit is there already with other bytes; names both makers.
        """
        lease = self.leases.held.get(receipt.unit)
        if lease is not None and not self.leases.is_current(lease):
            return False
        receipt = self.send_files(receipt)
        path, text = self.receipt_path(receipt.unit), receipt.model_dump_json(indent=1)
        key = path.relative_to(self.folder).as_posix()
        if receipt.unit in OF_THE_SET:
            self._overwrite(key, text)
        elif not self.place.create(key, text.encode()):
            self.look_again(receipt.unit)
            first = self.receipt(receipt.unit)
            if first is None or self._damaged(first):  # cut, of another plan, or its files are gone
                self._overwrite(key, text)
            elif [f.sha256 for f in first.files] != [f.sha256 for f in receipt.files]:
                raise RunError(self._conflict(first, receipt))
            else:
                return False
        self.note_receipt(receipt)
        if lease is not None:
            lease.done = True
        return True

    def _overwrite(self, key: str, text: str) -> None:
        """Replace a receipt that may be replaced."""
        write_text(self.folder / key, text)
        self.send(key)

    def _conflict(self, first: Receipt, second: Receipt) -> str:
        def told(receipt: Receipt) -> str:
            digests = ", ".join(f.sha256[:16] for f in receipt.files)
            return f"{digests} by {receipt.worker or 'a worker'} at {receipt.finished or 'an unknown time'}"

        return (
            f"{self.where}: {first.unit} is there already with other bytes: {told(first)}; now {told(second)}. The "
            "first one stays. The same rows have other pixels here, so work on where the others do, or compare the "
            "two `stack` entries of its receipt."
        )

    @cached_property
    def place(self) -> Place:
        """Where leases and receipts are created."""
        return FolderPlace(self.folder)

    # What a run at an address does beside it; in a folder every file is where it belongs.

    def refresh(self) -> None:
        """Look at what has become of all units since."""

    def look_again(self, unit: str) -> None:
        """Look at what has become of one unit since."""

    def has(self, path: str) -> bool:
        """Whether a file of the set is there."""
        return (self.folder / path).exists()

    def fetched(self, name: str) -> Path:
        """A file of the run, to be read."""
        return self.folder / name

    def file(self, path: str, size: int, sha256: str) -> Path:  # noqa: ARG002
        """A file that a receipt or `run.json` names by its path in the run, to be read."""
        return self.folder / path

    def again(self) -> "Run":
        """Another view of this run, for another thread."""
        return Run(self.folder, self.plan)

    def news(self) -> Mapping[str, "Receipt"]:
        """Receipts that others may have written without an event here; none in a folder, which has all events."""
        return {}

    def have(self, unit: str) -> None:
        """Have the files of a finished unit on this machine."""

    def fetch_all(self) -> None:
        """Have all files on this machine."""

    def send(self, name: str) -> None:
        """Have a file that was written into the folder where others find it."""

    def send_files(self, receipt: Receipt) -> Receipt:
        """Have a unit's files where others find them; the receipt with the names that they have there."""
        return receipt

    def note_receipt(self, receipt: Receipt) -> None:
        """What follows a commit."""

    def save_progress(self, unit: str) -> None:
        """Have the checkpoints of a fit where others find them."""

    def restore_progress(self, unit: str) -> None:
        """Have the checkpoints of a fit here that others left."""

    @cached_property
    def leases(self) -> Leases:
        """Who works on what, as this process sees it."""
        return Leases(self.place)

    def check_writable(self) -> None:
        """Raises RunError where the folder may not be written, or makes two of what must be one; see `run.place`."""
        probe(self.place)

    def lease(self, unit: str) -> AbstractContextManager[Lease | None]:
        """A lease while this process alone works on the unit, or None; see `run.leases`."""
        return self.leases.hold(unit)

    def held(self, unit: str) -> bool:
        """Whether some process seems to work on the unit now."""
        return self.leases.holder(unit) is not None

    def event(self, **content: object) -> None:
        """Append one line to events.jsonl; nothing but progress displays reads it, so what the disk refuses is lost."""
        line = canonical({"time": round(time.time(), 3), "pid": os.getpid(), **content}) + "\n"
        with suppress(OSError), (self.folder / "events.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def sweep(self) -> None:
        """Remove temporary files whose process is gone.

        Whether those of another machine, container or pid namespace are still written cannot be known, so they stay
        until nobody holds their unit and they are a day old, by the clock of the file system that they lie on.
        """
        walked = os.walk(self.folder)  # which passes over folders that others take away meanwhile
        hidden = (Path(folder, name) for folder, _, names in walked for name in names if name.startswith("."))
        leftovers = [path for path in hidden if is_temporary(path)]
        now = self._now() if leftovers else 0.0
        for leftover in leftovers:
            with suppress(FileNotFoundError):  # whoever wrote it has just finished it
                if writer_is_gone(leftover) or (is_abandoned(leftover, now) and not self.held(self._unit_of(leftover))):
                    leftover.unlink()

    def _now(self) -> float:
        """The time that the file system gives to a file which is written now (Unix)."""
        path = temporary_path(self.folder / "now")
        try:
            path.touch()
            return path.stat().st_mtime
        except OSError:
            return 0.0  # nothing is old then
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _unit_of(self, leftover: Path) -> str:
        """The unit that a temporary file belongs to."""
        place = leftover.relative_to(self.folder).parts
        if place[0] == "fits" and len(place) > 2:
            return place[1]
        return finished_name(leftover).partition(".")[0] if place[0] == "shards" else "assembly"

    def units(self) -> Iterator[tuple[str, Sequence[FitUnit | Shard]]]:
        """Stages in their order: fits by kind, as the method declared them, then the synthetic shards."""
        for kind in dict.fromkeys(unit.kind for unit in self.plan.fits):
            yield kind, [unit for unit in self.plan.fits if unit.kind == kind]
        yield "synthetic", self.plan.shards()


def _seal(content: Mapping[str, Any], rows: Path) -> str:
    """sha256 over what plan.json says of its rows, and the bytes of their file: while it is right, so is the id."""
    said = {key: content[key] for key in ("plan_id", "header", "rows")}
    return digest({**said, "parquet": sha256_file(rows)})


def _count_real(rows: PlanRows) -> int:
    """The real rows, which stand first."""
    return int(pc.sum(pc.equal(column_of(rows, "origin"), "real")).as_py() or 0)


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
    name, _, revision = planned.partition("+")[0].rpartition("@")
    if spec.id == TINY or name == "diffaug-tiny":
        return spec.id == TINY and name == "diffaug-tiny"
    if Path(spec.id).is_dir():
        return Path(spec.id).resolve().name == name
    if "/" not in name:
        return not HUB_ID.fullmatch(spec.id)
    model = find_backbone(spec)
    is_pinned_so = re.fullmatch(r"[0-9a-f]{40}", model.wanted or "") is None or str(model.wanted).startswith(revision)
    return model.id == name and is_pinned_so

"""What a run takes over from another run folder instead of making it: fits, images, or all that a withdrawal leaves.

A fit's name is a digest of its settings and images. It leaves out the size and dtype of the network, which therefore
are compared here: what was learned or inverted at another resolution is another thing under the same name. Two plans
that differ in their filters alone make the same images: filters mark rows, once all shards are in. A finished run
without some of its real images is a run folder of its own, where all other rows are the same bytes; their images go on
naming the plan that made them (`row_urn`, column `plan_id`), not the new one.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, write_atomically, write_once
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import Plan, Shard, learned_with, without_images
from diffaug_datasets.run.assembly import Assembled, assemble, finished
from diffaug_datasets.run.scores import FILE, UNIT
from diffaug_datasets.run.shards import stored_rows
from diffaug_datasets.run.stacks import Stack
from diffaug_datasets.run.store import RUNS, Receipt, Run, default_folder

# What follows from an encoder and its images alone.
WITHOUT_BACKBONE = frozenset({"embeddings", "pool_features", "retrieval"})
NETWORK = ("variant", "dtype")
Size = tuple[int, int]


def same_network(ours: BackboneSpec, theirs: Mapping[str, object], native: Callable[[], Size]) -> bool:
    """Whether two recipes drive one backbone alike; `native` is asked for (height, width) where one leaves it open."""
    if any(getattr(ours, key) != theirs.get(key) for key in NETWORK):
        return False
    sizes = {(ours.height, ours.width), (theirs.get("height"), theirs.get("width"))}
    if len(sizes) == 1 or not any(None in size for size in sizes):
        return len(sizes) == 1
    height, width = native()
    return len({(size[0] or height, size[1] or width) for size in sizes}) == 1


def adoptable(
    unit: FitUnit, run: Run, others: Sequence[Path], is_ours: Callable[[Stack, int], bool], native: Callable[[], Size]
) -> tuple[Run, Receipt] | None:
    """The first of the other runs that holds this fit whole, made by this network on this stack.

    `is_ours(stack, batch shape)`: whether a stack, whose fingerprints are of that shape, computes what this one does.
    """
    for other in map(Run.open, others):
        receipt, recipe = other.receipt(unit.name), other.plan.header.recipe
        if receipt is None or not other.intact(unit.name):
            continue
        alike = unit.kind in WITHOUT_BACKBONE or same_network(run.recipe.backbone, recipe["backbone"], native)
        if alike and is_ours(receipt.stack, int(recipe["batch_size"])):
            return other, receipt
    return None


def same_images(plan: Plan, other: Plan) -> bool:
    """Whether two plans make the same images and scores: all but filters, name and stated licence is equal."""
    return _without_filters(plan) == _without_filters(other) and plan.rows == other.rows


def _without_filters(plan: Plan) -> dict[str, object]:
    header = plan.header.model_dump(mode="json")
    return {**header, "name": None, "recipe": {**header["recipe"], **dict.fromkeys(("filters", "name", "licence"))}}


def take_over(origin: Path, target: Path) -> FileDigest:
    """The same bytes at another place; nothing writes into a finished file, so that both may be one."""

    def link(temporary: Path) -> None:
        try:
            os.link(origin, temporary)
        except OSError:
            shutil.copyfile(origin, temporary)

    return write_once(target, link)


def refusals(run: Run, others: Sequence[Path]) -> Iterator[str]:
    """A sentence for every other run whose fits have names of ours and yet are not taken: size or dtype differ."""
    ours = run.recipe.backbone
    names = {unit.name for unit in run.plan.fits if unit.kind not in WITHOUT_BACKBONE}
    for other in map(Run.open, others):
        theirs = other.plan.header.recipe["backbone"]
        shared = names & {unit.name for unit in other.plan.fits}
        sizes = (ours.height, ours.width, theirs.get("height"), theirs.get("width"))
        may_be_same = None in sizes and all(getattr(ours, key) == theirs.get(key) for key in NETWORK)
        if shared and not may_be_same and not same_network(ours, theirs, lambda: (0, 0)):
            made, wanted = _text(theirs), _text(ours.model_dump())
            yield f"{other.where}: its fits were made at {made}, this run is {wanted}; they are made here instead."


def _text(backbone: Mapping[str, object]) -> str:
    height, width = backbone.get("height"), backbone.get("width")
    size = f"{height} x {width} pixels" if height and width else "its own size"
    variant = f" {backbone['variant']}" if backbone.get("variant") else ""
    return f"{size} in {backbone['dtype']}{variant}"


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal did: the new run, ids of the rows that went, shards that were taken over or written anew.

    `learned`: fits that were made with the images in and stay as they are, for the other rows rest on them.
    """

    run: Run
    done: Assembled
    rows: tuple[str, ...]
    taken: int
    rewritten: int
    learned: tuple[str, ...]


def withdraw(run: Run, images: Collection[str], folder: Path | None = None) -> Withdrawal:
    """Take real training images (sha256 of their bytes) out of a finished run; the run itself stays as it is.

    Nothing is generated. `folder`: of the new run; default: `NAME-PLANID` beside the old one, in `runs` where that one
    lies in an object store. Killed, the same call goes on.

    Raises:
        RunError: the run is not finished or damaged, or the folder holds another run.
        PlanError: an id that no training image has, or no row would be left.
    """
    if finished(run) is None:
        raise RunError(f"{run.where}: not finished; `diffaug generate {run.where}` continues it.")
    plan = without_images(run.plan, images)
    parent = run.folder.parent if run.where == str(run.folder) else RUNS  # the cache is no place for a run
    new = Run(folder or default_folder(plan, parent), plan)  # whose plan is written last
    if (new.folder / "plan.json").exists() and Run.open(new.folder).plan.id != plan.id:
        raise RunError(f"{new.folder}: holds another plan; give another folder with --run.")
    rewritten = [_shard(run, new, shard) for shard in (*plan.real_shards(), *plan.shards())]
    for unit in plan.fits:
        if not new.intact(unit.name):
            _fit(run, new, unit, set(images))
    if run.pool_path.is_file():
        write_atomically(new.pool_path, partial(shutil.copyfile, run.pool_path))
    if not (new.folder / "plan.json").exists():
        new.write_plan(run.recipe.model_copy(update={"withdrawn": tuple(plan.header.recipe["withdrawn"])}), plan)
    if finished(new) is None:
        _quality(run, new)
    left = {row.row_id for row in plan.rows}
    rows = tuple(row.row_id for row in run.plan.rows if row.row_id not in left)
    learned = tuple(unit.name for unit in learned_with(plan, images, fits_by_image(run)))
    return Withdrawal(new, finished(new) or assemble(new), rows, rewritten.count(False), rewritten.count(True), learned)


def fits_by_image(run: Run) -> Collection[str]:
    """Kinds of fits of a run's method that hold each image by itself."""
    return run.recipe.method_definition.FITS_BY_IMAGE


def _shard(run: Run, new: Run, shard: Shard) -> bool:
    """Take the shard over whole, or write what is left of it; whether it was written."""
    receipt = _receipt(run, shard.name)
    table = run.table(shard)
    wanted = {row.row_id for row in shard.rows}
    failed = tuple(row for row in receipt.failed if row.row_id in wanted)
    whole = wanted.issuperset(table["row_id"].to_pylist())
    if new.intact(shard.name):
        return not whole
    if whole:
        new.make_way(shard.name)
        file = take_over(run.shard_path(shard.name), new.shard_path(shard.name))
        changes: dict[str, object] = {"plan_id": new.plan.id, "failed": failed, "files": (file,)}
    else:
        written = new.write_shard(shard, stored_rows(table, wanted, new.plan.header.columns))
        sizes = {"files": written.files, "rows": written.rows, "num_bytes": written.num_bytes}
        changes = {"plan_id": new.plan.id, "failed": failed, **sizes}
    new.write_receipt(receipt.model_copy(update=changes))
    return not whole


def _receipt(run: Run, unit: str) -> Receipt:
    receipt = run.receipt(unit)
    if receipt is None or not run.intact(unit):
        raise RunError(f"{run.where}: {unit} is missing or damaged; `diffaug generate {run.where}` makes it again.")
    return receipt


def _fit(run: Run, new: Run, unit: FitUnit, gone: Set[str]) -> None:
    """Take a fit over, without what it holds of the images alone."""
    receipt, folder = _receipt(run, unit.name), new.fit_folder(unit.name)
    folder.mkdir(parents=True, exist_ok=True)
    holds = unit.kind in fits_by_image(run) and any(image in unit.payload for image in gone)
    origins = [run.fit_folder(unit.name) / file.file for file in receipt.files]
    files = [
        _left(path, folder, gone) if holds else write_atomically(folder / path.name, partial(shutil.copyfile, path))
        for path in origins
    ]
    new.write_receipt(receipt.model_copy(update={"plan_id": new.plan.id, "files": tuple(files)}))


def _quality(run: Run, new: Run) -> None:
    """What was measured of the rows that stay, and who said what they show; nothing where the run has no such file."""
    receipt, path = run.receipt(UNIT), run.folder / FILE
    if receipt is None or not run.intact(UNIT):
        return
    files: tuple[FileDigest, ...] = ()
    rows = 0
    if receipt.files:
        table = pq.read_table(path)
        ids = pa.array([row.row_id for row in (*new.plan.rows, *new.plan.real)], pa.string())
        table = table.filter(pc.is_in(table.column("row_id"), ids))
        rows = table.num_rows
        files = (write_atomically(new.folder / FILE, lambda temporary: pq.write_table(table, temporary)),)
    new.write_receipt(receipt.model_copy(update={"plan_id": new.plan.id, "files": files, "rows": rows}))


def _left(path: Path, folder: Path, gone: Set[str]) -> FileDigest:
    """The tensors that are not named after one of the images."""
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(path).items() if name.partition("/")[0] not in gone}
    return write_atomically(folder / path.name, lambda temporary: save_file(kept, temporary))

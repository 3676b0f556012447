"""Taking real images out of a plan that is drawn: their rows go, every other row stays what it is and where it is."""

from collections.abc import Collection, Sequence, Set

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Plan, PlanHeader, Shard
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable


def without_images(plan: Plan, images: Collection[str]) -> Plan:
    """The plan without these training images (sha256 of their bytes) and without every row that names one.

    The other rows keep their ids, seeds and draws, and shards their borders, so that a shard that holds none of these
    rows is the same file. Fits keep their names, also those that were made with the images in.

    Raises:
        PlanError: an id that no training image has, or no row would be left.
    """
    gone = set(images)
    if unknown := gone - {row.source_ids[0] for row in plan.real if row.split == "train"}:
        raise PlanError(
            f"withdrawn: got {sorted(unknown)[0]!r}, expected the sha256 of a real training image of this plan."
        )
    rows, real = _left(plan.rows, gone), _left(plan.real, gone)
    if not rows:
        raise PlanError("withdrawn: no synthetic row would be left; remove the set instead.")
    return Plan(_header(plan, gone, real), rows, real, plan.fits)


def learned_with(plan: Plan, images: Collection[str], by_image: Collection[str]) -> tuple[FitUnit, ...]:
    """The fits that these images had a part in and that other rows rest on too. `by_image`: kinds that hold each image
    by itself, so that one can be taken out.
    """
    return tuple(u for u in plan.fits if u.kind not in by_image and any(image in u.payload for image in images))


def _left(rows: Sequence[PlanRow], gone: Set[str]) -> tuple[PlanRow, ...]:
    return tuple(row for row in rows if row.split == "test" or gone.isdisjoint(row.source_ids))


def _header(plan: Plan, gone: Set[str], real: Sequence[PlanRow]) -> PlanHeader:
    old = plan.header
    withdrawn = sorted({*gone, *old.recipe.get("withdrawn", ())})
    sizes = {**(old.sizes or {}), **{stem: _sizes(plan, stem, gone) for stem in ("real", "synthetic")}}
    changes = {"recipe": {**old.recipe, "withdrawn": withdrawn}, "sources": _digest(old, real), "sizes": sizes}
    return old.model_copy(update={**changes, "gaps": _gaps(plan, gone)})


def _gaps(plan: Plan, gone: Set[str]) -> dict[str, tuple[int, ...]]:
    """Where rows are missing in each shard's order of work, so that the others keep their places in their batches."""
    orders = {shard.name: shard.in_order() for shard in plan.shards()}
    gaps = {name: [p for p, row in enumerate(o) if row is None or not _left([row], gone)] for name, o in orders.items()}
    return {name: tuple(places) for name, places in gaps.items() if places}


def _sizes(plan: Plan, stem: str, gone: Set[str]) -> tuple[int, ...]:
    """Rows that each shard keeps, also those that lost all of them, by number."""
    shards = {_number(s): s for s in (*plan.real_shards(), *plan.shards()) if s.name.startswith(f"{stem}-")}
    count = len((plan.header.sizes or {}).get(stem) or shards)
    return tuple(len(_left(shards[i].rows, gone)) if i in shards else 0 for i in range(count))


def _number(shard: Shard) -> int:
    return int(shard.name.rpartition("-")[2])


def _digest(header: PlanHeader, real: Sequence[PlanRow]) -> str:
    """The digest of the real images that are left, as `SourceTable` has it."""
    left = tuple(Source(row.source_ids[0], row.label, "") for row in real if row.split == "train")
    builder, names = str(header.recipe["builder"]), (header.class_names, header.prompt_names)
    return SourceTable(builder, "train", *names, header.metaclass, left).digest

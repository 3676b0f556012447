"""The plan: every image that will exist, drawn before anything is made.

Its id is a digest of canonical JSON lines, header first, then the rows in row order, so it is the same on any machine.
The dataset's revision is written down but does not count: the same images from elsewhere are the same plan.
Shards and batches are functions of the plan alone: they never depend on how many workers run, nor on real images that
are taken out later: their rows go, and every other row stays what it is and where it is. A plan is drawn, hashed and
cut in tables of some thousand rows (`core.plan_table`), and its id does not depend on how these were cut.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, SerializerFunctionWrapHandler, model_serializer

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.identity import RowKey, canonical
from diffaug_datasets.core.images import PIXEL_BYTES
from diffaug_datasets.core.memory import shard_sizes
from diffaug_datasets.core.method import FitUnit, Method, PlanSpec
from diffaug_datasets.core.plan_table import (
    GROUP_ROWS,
    Groups,
    HeldGroups,
    PlanRows,
    Sorting,
    TemporaryRows,
    chunks,
    column_of,
    columns_of,
    lines_of,
    plan_schema,
    regrouped,
    stored,
    table_of,
    tables_of,
)
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow, Split
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.core.turbo import check_turbo

PLAN_SCHEMA = 1
MOST_ROWS = 10_000_000  # ImageNet times 5 is 6.4 million
REAL_SHARD_ROWS = 1000
SHARD_BYTES = 500_000_000  # of images, encoded: what `datasets` makes a shard by itself
ASSUMED_SIDE = 512  # of a backbone that states no size
RESTORED = 3  # lossless bytes of a picture at its source's size, by the bytes of that source
TOO_MANY = "lower per_class or per_image, or plan parts of the classes (targets)."

ShardKind = Literal["real", "test", "synthetic"]


class PlanHeader(BaseModel):
    """What the rows rest on.

    `sizes`: rows per shard by kind of shard, where shards were cut by bytes (`SHARD_BYTES`) or rows were taken out of a
    plan that was made; shards of other kinds have a fixed number of rows. `gaps`: the places in a synthetic shard's
    order of work that are empty since rows were taken out, by its name. `columns`: of the dataset's own, that rows have
    behind the published ones; a dataset without any has a header without the key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = PLAN_SCHEMA
    name: str = Field(pattern=r"^\w[\w.-]*$")
    recipe: dict[str, Any]
    method_version: int
    class_names: tuple[str, ...]
    prompt_names: tuple[str, ...]
    metaclass: str
    sources: str
    test_sources: str | None
    source_revision: str
    backbone: str
    warnings: tuple[str, ...] = ()
    sizes: dict[ShardKind, tuple[NonNegativeInt, ...]] = {}
    gaps: dict[str, tuple[NonNegativeInt, ...]] = {}
    columns: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _only_what_is_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "columns" or value}


Batch = tuple[PlanRow | None, ...]
"""The rows of one planned batch, each at its place; None where a row was taken out of the plan later."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a plan that become one file; `gaps`: see `PlanHeader`.

    `real` and `test` shards hold the real images of the training and the test split.
    """

    kind: ShardKind
    number: int
    rows: Sequence[PlanRow]
    gaps: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Stem of its file, such as `synthetic-00000`."""
        return f"{self.kind}-{self.number:05d}"

    @property
    def split(self) -> Split:
        """The split that its rows belong to."""
        return "test" if self.kind == "test" else "train"

    def batches(self, size: int) -> Iterator[Batch]:
        """Rows grouped by the work they need, so that few batches mix start steps; the last may be short.

        A row's place in its batch is part of how it is made: kernels may give other last bits at another place.
        """
        order = self.in_order()
        batches = (order[i : i + size] for i in range(0, len(order), size))
        return (batch for batch in batches if any(batch))

    def in_order(self) -> Batch:
        """The rows in the order of work, None at the gaps."""
        rows = iter(sorted(self.rows, key=work_of))
        gaps = set(self.gaps)
        return tuple(None if place in gaps else next(rows) for place in range(len(self.rows) + len(gaps)))


@dataclass(frozen=True)
class Plan:
    """A header, the rows to make in row order, and the real rows that stand beside them.

    `known_id`: the id, where it has been computed from these rows before.
    """

    header: PlanHeader
    rows: Sequence[PlanRow]
    real: Sequence[PlanRow]
    fits: tuple[FitUnit, ...] = ()
    known_id: str | None = field(default=None, compare=False, repr=False)

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical JSON lines (header, real rows, synthetic rows), 64 hex digits."""
        if self.known_id is not None:
            return self.known_id
        hasher = hashlib.sha256(header_line(self.header))
        for table in chain(tables_of(self.real), tables_of(self.rows)):
            hasher.update(lines_of(table))
        return hasher.hexdigest()

    def shards(self) -> tuple[Shard, ...]:
        """The synthetic shards, in order.

        Raises:
            PlanError: the header states sizes or gaps that are not those of the rows.
        """
        return self._shards

    def real_shards(self) -> tuple[Shard, ...]:
        """The shards of real rows: those for training, then those of the test split. Raises PlanError as `shards`."""
        return self._real_shards

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        size = int(self.header.recipe["shard_rows"])
        if self._is_by_work:
            batch = int(self.header.recipe["batch_size"])
            size = max(batch, size - size % batch)
        return self._cut("synthetic", self.in_shard_order, size)

    @property
    def _is_by_work(self) -> bool:
        """Whether shards hold rows of like work, so that a plan has few batches of mixed start steps and one short one,
        not a few in every shard: in fast and turbo. Plans in exact were made before that was thought of.
        """
        return "name" in (profile := self.header.recipe.get("profile", {})) and profile["name"] != "exact"

    @cached_property
    def in_shard_order(self) -> Sequence[PlanRow]:
        """The rows to make, those of the first shard first."""
        if not self._is_by_work:
            return self.rows
        whole = pa.concat_tables(tables_of(self.rows))
        return PlanRows(HeldGroups(list(regrouped([whole.take(work_order(self.rows))]))))

    @cached_property
    def _real_shards(self) -> tuple[Shard, ...]:
        train, test = of_split(self.real, "train"), of_split(self.real, "test")
        return self._cut("real", train, REAL_SHARD_ROWS) + self._cut("test", test, REAL_SHARD_ROWS)

    def _cut(self, kind: ShardKind, rows: Sequence[PlanRow], size: int) -> tuple[Shard, ...]:
        """Shards of `size` rows, the last of which may be short; where the header states sizes, of so many rows each,
        and a shard that lost all its rows is left out.
        """
        sizes = self.header.sizes.get(kind)
        if sizes is None:
            count = math.ceil(len(rows) / size)
            return tuple(Shard(kind, i, rows[i * size : (i + 1) * size]) for i in range(count))
        if sum(sizes) != len(rows):
            raise PlanError(f"the plan has {len(rows)} {kind} rows, its shards {sum(sizes)}; plan again.")
        ends = enumerate(zip(sizes, accumulate(sizes), strict=True))
        shards = tuple(Shard(kind, i, rows[end - size : end]) for i, (size, end) in ends if size)
        shards = tuple(replace(shard, gaps=self.header.gaps.get(shard.name, ())) for shard in shards)
        if lost := [s.name for s in shards if any(gap >= len(s.rows) + len(set(s.gaps)) for gap in s.gaps)]:
            raise PlanError(f"the plan has gaps behind the end of {lost[0]}; plan again.")
        return shards

    def images_per_class(self) -> Counter[str]:
        """Class name -> planned synthetic images."""
        names = self.header.class_names
        return Counter(dict.fromkeys(names, 0)) + Counter({names[i]: n for i, n in labels_of(self.rows).items()})


def header_line(header: PlanHeader) -> bytes:
    """The first line of the text whose digest is the plan id."""
    return canonical(header.model_dump(mode="json", exclude={"source_revision"})).encode() + b"\n"


def labels_of(rows: Sequence[PlanRow]) -> Counter[int]:
    """Class id -> rows."""
    counted = pc.value_counts(column_of(rows, "label")) if len(rows) else ()
    return Counter({int(one["values"].as_py()): int(one["counts"].as_py()) for one in counted})


def of_split(rows: Sequence[PlanRow], split: Split) -> Sequence[PlanRow]:
    """The real rows of one split; those for training stand first."""
    chosen = np.asarray(pc.equal(column_of(rows, "split"), split)) if len(rows) else np.zeros(0, bool)
    places = np.flatnonzero(chosen)
    if not len(places):
        return rows[:0]
    begin, end = int(places[0]), int(places[-1]) + 1
    return rows[begin:end] if end - begin == len(places) else tuple(rows[int(i)] for i in places)


def work_of(row: PlanRow) -> tuple[int, int, str]:
    """Rows that begin at one step of one schedule stand together."""
    return row.num_inference_steps or 0, row.start_step or 0, row.row_id


def work_order(rows: Sequence[PlanRow]) -> NDArray[np.int64]:
    """The places of rows, which have the order of their ids, in that of `work_of`."""
    keys = ("start_step", "num_inference_steps")  # the last one counts most
    return np.lexsort([pc.fill_null(column_of(rows, name), 0).to_numpy() for name in keys])


def real_rows(table: SourceTable, seed: int, split: Split) -> PlanRows:
    """One row per real image, in the table's order. Test rows hash another method name, so no id clashes."""
    return PlanRows(HeldGroups(list(_real_tables(table, seed, split))))


def _real_tables(table: SourceTable, seed: int, split: Split) -> Iterator[pa.Table]:
    counts: Counter[int] = Counter()
    for begin in range(0, len(table), GROUP_ROWS):
        sources = table.sources[begin : begin + GROUP_ROWS]
        keys = []
        for source in sources:
            key = RowKey(seed, "real" if split == "train" else "real_test", source.label, counts[source.label])
            counts[source.label] += 1
            keys.append(key)
        labels = [key.class_id for key in keys]
        columns: Mapping[str, Sequence[object]] = {
            "label": labels,
            "soft_label": [{"class": [label], "weight": [1.0]} for label in labels],
            "row_id": [key.row_id for key in keys],
            "source_ids": [[source.id] for source in sources],
            "source_labels": [[label] for label in labels],
            "k": [key.k for key in keys],
        }
        same = {"origin": "real", "is_synthetic": False, "method": "real", "method_version": 0, "split": split}
        same |= {"draw": "{}", "adapters": []}
        whole = {
            field.name: pa.array(columns.get(field.name, [same.get(field.name)] * len(keys)), field.type)
            for field in plan_schema()
        }
        yield pa.table(whole, schema=plan_schema())


def draw_plan(
    name: str,
    recipe: Recipe,
    table: SourceTable,
    test: SourceTable | None,
    spec: PlanSpec,
    warnings: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Plan:
    """The plan of a recipe, under a config name, over the real images of its protocol; `columns`: of the dataset's own.

    Raises:
        PlanError: more rows than a plan holds, which is seen before any is drawn; two rows share an id, the method
            draws no row at all, or none for a class without images.
    """
    method, config = recipe.method_definition, recipe.planned_config
    check_size(recipe, table, spec)
    folder = TemporaryRows()
    made, planned = _drawn(name, method, method.plan(config, table, spec), folder)
    if not made.rows:
        raise PlanError(f"{name}: {method.NAME} plans no image for these sources; raise per_image or per_class.")
    _check_empty_classes(method, table, spec, planned)

    def real() -> Iterator[pa.Table]:
        yield from _real_tables(table, recipe.seed, "train")
        yield from _real_tables(test, recipe.seed, "test") if test else ()

    count = len(table) + len(test or ())
    groups: Groups = stored(real, made, folder, folder, count)
    rows, beside = PlanRows(groups, count), PlanRows(groups, 0, count)
    _check_repeated(method, rows)
    if recipe.profile.is_turbo:
        check_turbo(recipe, rows)
    header = PlanHeader(
        name=name,
        recipe=recipe.identity(),
        method_version=method.VERSION,
        class_names=table.class_names,
        prompt_names=table.prompt_names,
        metaclass=table.metaclass,
        sources=table.digest,
        test_sources=test.digest if test else None,
        source_revision=table.revision,
        backbone=spec.backbone,
        warnings=(*warnings, *_without_rows(table, spec, planned)),
        sizes=_sizes_by_bytes(recipe, rows, table.sources, test.sources if test else ()),
        columns=tuple(columns),
    )
    return Plan(header, rows, beside, method.fits(config, table, spec, rows))


def _drawn(name: str, method: Method, rows: Iterable[PlanRow], folder: TemporaryRows) -> tuple[Sorting, Set[int]]:
    """All rows of a method, to be put in order, and their labels. Raises PlanError where they are too many."""
    made, labels = Sorting(folder), set[int]()
    for chunk in chunks(rows, GROUP_ROWS):
        made.add(table_of(chunk))
        labels.update(row.label for row in chunk)
        if made.rows > MOST_ROWS:
            raise PlanError(f"{name}: {method.NAME} plans more than {MOST_ROWS:,} images; {TOO_MANY}")
    return made, labels


def _check_repeated(method: Method, rows: PlanRows) -> None:
    """Raises PlanError where two rows, which stand beside each other then, share an id."""
    last = pa.array([], pa.string())
    for table in rows.tables(["row_id"]):
        ids = pa.chunked_array([last, *table.column("row_id").chunks], pa.string())
        same = pc.equal(ids[1:], ids[:-1])
        if pc.any(same, min_count=0).as_py():
            repeated = ids[1:].filter(same)[0].as_py()
            raise PlanError(f"{method.NAME} drew row {repeated} twice; a row is (method, class, k).")
        last = ids[-1:].combine_chunks()


def _sizes_by_bytes(
    recipe: Recipe, rows: PlanRows, train: Sequence[Source], test: Sequence[Source]
) -> dict[ShardKind, tuple[int, ...]]:
    """Rows per shard, by kind, where a shard of the usual number of rows would hold more than `SHARD_BYTES`."""
    height, width = (side or ASSUMED_SIDE for side in (recipe.backbone.height, recipe.backbone.width))
    own = int(height * width * PIXEL_BYTES[recipe.image_format])
    made = np.full(len(rows), own)
    if recipe.method_config.requirements.at_source_size:
        sizes = {source.id: RESTORED * source.size for source in (*train, *test)}
        place = 0
        for table in rows.tables(["source_ids"]):
            for ids in table.column("source_ids").to_pylist():
                made[place] = sizes[ids[0]] if ids else own
                place += 1
    if not recipe.profile.is_exact:
        made = made[work_order(rows)]
    cuts: dict[ShardKind, tuple[int, ...] | None] = {
        "synthetic": shard_sizes(made, recipe.shard_rows, SHARD_BYTES, recipe.batch_size),
        "real": shard_sizes(np.array([source.size for source in train], int), REAL_SHARD_ROWS, SHARD_BYTES),
        "test": shard_sizes(np.array([source.size for source in test], int), REAL_SHARD_ROWS, SHARD_BYTES),
    }
    return {kind: sizes for kind, sizes in cuts.items() if sizes is not None}


def check_size(recipe: Recipe, table: SourceTable, spec: PlanSpec) -> None:
    """Refuse before it is drawn a plan that no machine should hold.

    Raises:
        PlanError: more than `MOST_ROWS` rows; names the key that asks for them.
    """
    wanted = spec.targets or range(len(table.class_names))
    planned = sum(spec.count(len(images)) for label, images in table.by_class().items() if label in wanted)
    if planned > MOST_ROWS:
        key = "per_image" if recipe.per_class is None else "per_class"
        raise PlanError(
            f"{key}: got {getattr(recipe, key):,.9g}, which makes {planned:,} images of {len(wanted):,} classes, "
            f"expected {MOST_ROWS:,} at most; {TOO_MANY}"
        )


def _check_empty_classes(method: Method, table: SourceTable, spec: PlanSpec, planned: Set[int]) -> None:
    empty = [label for label, images in table.by_class().items() if not images and label not in planned]
    if unmet := [label for label in empty if label in (spec.targets or empty)]:
        raise PlanError(
            f"class {table.class_names[unmet[0]]!r} has no training image, so {method.NAME} plans nothing for it; set "
            "per_class with a method that needs none (txt2img, genie), or partial: true to leave such classes out."
        )


def _without_rows(table: SourceTable, spec: PlanSpec, planned: Set[int]) -> Iterator[str]:
    """A warning where classes that have images get none made: skipped ones, or too few images for one row."""
    wanted = spec.targets or range(len(table.class_names))
    bare = [label for label, images in table.by_class().items() if images and label in wanted and label not in planned]
    if bare:
        yield f"no image is planned for {len(bare)} of {len(wanted)} classes, such as {table.class_names[bare[0]]!r}."


def without_images(plan: Plan, images: Collection[str]) -> Plan:
    """The plan without these training images (sha256 of their bytes) and without every row that names one.

    The other rows keep their ids, seeds and draws, and shards their borders, so that a shard that holds none of these
    rows is the same file. Fits keep their names, also those that were made with the images in.

    Raises:
        PlanError: an id that no training image has, or no row would be left.
    """
    gone = set(images)
    if unknown := gone - {ids[0] for ids, split in columns_of(plan.real, "source_ids", "split") if split == "train"}:
        raise PlanError(
            f"withdrawn: got {sorted(unknown)[0]!r}, expected the sha256 of a real training image of this plan."
        )
    rows, real = PlanRows.of(_left(plan.rows, gone)), PlanRows.of(_left(plan.real, gone))
    if not rows:
        raise PlanError("withdrawn: no synthetic row would be left; remove the set instead.")
    return Plan(_header_without(plan, gone, real), rows, real, plan.fits)


def learned_with(plan: Plan, images: Collection[str], by_image: Collection[str]) -> tuple[FitUnit, ...]:
    """The fits that these images had a part in and that other rows rest on too. `by_image`: kinds that hold each image
    by itself, so that one can be taken out.
    """
    return tuple(u for u in plan.fits if u.kind not in by_image and any(image in u.payload for image in images))


def _left(rows: Iterable[PlanRow], gone: Set[str]) -> Iterator[PlanRow]:
    return (row for row in rows if row.split == "test" or gone.isdisjoint(row.source_ids))


def _header_without(plan: Plan, gone: Set[str], real: Sequence[PlanRow]) -> PlanHeader:
    old = plan.header
    left = tuple(Source(row.source_ids[0], row.label, "") for row in real if row.split == "train")
    names = (old.class_names, old.prompt_names, old.metaclass)
    sizes: dict[ShardKind, tuple[int, ...]] = {kind: _sizes(plan, kind, gone) for kind in ("real", "synthetic")}
    changes = {
        "recipe": {**old.recipe, "withdrawn": sorted({*gone, *old.recipe.get("withdrawn", ())})},
        "sources": SourceTable(str(old.recipe["builder"]), "train", *names, left).digest,
        "sizes": {**old.sizes, **sizes},
        "gaps": _gaps(plan, gone),
    }
    return old.model_copy(update=changes)


def _gaps(plan: Plan, gone: Set[str]) -> dict[str, tuple[int, ...]]:
    """Where rows are missing in each shard's order of work, so that the others keep their places in their batches."""
    orders = {shard.name: shard.in_order() for shard in plan.shards()}
    gaps = {
        name: tuple(place for place, row in enumerate(order) if row is None or not any(_left([row], gone)))
        for name, order in orders.items()
    }
    return {name: places for name, places in gaps.items() if places}


def _sizes(plan: Plan, kind: ShardKind, gone: Set[str]) -> tuple[int, ...]:
    """Rows that each shard keeps, also those that lost all of them, by number."""
    shards = {shard.number: shard for shard in (*plan.real_shards(), *plan.shards()) if shard.kind == kind}
    count = len(plan.header.sizes.get(kind) or shards)
    return tuple(sum(1 for _ in _left(shards[i].rows, gone)) if i in shards else 0 for i in range(count))

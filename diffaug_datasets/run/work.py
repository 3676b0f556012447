"""What the units of a plan take, in rows that the U-Net computes: known before anything is made, without torch."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.plan_table import plan_schema, tables_of
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.turbo import evaluations
from diffaug_datasets.models.model_folder import embeds_guidance

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAINING = 3  # a step back costs two steps forward
MOST_LEAVES = 100_000  # values of one column that are remembered
PLAIN = {field.name for field in plan_schema() if not pa.types.is_struct(field.type)}


def fit_evaluations(unit: FitUnit) -> int:
    """U-Net rows of a fit, as its payload says: training steps times batch, or calls of an image (its steps, where it
    states none) times images; else none.
    """
    return _training(unit) or unit.calls


def fit_work(unit: FitUnit) -> int:
    """What a fit takes, in evaluations without gradients."""
    return fit_evaluations(unit) * (TRAINING if _training(unit) else 1)


def shard_evaluations(recipe: Recipe, plan: Plan) -> dict[str, tuple[int, int]]:
    """U-Net rows of every shard, by its name, and how many of them are idle.

    Every batch has its planned shape, and its longest row decides how often the network is called. All rows are passed
    over once, in columns.
    """
    costs = Costs(recipe)
    of_rows, order = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)]
    for table in tables_of(plan.in_shard_order):
        of_rows.append(costs.of(table))
        steps = [pc.fill_null(table.column(name), 0).to_numpy() for name in ("start_step", "num_inference_steps")]
        order.append(np.stack(steps, axis=1).astype(np.int64))
    cost, keys = np.concatenate(of_rows), np.concatenate(order)
    found: dict[str, tuple[int, int]] = {}
    begin = 0
    for shard in plan.shards():
        part = slice(begin, begin + len(shard.rows))
        in_order = cost[part][np.lexsort(keys[part].T)]  # rows have the order of their ids, which decides among equals
        found[shard.name] = _batched(in_order, shard.gaps, recipe.batch_size)
        begin = part.stop
    return found


def _batched(costs: "NDArray[np.int64]", gaps: Sequence[int], size: int) -> tuple[int, int]:
    """Of rows in their order of work, batches of `size` with gaps: rows computed, and those that are idle."""
    places = np.ones(len(costs) + len(set(gaps)), bool)
    places[list(set(gaps))] = False
    spread = np.zeros(-(-len(places) // size) * size, np.int64)
    spread[: len(places)][places] = costs
    computed = size * int(spread.reshape(-1, size).max(axis=1).sum())
    return computed, computed - int(costs.sum())


class Costs:
    """What rows take, by the method's `evaluations`, which is asked once for all rows that it cannot tell apart.

    It is a pure function, so what it looks at first is always the same column, and the value there decides what it
    looks at next: a tree of columns and values whose leaves are its answers. A function that does more with a row than
    look at columns is asked of every row.
    """

    _in_one_branch = False

    def __init__(self, recipe: Recipe) -> None:
        self._ask = partial(evaluations, recipe)
        self._in_one_branch = embeds_guidance(recipe.backbone)
        self._tree: _Look | int | None = None

    def of(self, table: pa.Table) -> "NDArray[np.int64]":
        """Of every row, what it takes; a network that is told the scale of guidance has one branch, as if unguided."""
        if self._in_one_branch:
            place = table.schema.get_field_index("guidance_scale")
            unguided = pa.repeat(pa.scalar(1.0, table.schema.field(place).type), table.num_rows)
            table = table.set_column(place, table.schema.field(place), unguided)
        columns: dict[str, list[Any]] = {}
        found = np.zeros(table.num_rows, np.int64)
        for place in range(table.num_rows):
            node = self._tree
            while isinstance(node, _Look):
                if node.column not in columns:
                    columns[node.column] = _hashable(table.column(node.column))
                node = node.then.get(columns[node.column][place])
            found[place] = self._learn(table, place) if node is None else node
        return found

    def _learn(self, table: pa.Table, place: int) -> int:
        witness = _Witness(PlanRow(**table.slice(place, 1).to_pylist()[0]))
        cost = int(self._ask(witness))  # type: ignore[arg-type]  # it is a row to whoever looks at columns
        if witness.is_opaque:
            return cost
        if not witness.seen:
            self._tree = cost
            return cost
        path = list(witness.seen.items())
        node = self._tree = self._tree if isinstance(self._tree, _Look) else _Look(path[0][0])
        for (name, value), following in zip_longest(path, path[1:]):
            if node.column != name:  # not a pure function
                return cost
            if following is None:
                if len(node.then) < MOST_LEAVES:
                    node.then[value] = cost
                return cost
            below = node.then.get(value)
            if not isinstance(below, _Look):
                below = node.then[value] = _Look(following[0])
            node = below
        return cost


@dataclass
class _Look:
    """At a column; what follows from each of its values."""

    column: str
    then: "dict[Hashable, _Look | int]" = field(default_factory=dict)


class _Witness:
    """A row that notes which of its columns are looked at, in their order, and their values."""

    def __init__(self, row: PlanRow) -> None:
        self._row = row
        self.seen: dict[str, Hashable] = {}
        self.is_opaque = False

    def __getattr__(self, name: str) -> object:
        value: object = getattr(self._row, name)
        if name not in PLAIN:
            self.is_opaque = True
        self.seen.setdefault(name, value)
        return value


def _hashable(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return [tuple(value) for value in values] if pa.types.is_list(column.type) else values


def unit_work(recipe: Recipe, plan: Plan) -> Mapping[str, int]:
    """Name of every fit and shard -> its part of the whole work; at least 1, for there are other things to do too."""
    taken = shard_evaluations(recipe, plan)
    shards = {shard.name: max(len(shard.rows), taken[shard.name][0]) for shard in plan.shards()}
    return {**{unit.name: max(1, fit_work(unit)) for unit in plan.fits}, **shards}


def _training(unit: FitUnit) -> int:
    """U-Net rows that a fit is trained with; 0 for one that is computed without gradients."""
    config = unit.content.get("config")
    if not isinstance(config, dict) or "steps" not in config:
        return 0
    return int(config["steps"]) * int(config.get("batch", 1))

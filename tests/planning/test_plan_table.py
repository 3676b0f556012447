"""A plan is the same however it was streamed: in memory or by way of the disk, in groups of any size."""

import copy
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffaug_datasets import Recipe, plan
from diffaug_datasets.core import plan as plans
from diffaug_datasets.core import plan_table
from diffaug_datasets.core.errors import PlanError, RunError
from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import PlanSpec, new_row
from diffaug_datasets.core.plan_table import PlanRows, Sorting, columns_of, lines_of, regrouped, table_of
from diffaug_datasets.core.rows import PlanRow, SoftLabel
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import genie
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.work import Costs, shard_evaluations

SPEC = PlanSpec(7, "tiny@1", 4, 3.0)
ODD = 'a "quoted" \\ text\twith\u2028 é 𝄞 and \x1f'


def rows(count: int = 50) -> list[PlanRow]:
    """Rows with every kind of value: nothing, texts that JSON escapes, soft labels, numbers that are no float32."""

    def row(k: int) -> PlanRow:
        columns: dict[str, Any] = {"prompt": [None, "", ODD, "plain"][k % 4], "guidance_scale": [None, 7.5, 0.1][k % 3]}
        columns |= {
            "source_ids": tuple("ab" * (k % 3)),
            "source_labels": tuple(range(k % 3)),
            "draw": json.dumps({"u": k / 7}),
        }
        columns |= {"start_step": k % 2, "num_inference_steps": 5, "adapters": ("x-1",) * (k % 2)}
        if k % 5 == 0:
            columns["soft_label"] = SoftLabel.mixed([(1, 0.3), (0, 0.7)])
        return new_row(1, RowKey(7, "m", k % 2, k), SPEC, **columns)

    return [row(k) for k in range(count)]


def reference_lines(made: list[PlanRow]) -> bytes:
    """What the standard library makes of rows."""
    dumps = (row.model_dump(mode="json", by_alias=True) for row in made)
    texts = (json.dumps(d, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for d in dumps)
    return "".join(text + "\n" for text in texts).encode()


def test_lines_of_columns_are_canonical_json() -> None:
    made = rows()
    table = table_of(made)
    assert bytes(lines_of(table)) == reference_lines(made)
    assert bytes(lines_of(table.slice(11, 7))) == reference_lines(made[11:18])
    assert bytes(lines_of(table.slice(0, 0))) == b""
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines_of(
            table.set_column(
                table.column_names.index("strength"), "strength", pa.array([float("nan")] * 50, pa.float32())
            )
        )


def test_rows_come_back_as_they_were_whole_sliced_and_by_place() -> None:
    made = rows(3000)  # several pages
    held = PlanRows.of(iter(made))
    assert len(held) == 3000 and list(held) == made and held == made and held == PlanRows.of(made)
    assert held[2999] == made[2999] == held[-1] and list(held[1000:1100]) == made[1000:1100]
    assert list(held[5:2000][10:20]) == made[15:25] and list(held[10:0]) == [] and held[:-1] != held
    assert list(columns_of(held[7:9], "k", "source_ids")) == [(r.k, list(r.source_ids)) for r in made[7:9]]
    assert list(copy.copy(held)) == list(copy.deepcopy(held)) == made
    with pytest.raises(IndexError):
        held[3000]


@pytest.mark.parametrize("held", [0, 700, 10_000])
def test_rows_are_sorted_in_memory_or_on_the_disk(tmp_path: Path, held: int) -> None:
    made = rows(2500)
    sorting = Sorting(lambda: tmp_path, held)
    for begin in range(0, 2500, 300):
        sorting.add(table_of(made[begin : begin + 300]))
    groups = list(regrouped(sorting.tables(), 512))
    assert [group.num_rows for group in groups] == [512] * 4 + [452]
    ids = [row_id for group in groups for row_id in group.column("row_id").to_pylist()]
    assert ids == sorted(row.row_id for row in made) and not list(tmp_path.iterdir())
    assert list(PlanRows(plan_table.HeldGroups(groups))) == sorted(made, key=lambda row: row.row_id)


@pytest.fixture
def recipe() -> Recipe:
    content = {"builder": "fashion", "protocol": "5shot", "method": "diff_ii", "per_class": 60, "shard_rows": 64}
    config = {"suffixes": ["in the rain"]}
    return Recipe.model_validate({**content, "config": config, "backbone": {"id": "tiny"}, "include_test": False})


def test_a_plan_is_the_same_however_it_was_streamed(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plan(recipe, tmp_path / "one")
    for module in (plans, plan_table):
        monkeypatch.setattr(module, "GROUP_ROWS", 100)
    monkeypatch.setattr(plan_table, "HELD_ROWS", 10)
    monkeypatch.setattr(Sorting.__init__, "__defaults__", (150,))
    two = plan(recipe, tmp_path / "two")
    assert pq.ParquetFile(tmp_path / "two" / "plan.parquet").num_row_groups > 1
    assert one.plan.id == two.plan.id and list(one.plan.rows) == list(two.plan.rows) and one.plan.rows == two.plan.rows
    assert [s.rows for s in one.plan.shards()] == [s.rows for s in two.plan.shards()] and one.plan.fits == two.plan.fits
    header = json.loads((tmp_path / "two" / "plan.json").read_text())["header"]
    header.pop("source_revision")
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    assert one.plan.id == hashlib.sha256(text + reference_lines([*two.plan.real, *two.plan.rows])).hexdigest()


def test_an_opened_plan_reads_no_rows_until_it_is_asked(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(recipe, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(plan_table.Groups, "_decode", lambda *_: pytest.fail("rows were read"))
        patch.setattr(plan_table.FileGroups, "table", lambda *_: pytest.fail("columns were read"))
        run = Run.open(tmp_path / "run")
        assert len(run.plan.rows) == 600 and len(run.plan.shards()) == 10
    content = json.loads((tmp_path / "run" / "plan.json").read_text())
    content["rows"]["real"] = (
        0  # the seal is broken, so the id is computed anew, and rows are told apart by their origin
    )
    (tmp_path / "run" / "plan.json").write_text(json.dumps(content))
    assert len(Run.open(tmp_path / "run").plan.rows) == 600
    content["header"]["warnings"] = ["another"]
    (tmp_path / "run" / "plan.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"plan\.parquet does not belong to plan\.json"):
        Run.open(tmp_path / "run")


def test_a_row_that_comes_twice_is_refused_across_groups() -> None:
    made = rows(20)
    twice = sorted([*made, made[4]], key=lambda row: row.row_id)
    parts = plan_table.HeldGroups([table_of(twice[i : i + 1]) for i in range(21)])
    method = Recipe.model_validate({"builder": "fashion", "method": "genie"}).method_definition
    with pytest.raises(PlanError, match=f"genie drew row {made[4].row_id} twice"):
        plans._check_repeated(method, PlanRows(parts))


def test_evaluations_are_those_of_every_row(tmp_path: Path) -> None:
    for method, config in (("genie_ada", {"encoder": "tiny"}), ("img2img", {"strength": 0.5}), ("txt2img", {})):
        content = {"builder": "fashion", "protocol": "5shot", "method": method, "per_class": 7, "shard_rows": 16}
        recipe = Recipe.model_validate({**content, "config": config, "batch_size": 4, "backbone": {"id": "tiny"}})
        drawn = plan(recipe, tmp_path / method).plan
        for shard in drawn.shards():
            batches = [[row for row in batch if row] for batch in shard.batches(4)]
            costs = [[recipe.method_definition.evaluations(recipe.method_config, row) for row in b] for b in batches]
            computed = sum(4 * max(batch) for batch in costs)
            assert shard_evaluations(recipe, drawn)[shard.name] == (computed, computed - sum(map(sum, costs)))


def test_costs_follow_functions_that_look_at_other_columns_for_other_rows() -> None:
    asked = []

    def evaluations(_config: object, row: PlanRow) -> int:
        asked.append(0)
        if row.start_step:
            return len(row.source_ids)
        return 100 + (row.guidance_scale is None)

    costs = Costs.__new__(Costs)
    costs._ask, costs._tree = lambda row: evaluations(None, row), None
    made = rows(200)
    found = costs.of(table_of(made)).tolist()
    assert len(asked) < 20
    assert found == [len(r.source_ids) if r.start_step else 100 + (r.guidance_scale is None) for r in made]


def table(classes: int, each: int) -> SourceTable:
    """Invented images."""
    sources = (Source(hashlib.sha256(f"{i}".encode()).hexdigest(), i // each, str(i)) for i in range(classes * each))
    names = tuple(f"c{i}" for i in range(classes))
    return SourceTable("b", "train", names, names, "", tuple(sources))


def test_large_plans_of_genie_shuffle_and_use_each_source_before_any_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, cfg, spec = table(5, 8), genie.Config(), PlanSpec(0, "b", 4, 5.0)
    before = [row.source_ids for row in genie.plan(cfg, images, spec)]
    monkeypatch.setattr(genie, "_MOST_DIGESTS", 100)
    drawn: dict[int, list[PlanRow]] = {}
    for row in genie.plan(cfg, images, spec):
        drawn.setdefault(row.label, []).append(row)
    assert [row.source_ids for own in drawn.values() for row in own] != before
    for label, own in drawn.items():
        assert all(row.source_labels != (label,) for row in own) and len(own) == 40
        assert len({row.source_ids for row in own[:32]}) == 32
        assert [row.source_ids for row in own[32:]] == [row.source_ids for row in own[:8]]
    assert len({tuple(row.source_ids for row in own[:4]) for own in drawn.values()}) == 5


def test_the_shuffle_is_uniform() -> None:
    images = table(1, 5).sources
    groups = [images[:3], images[3:]]
    firsts = [genie._shuffled(f"{seed}|", groups, 2) for seed in range(4000)]
    seen = Counter((a.key, b.key) for a, b in firsts)
    assert len(seen) == 5 * 4  # every ordered pair of the five images
    assert all(140 < count < 260 for count in seen.values())  # 200 on average, four deviations of 14

"""A row is the same wherever it is made again, and a stack is known by what it computes: each refusal and its word."""

import io
import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command
from PIL import Image
from small_runs import loading, small_run
from test_batch_faults import executed, load_misbehaving, misbehaving, rows_of, seeds_of

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.images import pixel_sha256
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import without_images
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.fingerprint import backbone_fingerprint
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.context import sources_in
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.rebuild import MOST_LEVELS, MOST_MEAN, Closeness, Rebuilt, Regenerator, closeness
from diffaug_datasets.run.shards import stored_rows
from diffaug_datasets.run.stacks import difference, merged_stacks, same_stack
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

FEED = "feedfeedfeedfeed"


@dataclass
class Kernels:
    """A real backbone on kernels whose bits depend on the place in the batch, on the neighbours, or are just others."""

    inner: Any
    place: float = 0.0
    beside: float = 0.0
    other: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def guided_eps(self, xt: torch.Tensor, *rest: Any) -> torch.Tensor:
        eps = self.inner.guided_eps(xt, *rest)
        places = torch.arange(len(eps)).view(-1, 1, 1, 1)
        return eps * (1 + self.other) + self.place * places + self.beside * xt.nan_to_num().mean()


def load_kernels(spec: BackboneSpec, device: str, spoil: dict[int, float] | None = None, **kind: float) -> Any:
    return Kernels(load_misbehaving(spec, device, spoil=spoil or {}), **kind)


NEIGHBOURS = {"place": 1e-2, "beside": 1e-1}


def regenerator(run: Run) -> Regenerator:
    tables = [run.table(shard) for shard in run.plan.real_shards()]
    return Regenerator(run.recipe, run.plan, run.folder / "fits", sources_in(tables))


def columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "image"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of 20 rows; nothing may change it."""
    run = small_run(tmp_path_factory.mktemp("stacks") / "run", "txt2img")
    execute(run, WorkerOptions(), workers=1)
    return Run.open(run.folder)


def begun(whole: Run, folder: Path, **stack: str) -> Run:
    """A run of three shards, the last one missing, the others made on a stack of which this is changed."""
    shutil.copytree(whole.folder, folder)
    run = Run.open(folder)
    for shard in run.plan.shards():
        receipt = run.receipt(shard.name)
        assert receipt is not None
        run.receipt_path(shard.name).unlink()
        run.write_receipt(receipt.model_copy(update={"stack": {**receipt.stack, **stack}}))
    run.receipt_path("synthetic-00002").unlink()
    (run.folder / "run.json").unlink()
    return run


def test_a_row_is_made_again_as_it_was_where_place_and_neighbours_matter(tmp_path: Path) -> None:
    """Rows of ragged batches, of a second attempt, and beside a row that failed."""
    run = small_run(tmp_path / "run", "txt2img", batch_size=5, failure_budget=1.0)
    unlucky, hopeless = run.plan.rows[3], run.plan.rows[9]
    spoil = dict.fromkeys(seeds_of(run, unlucky, [0]) + seeds_of(run, hopeless, [0, 1, 2]), float("nan"))
    executed(run, partial(load_kernels, spoil=spoil, **NEIGHBOURS))
    rows, again = rows_of(run), regenerator(run)
    assert rows[unlucky.row_id]["attempt"] == 1 and len(rows) == 19
    with loading(partial(load_kernels, **NEIGHBOURS)):
        assert all(again(columns(row)).equal for row in rows.values())
    alone = regenerator(run)
    assert not any(alone(columns(row)).equal for row in list(rows.values())[:5])  # else it would prove nothing


def test_who_fails_beside_a_row_changes_none_of_its_columns(tmp_path: Path) -> None:
    clean, faulty = small_run(tmp_path / "a", "txt2img"), small_run(tmp_path / "b", "txt2img")
    spoil = dict.fromkeys(seeds_of(clean, clean.plan.rows[4], [0, 1, 2]), float("nan"))
    spoil |= dict.fromkeys(seeds_of(clean, clean.plan.rows[7], [0]), float("nan"))
    executed(clean, partial(load_kernels, **NEIGHBOURS))
    executed(faulty, partial(load_kernels, spoil=spoil, **NEIGHBOURS))
    expected, got = rows_of(clean), rows_of(faulty)
    for row in (clean.plan.rows[4], clean.plan.rows[7]):
        del expected[row.row_id]
        got.pop(row.row_id, None)
    assert got == expected


def test_halves_of_odd_batches_keep_every_row_and_are_made_again(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img", batch_size=5)
    executed(run, misbehaving(most_rows=3))
    rows = rows_of(run)
    assert len(rows) == 20 and {row["batch_shape"] for row in rows.values()} == {3}
    again = regenerator(run)
    assert all(again(columns(row)).equal for row in rows.values())
    row = next(iter(rows.values()))
    with pytest.raises(RunError, match="was made in a batch of 4, to which a planned batch of 5 is never cut"):
        again({**columns(row), "batch_shape": 4})
    with pytest.raises(RunError, match=r"is none of plan .*; give the plan that it was made under"):
        again({**columns(row), "row_id": "0" * 24})


def test_withdrawn_rows_leave_their_places_empty(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "img2img")

    def places(plan: Any) -> dict[str, int]:
        batches = [batch for shard in plan.shards() for batch in shard.batches(3)]
        return {row.row_id: place for batch in batches for place, row in enumerate(batch) if row is not None}

    gone = run.plan.rows[4].source_ids[0]
    left = without_images(run.plan, [gone])
    assert len(left.rows) < len(run.plan.rows)
    assert places(left) == {name: p for name, p in places(run.plan).items() if name in {r.row_id for r in left.rows}}


def test_another_fingerprint_is_refused_and_another_name_is_not(whole: Run, tmp_path: Path) -> None:
    run = begun(whole, tmp_path / "other", numerics=FEED)
    with pytest.raises(RunError, match=rf"begun on .*{FEED}.*, this is .*numerics.*Continue there, or give --allow"):
        execute(run, WorkerOptions(), workers=1)
    assert run.receipt("synthetic-00002") is None
    done = execute(run, WorkerOptions(allow_mixed_stack=True), workers=1)
    assert done is not None and (done.tier, len(done.stacks)) == ("T2", 2)
    assert {stack["numerics"] == FEED for stack in done.stacks} == {True, False}
    renamed = execute(begun(whole, tmp_path / "name", device="AVX1024"), WorkerOptions(), workers=1)
    assert renamed is not None and (renamed.tier, len(renamed.stacks)) == ("T0", 1)
    with pytest.raises(RunError, match=r"begun on .*0\.0\.1"):
        execute(begun(whole, tmp_path / "version", torch="0.0.1"), WorkerOptions(), workers=1)


def test_a_finished_run_states_what_its_networks_compute(whole: Run) -> None:
    done = finished(whole)
    assert done is not None
    [stack] = done.stacks
    assert len(stack["numerics"]) == len(stack["numerics_scores"]) == 16
    regenerate = regenerator(whole)
    assert same_stack(stack, regenerate.stack) and regenerate.stack["numerics"] == stack["numerics"]
    with loading(partial(load_kernels, other=1e-7)):
        assert not same_stack(stack, regenerator(whole).stack)
    evaluations = sum(
        whole.recipe.method_definition.evaluations(whole.recipe.method_config, row) for row in whole.plan.rows
    )
    padded = 3 * sum(len(list(shard.batches(3))) for shard in whole.plan.shards())
    assert done.evaluations == evaluations // len(whole.plan.rows) * padded  # the probe is not counted


def test_the_fingerprint_is_of_the_shape_that_memory_holds(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img", batch_size=5)
    backbone = Backbone.load(run.recipe.backbone)
    assert backbone_fingerprint(backbone, 3) == backbone_fingerprint(backbone, 3) != backbone_fingerprint(backbone, 5)
    for rows, shape in ((3, 3), (5, 5)):
        with loading(misbehaving(most_rows=rows)):
            assert Worker(run).context.numerics("numerics", 5) == backbone_fingerprint(backbone, shape)
    with loading(misbehaving(most_rows=0)):
        assert Worker(run).context.numerics("numerics", 5) == "out of memory"


def compared(run: Run, regenerate: Regenerator, change: int = 0, **stack: str) -> Closeness:
    """A row made again, against a stored image of which one value was changed by so many levels."""
    row = next(iter(rows_of(run).values()))
    picture = np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")).astype(int)
    picture[0, 0, 0] += change if picture[0, 0, 0] < 128 else -change
    stored = Image.fromarray(picture.astype(np.uint8))
    sink = io.BytesIO()
    stored.save(sink, "PNG")
    made = regenerate({**columns(row), "pixel_sha256": pixel_sha256(stored)})
    told = finished(run)
    assert told is not None
    stacks = [{**one, **stack} for one in told.stacks]
    return closeness(row["row_id"], pixel_sha256(stored), made, stacks, regenerate, sink.getvalue)


def test_on_one_stack_every_bit_counts_and_on_another_the_distance(whole: Run) -> None:
    regenerate = regenerator(whole)
    same = compared(whole, regenerate)
    assert same.is_good and same.equal and "bit-equal" in str(same)
    one_level = compared(whole, regenerate, 1)
    assert not one_level.is_good and "differs from the stored image by" in str(one_level)
    elsewhere = compared(whole, regenerate, 1, numerics=FEED)
    assert elsewhere.is_good and not elsewhere.equal
    assert ": within tolerance: at most 1 grey level, 0.0003 on average (another CPU: " in str(elsewhere)
    assert f"numerics {FEED} there, " in str(elsewhere) and str(elsewhere).endswith(" here)")
    assert compared(whole, regenerate, MOST_LEVELS, numerics=FEED).is_good
    beyond = compared(whole, regenerate, MOST_LEVELS + 1, numerics=FEED)
    assert not beyond.is_good and not beyond.is_unknown
    assert f"another stack may give {MOST_LEVELS} at most" in str(beyond)
    everywhere = replace(elsewhere, mean=0.04)  # what one noise label off gives, nowhere by more than a level
    assert elsewhere.mean is not None and elsewhere.mean < MOST_MEAN < 0.04 and not everywhere.is_good


def test_without_stored_pixels_another_stack_cannot_be_judged(whole: Run) -> None:
    regenerate = regenerator(whole)
    made = Rebuilt(b"", "0" * 64, False)
    blind = closeness("x", "1" * 64, made, [{**regenerate.stack, "numerics": FEED}], regenerate, lambda: None)
    assert (blind.is_good, blind.is_unknown) == (False, True)
    known = closeness("x", "1" * 64, made, [regenerate.stack], regenerate, lambda: None)
    assert (known.is_good, known.is_unknown) == (False, False)


def test_regen_of_a_run_folder_measures_where_another_stack_made_it(
    whole: Run, tmp_path: Path, diffaug: Command
) -> None:
    run = begun(whole, tmp_path / "run", numerics=FEED)
    row = run.plan.rows[0].row_id
    equal = diffaug("regen", run.folder, row, "--device", "cpu")
    assert (equal.code, "bit-equal to the stored image" in equal.out) == (0, True)
    shard = next(shard for shard in run.plan.shards() if row in {one.row_id for one in shard.rows})
    stored = stored_rows(run.table(shard), [one.row_id for one in shard.rows])
    seeds = {one.row_id: (one.seed or 0) ^ (one.row_id == row) for one in shard.rows}
    changed = [one.model_copy(update={"plan": one.plan.model_copy(update={"seed": seeds[one.id]})}) for one in stored]
    stated, written = run.receipt(shard.name), run.write_shard(shard, changed)
    assert stated is not None
    run.receipt_path(shard.name).unlink()
    run.write_receipt(written.model_copy(update={"stack": stated.stack}))
    wrong = diffaug("regen", run.folder, row, "--device", "cpu", "--json")
    told = json.loads(wrong.out)
    assert (wrong.code, told["outcome"], told["equal"]) == (1, "WRONG", False)
    assert told["largest"] > MOST_LEVELS and told["elsewhere"].startswith("another CPU: ")


def test_stacks_are_merged_by_what_they_compute() -> None:
    base = {"device": "AVX2", "torch": "2.6.0"}
    fit, shard = {**base, "numerics_encoder": "aa"}, {**base, "numerics": "bb", "numerics_encoder": "aa"}
    assert merged_stacks([fit, shard]) == ({**shard},)
    assert len(merged_stacks([shard, {**shard, "numerics": "cc"}])) == 2
    assert len(merged_stacks([shard, {**shard, "processes": "2"}])) == 2
    assert not same_stack({**base}, {**base, "device": "AVX512"})
    assert (
        difference([{**base, "torch": "2.5.0"}], base)
        == "other versions: AVX2 torch 2.5.0 there, AVX2 torch 2.6.0 here"
    )
    gpu = {**base, "device": "NVIDIA A100-SXM4-80GB", "numerics": "bb"}
    assert difference([{**base, "numerics": "aa"}], gpu).startswith("another device: AVX2 numerics aa there, ")

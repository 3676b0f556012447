"""What every method must hold, found by discovery and never named here; a plug-in's tests are these same ones."""

import inspect
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from small_controlnet import small_controlnet
from small_runs import digests, small_pool

import diffaug_datasets
from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.method import Generated, PlanSpec, discover_methods, find_method
from diffaug_datasets.core.plan import Plan, draw_plan
from diffaug_datasets.core.profiles import EXACT
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.planning.catalogue import config_recipe, parse_config_name
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.planning.price import price
from diffaug_datasets.run.assembly import Assembled, assemble
from diffaug_datasets.run.batch import BatchJob
from diffaug_datasets.run.context import WorkContext, sources_in
from diffaug_datasets.run.rebuild import Regenerator
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions
from diffaug_datasets.sources.real import read_real

# Tests of one method run in one process, where its finished run is made once.
NAMES = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in sorted(discover_methods())]
# What two processes share differs by what is learned first and by how a row comes about; the others under `full`.
ASKED, SHIPPED = (
    ("diff_ii", "diffusion_inversion", "genie_ada", "gif"),
    Path(diffaug_datasets.__file__).parent / "methods",
)
SHARED = [
    pytest.param(
        name,
        marks=[
            pytest.mark.xdist_group(name),
            *(() if name in ASKED or not (SHIPPED / f"{name}.py").is_file() else (pytest.mark.full,)),
        ],
    )
    for name in sorted(discover_methods())
]
POOL = PoolTable.of(f"{i:02x}" * 32 for i in range(40))
LEARNED = {"concepts", "lora", "imagined", "inversions", "image_embeddings"}  # needs that are fits of the same name
# Small values of parameters; a method gets those that its `Config` has.
SMALL: dict[str, Any] = {
    "num_inference_steps": 4,
    "inversion_steps": 3,
    "encoder": "tiny",
    "strength": 0.5,
    "strengths": [0.5, 1.0],
    "levels": [0.5, 0.75, 1.0],
    "concepts": {"steps": 2, "batch": 2, "checkpoint_every": 2},
    "lora": {"epochs": 1, "batch": 2, "rank": 2, "warmup": 0, "checkpoint_every": 1},
    "embeddings": {"vectors": 3, "steps": 2, "batch": 4, "group": 10, "checkpoint_every": 2},
}


def small_config(name: str) -> dict[str, Any]:
    """Of these parameters those that the method has, and a small pool or ControlNet where it takes one.

    What it learns where it is asked to (null by default) stays unasked for: `NEEDS` says what it always learns.
    """
    fields = find_method(name).Config.model_fields
    keys = {key for key, field in fields.items() if key != "lora" or field.default is not None}
    places = {"pool": small_pool, "controlnet": small_controlnet}
    made = {key: build() for key, build in places.items() if key in keys}
    return {key: value for key, value in SMALL.items() if key in keys} | made


def table(counts: Sequence[int] = (3, 2, 4)) -> SourceTable:
    """So many images per class, with invented ids."""
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def plan_of(
    name: str,
    seed: int = 0,
    batch_size: int = 4,
    pool: PoolTable | None = POOL,
    targets: tuple[int, ...] | None = None,
) -> Plan:
    """A plan over invented images."""
    content = {"builder": "toy", "method": name, "config": small_config(name), "seed": seed}
    known: dict[str, Any] = {"backbone": "model@0123", "suffixes": ("at night.",), "pool": pool, "targets": targets}
    spec = PlanSpec(seed=seed, batch_size=batch_size, per_image=2.0, **known)
    return draw_plan("toy_full", Recipe.from_dict(content), table(), None, spec)


@pytest.mark.parametrize("name", NAMES)
def test_declared_facts_are_true(name: str) -> None:
    method, plan = find_method(name), plan_of(name)
    assert name == method.NAME and re.fullmatch(r"[a-z0-9]+", method.SLUG) and method.VERSION >= 1
    assert parse_config_name(f"fashion_5shot_{method.SLUG}") == ("fashion", "5shot", name)
    assert method.page.startswith(f"{method.TITLE}: ")
    assert re.search(r"^1\. ", method.page, re.MULTILINE), "the page has no numbered steps"
    assert re.match(r"(matches|differs|reconstruction)\b", method.PARITY)
    assert method.Config.model_config.get("extra") == "forbid"
    assert {len(row.source_ids) for row in plan.rows} == {method.N_SOURCES}
    assert set(method.NEEDS) == needs_of(name)
    assert method.LABEL_RULE != "mixed" or any(len(row.soft_label.classes) > 1 for row in plan.rows)
    for row in plan.rows:
        assert_row_is_true(name, row)


def needs_of(name: str) -> set[str]:
    """What a method needs, by what it plans and by the keys of its `Config`."""
    plan = plan_of(name)
    learned = {unit.kind for unit in plan.fits} & LEARNED
    seen = {"encoder"} & set(find_method(name).Config.model_fields)
    try:
        found = set() if plan_of(name, pool=None).id == plan.id else {"pool"}
    except PlanError:
        found = {"pool"}
    return learned | seen | found


def assert_row_is_true(name: str, row: PlanRow) -> None:
    """A row says what its method declares."""
    method = find_method(name)
    assert (row.method, row.method_version) == (name, method.VERSION)
    assert row.is_synthetic == (row.origin == "generated") == (row.backbone is not None)
    assert len(row.source_ids) == len(row.source_labels)
    method.Draw.model_validate_json(row.draw)
    sources, label, weighted = set(row.source_labels), {row.label}, set(row.soft_label.classes)
    assert label <= weighted <= (label | sources if method.LABEL_RULE == "mixed" else label)
    assert sum(row.soft_label.weight) == pytest.approx(1) and min(row.soft_label.weight) > 0
    assert method.LABEL_RULE != "source" or sources == label
    assert row.start_step is None or 0 <= row.start_step <= (row.num_inference_steps or 0)
    start = method.START
    assert start != "noise" or not row.start_step
    whose = {"the class": sources == label, "another class": sources.isdisjoint(label), "any class": bool(sources)}
    assert not start.startswith("noised image of ") or whose[start.partition(" of ")[2]]


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_seeds_are_unique_and_belong_to_the_recipe(name: str) -> None:
    plan, other = plan_of(name), plan_of(name, seed=1)
    ids, seeds = [row.row_id for row in plan.rows], [row.seed for row in plan.rows]
    assert ids == sorted(set(ids)) and len(set(seeds)) == len(seeds)
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    assert not set(ids) & {row.row_id for row in other.rows}
    assert not set(seeds) & {row.seed for row in other.rows}
    names = [unit.name for unit in plan.fits]
    assert len(set(names)) == len(names)
    assert {cited for row in plan.rows for cited in row.adapters} <= set(names)
    done: set[str] = set()
    for unit in plan.fits:
        assert set(unit.after) <= done, "a fit is declared before what it needs"
        done.add(unit.name)


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_depends_neither_on_row_order_nor_on_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(name)
    assert plan_of(name).id == plan.id
    free = {"adapters"}  # fits may hold a batch or two
    rows = [row.model_dump(exclude=free) for row in plan.rows]
    assert [row.model_dump(exclude=free) for row in plan_of(name, batch_size=3).rows] == rows
    method = find_method(name)
    backwards = replace(method, plan=lambda *given: reversed(list(method.plan(*given))))
    monkeypatch.setitem(discover_methods(), name, backwards)
    assert plan_of(name).id == plan.id


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fitted_that_no_row_rests_on(name: str) -> None:
    """With rows of one class of three, too; of a fit that holds each image by itself, every image is some row's."""
    method = find_method(name)
    for targets in (None, (1,)):
        plan = plan_of(name, targets=targets)
        units = {unit.name: unit for unit in plan.fits}
        needed: set[str] = set()
        waiting = {cited for row in plan.rows for cited in row.adapters}
        while waiting:
            needed |= waiting
            waiting = {before for unit in waiting for before in units[unit].after} - needed
        assert needed == set(units)
        pairs = [pair for row in plan.rows for pair in zip(row.source_ids, row.source_labels, strict=True)]
        used = {f"{source}/{label}" for source, label in pairs}
        alone = [unit.content["images"] for unit in plan.fits if unit.kind in method.FITS_BY_IMAGE]
        assert {image for images in alone for image in images} <= used


def test_the_order_in_which_a_folder_lists_its_files_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings are sorted; the order of a dataset's own list, or of its rows, is the dataset's and does count."""
    folder = tmp_path / "images"
    for i, place in enumerate(("b/1", "b/10", "b/2/0", "a/x", "a/Y", "c/2", "c/1")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{place}.png")
    changes = {"source": str(folder), "per_class": 4, "include_test": False, "config": small_config("img2img")}
    recipe = config_recipe("imagefolder_2shot_img2img", **changes)
    plan, keys = prepare(recipe).plan, [source.key for source in read_real("imagefolder", folder).train.sources]
    listed, walked = Path.iterdir, os.walk

    def turned(top: Any, *given: Any) -> Any:
        for place, folders, files in walked(top, *given):
            folders.reverse()
            yield place, folders, files[::-1]

    monkeypatch.setattr(Path, "iterdir", lambda place: iter(list(listed(place))[::-1]))
    monkeypatch.setattr(os, "walk", turned)
    assert [source.key for source in read_real("imagefolder", folder).train.sources] == keys
    assert prepare(recipe).plan.id == plan.id


Runs = Callable[[str], tuple[Run, Assembled]]


def planned(folder: Path, name: str) -> Run:
    """A run of ten rows in three shards, ragged batches."""
    small = {"per_class": 1, "batch_size": 3, "shard_rows": 4, "include_test": False, "config": small_config(name)}
    changes = {"scores": {"encoder": None, "judge": None}, **small}
    return write_run(prepare(config_recipe(f"fashion_2shot_{find_method(name).SLUG}", **changes)), folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run of a method, by one worker; made once."""
    known: dict[str, tuple[Run, Assembled]] = {}

    def of(name: str) -> tuple[Run, Assembled]:
        if name not in known:
            run = planned(tmp_path_factory.mktemp(name) / "run", name)
            Worker(run).work()
            known[name] = run, assemble(run)
        return known[name]

    return of


def rows_of(run: Run) -> list[dict[str, Any]]:
    """All generated rows, as they are published."""
    return [row for s in run.plan.shards() for row in run.table(s).to_pylist()]


@pytest.mark.parametrize("name", NAMES)
def test_counts_add_up(name: str, runs: Runs) -> None:
    run, done = runs(name)
    a_class = Counter(row.label for row in run.plan.rows)
    for label, count in enumerate(done.counts):
        assert count.planned == a_class[label] == count.written + count.failed
        assert count.kept == count.written
    rows = rows_of(run)
    assert len(rows) == sum(count.written for count in done.counts) == len(run.plan.rows)
    assert {row["row_id"] for row in rows} == {row.row_id for row in run.plan.rows}
    assert {row["plan_id"] for row in rows} == {run.plan.id}


@pytest.mark.parametrize("name", SHARED)
def test_two_workers_make_the_same_bytes(name: str, runs: Runs, tmp_path: Path) -> None:
    """At once, each with its own models, one of them from the middle on."""
    run = planned(tmp_path / "run", name)
    workers = [Worker(Run.open(run.folder), WorkerOptions(number=number)) for number in (0, 4)]
    for worker in workers:  # libraries load models one at a time
        _ = worker.context.backbone
        _ = worker.context.encoder if "encoder" in small_config(name) else None
    threads = [threading.Thread(target=worker.work) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assemble(run)
    assert digests(run.folder) == digests(runs(name)[0].folder)


@pytest.mark.parametrize("name", NAMES)
def test_rows_regenerate_and_cost_what_is_declared(name: str, runs: Runs) -> None:
    """Every third row, from its own columns; its network calls at batch shape 1 are those that its method declares."""
    run, _ = runs(name)
    tables = [run.table(s) for s in run.plan.real_shards()]
    rebuild = Regenerator(run.recipe, run.plan, run.folder / "fits", sources_in(tables))
    for row in rows_of(run)[::3]:
        rebuilt = rebuild({key: value for key, value in row.items() if key != "image"})
        assert rebuilt.equal and rebuilt.data == row["image"]["bytes"]
    worker, config = Worker(run), run.recipe.method_config
    planned_row = run.plan.rows[0]
    calls = worker.context.backbone.rows_evaluated
    made, failed = type(worker.job)(run.recipe.method_definition, config, worker.context, 0, 1, 1).make([planned_row])
    assert len(made) == 1 and not failed
    assert worker.context.backbone.rows_evaluated - calls == run.recipe.method_definition.evaluations(
        config, planned_row
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_computed_was_priced(name: str, runs: Runs) -> None:
    """U-Net rows that the receipts count, of shards and of fits, are those that `plan` told; batches are ragged."""
    run, _ = runs(name)
    quote = price(prepare(run.recipe), run.folder)
    counted = {stage: sum(run.receipt(unit.name).evaluations for unit in units) for stage, units in run.units()}
    assert counted.pop("synthetic") == quote.evaluations
    assert sum(counted.values()) == quote.fit_evaluations
    asked = sum(run.recipe.method_definition.evaluations(run.recipe.method_config, row) for row in run.plan.rows)
    assert asked == quote.evaluations - quote.idle


def test_a_batch_calls_its_method_itself() -> None:
    """Between the worker and the method stands one frame."""
    seen: list[str] = []

    def generate(rows: Sequence[PlanRow], cfg: Any, ctx: Any) -> list[Generated]:
        seen.extend(frame.function for frame in inspect.stack()[:3])
        return [Generated(torch.rand(4, 4, 3)) for _ in rows]

    row, ctx = plan_of("txt2img").rows[0], SimpleNamespace(batch_shape=1, recipe=SimpleNamespace(profile=EXACT))
    method = replace(find_method("txt2img"), generate=generate)
    made, _ = BatchJob(method, method.Config(), cast(WorkContext, ctx), 0, 1, 1).make((row,))
    assert len(made) == 1
    assert seen == ["generate", "make", "test_a_batch_calls_its_method_itself"]


def test_no_two_methods_share_a_name_or_a_slug() -> None:
    methods = discover_methods()
    assert len({method.SLUG for method in methods.values()}) == len(methods)

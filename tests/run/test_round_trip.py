"""A row rebuilds from what is stored: what is read back is what was planned, for every preset and any odd number."""

from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_controlnet import small_controlnet
from small_runs import load_backbone, loading, small_pool, some_by_default

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import Generated, PlanSpec, discover_methods, find_method
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import Plan, draw_plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import Outcome, PlanRow, Row, float32
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.models import denoising
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.planning.presets import presets
from diffaug_datasets.release.provenance import STATUS, provenance_features, write_parquet
from diffaug_datasets.run.context import sources_in
from diffaug_datasets.run.rebuild import Regenerator
from diffaug_datasets.run.shards import arrow_schema, write_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker

NAMES = ("bird", "fish", "frog")
SOURCES = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i in range(3) for j in range(2))
TABLE = SourceTable("toy", "train", NAMES, NAMES, "animal", SOURCES)
ANY_SPEC: dict[str, Any] = {
    "backbone": "diffaug-tiny@0123",
    "batch_size": 4,
    "suffixes": ("at night.",),
    "confused": ((1,), (2,), (0,)),
    "pool": PoolTable.of(f"{i:02x}" * 32 for i in range(40)),
}
RATIOS = [n / 1000 for n in range(10, 1000)]
# Settings that cost time alone, and those that need what is not here.
FAST: dict[str, Any] = {
    "num_inference_steps": 10,
    "inversion_steps": 2,
    "encoder": "tiny",
    "suffixes": ["at night."],
    "concepts": {"steps": 1, "batch": 1},
    "lora": {"epochs": 1, "batch": 2, "rank": 2, "warmup": 0},
    "editor": "noised",
    "embeddings": {"vectors": 2, "steps": 1, "batch": 2},
}


def planned(recipe: Recipe) -> Plan:
    """A plan over invented images, two rows per class."""
    return draw_plan("toy_full", recipe, TABLE, None, PlanSpec(seed=recipe.seed, per_class=2, **ANY_SPEC))


def in_a_shard(rows: Sequence[PlanRow]) -> list[dict[str, Any]]:
    sink = BytesIO()
    nothing = Outcome(width=1, height=1, image_format="png", pixel_sha256="")
    made = [Row(image=b"", plan_id="", plan=row, outcome=nothing) for row in rows]
    write_stream(sink, made, arrow_schema(NAMES))
    return list(pa.ipc.open_stream(sink.getvalue()).read_all().to_pylist())


def in_a_provenance(rows: Sequence[PlanRow]) -> list[dict[str, Any]]:
    told = [{**row.columns(), **dict.fromkeys(STATUS, "kept")} for row in rows]
    table = pa.Table.from_pylist(told, provenance_features(NAMES).arrow_schema)
    return list(pq.read_table(BytesIO(write_parquet(table))).to_pylist())


def assert_read_back(rows: Sequence[PlanRow], folder: Path) -> None:
    """Shard, provenance and plan hold the rows: equal in every column, so that any decision is equal too."""
    without_place = [row.model_copy(update={"k": 0, "split": "train"}) for row in rows]
    assert [PlanRow.of(columns) for columns in in_a_shard(rows)] == without_place
    assert [PlanRow.of(columns) for columns in in_a_provenance(rows)] == without_place
    recipe = Recipe.from_dict({"builder": "toy", "method": "txt2img"})
    plan = draw_plan("toy_full", recipe, TABLE, None, PlanSpec(seed=0, per_class=1, **ANY_SPEC))
    run = Run(folder)
    run.write_plan(recipe, Plan(plan.header, tuple(rows), ()))
    assert Run.open(folder).plan.rows == tuple(rows)


@pytest.mark.parametrize("name", sorted(discover_methods()))
def test_rows_of_every_preset_are_read_back_as_planned(name: str, tmp_path: Path) -> None:
    recipes = [Recipe.from_dict({"builder": "toy", "method": name})]
    whole = [preset for preset, told in presets().items() if told.method == name and not preset.endswith("_language")]
    recipes += map(config_recipe, whole)  # all but the one that names a file of sentences
    assert_read_back([row for recipe in recipes for row in planned(recipe).rows], tmp_path)


def odd_numbers(name: str) -> Iterator[dict[str, Any]]:
    """Configurations of a method whose numbers no float32 holds, at many steps, so that a threshold is met."""
    keys = find_method(name).Config.model_fields
    for i, r in enumerate(RATIOS[::3]):
        odd = {"ratio": r, "strength": r, "strengths": [r], "guidance_scale": 7 + r, "gamma": r, "soft_scaler": r}
        odd |= {"noise": r, "interpolation": r, "fallback_strength": r, "split_ratio": r}
        odd |= {"levels": [r, 1.0], "single_image_policy": "diff_aug", "num_inference_steps": 999 if i % 2 else 100}
        yield {key: value for key, value in odd.items() if key in keys}


@pytest.mark.parametrize("name", [n for n in sorted(discover_methods()) if n != "retrieval"])
def test_any_ratio_strength_scale_and_weight_is_read_back_as_planned(name: str, tmp_path: Path) -> None:
    method, rows = find_method(name), []
    spec = PlanSpec(seed=0, per_class=1, targets=(1,), **ANY_SPEC)
    one = TABLE.subset((0, 2, 4))
    for config in odd_numbers(name):
        rows += list(method.plan(method.Config(**config), one, spec))
    assert len(rows) == len(RATIOS[::3])
    assert_read_back(rows, tmp_path)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What methods hand to the one function that edits: labels to noise to, first steps, guidance."""
    seen: list[tuple[Any, ...]] = []

    def edit(ctx: Any, rows: Any, conditions: Any, cfg: Any, noised_at: Any, start: Any, *_: Any) -> list[Any]:
        seen.extend(zip(noised_at, start, conditions.scale, strict=True))
        return [Generated(torch.zeros(1, 1, 3))] * len(noised_at)

    monkeypatch.setattr(denoising, "edit", edit)
    yield seen


@pytest.mark.parametrize("name", ["genie", "img2img"])
def test_generation_decides_from_a_read_back_row_as_from_the_recipe(name: str, decided: list[tuple[Any, ...]]) -> None:
    """GeNIe's label is int(1000 r) of the recipe's ratio, not of the column's: of 0.7 the column holds less."""
    method = find_method(name)
    ctx: Any = SimpleNamespace(backbone=loaded("cpu"))
    spec = PlanSpec(seed=0, per_class=1, targets=(1,), **ANY_SPEC)
    ratios = (*RATIOS, 0.9991, 1.0)
    configs = [
        method.Config(**{"ratio" if name == "genie" else "strength": r}, num_inference_steps=100) for r in ratios
    ]
    rows = [row for cfg in configs for row in method.plan(cfg, TABLE, spec)]
    method.generate(rows, configs[0], ctx)
    method.generate([PlanRow.of(columns) for columns in in_a_shard(rows)], configs[0], ctx)
    of_the_plan, read_back = decided[: len(ratios)], decided[len(ratios) :]
    assert read_back == of_the_plan
    if name == "genie":
        assert [label for label, _, _ in read_back] == [None if r > 0.999 else int(1000 * r) for r in ratios]
    assert any(int(1000 * float32(r)) != int(1000 * r) for r in ratios), "the test would see a decision taken again"


def test_a_float32_column_holds_the_nearest_number_and_no_larger_one() -> None:
    assert [float32(x) for x in (7.5, 0.7, 1 / 3)] == torch.tensor([7.5, 0.7, 1 / 3]).tolist()
    for value in ("1e39", "inf", "nan", "1000.5"):
        with pytest.raises(RecipeError, match=r"config\.guidance_scale: got .*, (input should be|expected a) "):
            Recipe.from_dict({"builder": "toy", "method": "genie", "config": {"guidance_scale": float(value)}})


@cache
def loaded(device: str) -> Backbone:
    """One for all methods, whose weights take gradients even where who generates asks first."""
    with torch.inference_mode(False):
        return load_backbone(BackboneSpec(id="tiny"), device)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for i, place in enumerate(("bird/0", "bird/1", "fish/0", "fish/1")):
        (folder / place).parent.mkdir(exist_ok=True)
        noise = torch.randint(256, (40, 36, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{place}.png")
    return folder


def fast(recipe: Recipe, photos: Path) -> Recipe:
    """The preset's own decisions on four images, in few steps and on the embedded model."""
    keys = find_method(recipe.method).Config.model_fields.keys()
    config = {**recipe.config, **{key: value for key, value in FAST.items() if key in keys}}
    embeddings: Any = recipe.config.get("embeddings", {})
    config = merged(config, {"embeddings": {"start": "prompt"}} if embeddings.get("start") == "prompt" else {})
    config |= {"pool": small_pool()} if "pool" in keys else {}
    config |= {"controlnet": small_controlnet()} if "controlnet" in keys else {}
    config |= {"sources": "others"} if config.get("sources") == "confused" else {}
    config |= {"num_inference_steps": 4} if keys.isdisjoint({"strength", "strengths"}) and "sampler" in keys else {}
    content = {"builder": "imagefolder", "source": str(photos), "per_class": 1, "include_test": False}
    return Recipe.from_dict({**content, "method": recipe.method, "config": config, "batch_size": 2})


def families(name: str, photos: Path) -> list[Recipe]:
    """Of the presets of a method one for each of its settings; words of prompts are no setting here."""
    recipes = [fast(config_recipe(preset), photos) for preset, told in presets().items() if told.method == name]
    return list({recipe.method_config.model_copy(update={"prompt": ""}): recipe for recipe in recipes}.values())


# Presets differ in settings that `test_contract` makes again for every method; a few stand for them by default.
@pytest.mark.parametrize("name", some_by_default(sorted(discover_methods()), ("genie", "img2img", "real_mix")))
def test_a_row_of_every_preset_family_is_made_again_to_the_bit(name: str, photos: Path, tmp_path: Path) -> None:
    for number, recipe in enumerate(families(name, photos)):
        run = write_run(prepare(recipe), tmp_path / str(number))
        with loading(lambda _, device: loaded(device)):
            Worker(run).work()
            sources = sources_in([run.table(shard) for shard in run.plan.real_shards()])
            rebuild = Regenerator(run.recipe, run.plan, run.folder / "fits", sources)
            [shard] = run.plan.shards()
            row = run.table(shard).drop_columns(["image"]).to_pylist()[0]
            assert rebuild(row).equal, recipe.config

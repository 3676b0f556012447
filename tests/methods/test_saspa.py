"""SaSPA's plans, what it refuses before it begins, and a U-Net that is left as it was."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_controlnet import small_controlnet

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import saspa
from diffaug_datasets.models.controlnet import edge_picture, steered
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.worker import Worker

SMALL = {"per_class": 2, "batch_size": 3, "include_test": False, "scores": {"encoder": None, "judge": None}}
pytestmark = pytest.mark.xdist_group("saspa")


def small_recipe(controlnet: Path) -> Recipe:
    config = {"num_inference_steps": 3, "controlnet": str(controlnet)}
    return config_recipe("fashion_2shot_saspa", **SMALL, config=config)


def table(*counts: int) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def planned(per_class: int, suffixes: tuple[str, ...] = (), **config: Any) -> list[PlanRow]:
    spec = PlanSpec(seed=0, backbone="m", per_class=per_class, suffixes=suffixes)
    return list(saspa.plan(saspa.Config(**config), table(3, 0), spec))


def test_images_take_turns_and_about_half_of_the_rows_are_paintings() -> None:
    rows = planned(200, ("at night.", "in the sun."))
    assert set(Counter(row.source_ids[0] for row in rows).values()) <= {66, 67}
    assert {(row.start_step, row.strength, row.num_inference_steps, row.guidance_scale) for row in rows} == {
        (0, 1.0, 30, 7.5)
    }
    told = Counter((row.prompt or "").partition(", a painting of ")[::2] for row in rows)
    assert {text for text, _ in told} == {f"a photo of a class 0 bird {end}" for end in ("at night", "in the sun")}
    assert 70 < sum(n for (_, painter), n in told.items() if painter) < 130
    assert len({painter for _, painter in told}) == 11


def test_sentences_of_one_s_own() -> None:
    rows = planned(20, prompts=("A white {name} plane.", "A {name} at dusk"), painted=0)
    assert {row.prompt for row in rows} == {"A white class 0 plane", "A class 0 at dusk"}


def test_without_a_controlnet_no_plan(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"config\.controlnet: .* give the folder of a Canny ControlNet"):
        prepare(config_recipe("fashion_2shot_saspa"))
    for place, reason in ((tmp_path / "none", "there is no such folder"), (tmp_path, "config.json is missing")):
        with pytest.raises(BackboneError, match=f"controlnet .* cannot be used \\({reason}\\): expected a folder"):
            prepare(config_recipe("fashion_2shot_saspa", config={"controlnet": str(place)}))
    with pytest.raises(RecipeError, match="BLIP-diffusion's subject encoder is not built; set it to none"):
        config_recipe("fashion_2shot_saspa", config={"subject": "blip_diffusion"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cross_attention_dim": 768}, "its cross_attention_dim is 768, that of the backbone's U-Net 96"),
        ({"_class_name": "UNet2DConditionModel"}, "config.json says 'UNet2DConditionModel', expected ControlNetModel"),
        ({}, "diffusion_pytorch_model.safetensors is missing"),
    ],
)
def test_a_controlnet_of_another_kind_is_refused_at_plan(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    shutil.copytree(small_controlnet(), tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    if not changes:
        (tmp_path / "net" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BackboneError, match=reason):
        prepare(config_recipe("fashion_2shot_saspa", config={"controlnet": str(tmp_path / "net")}))


def test_other_weights_are_another_plan_and_another_place_is_not(tmp_path: Path) -> None:
    here = Path(small_controlnet())
    moved = small_recipe(shutil.copytree(here, tmp_path / here.name))
    plan = prepare(small_recipe(here)).plan
    assert prepare(moved).plan.id == plan.id and str(here) not in str(plan.header)
    config = tmp_path / here.name / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert prepare(moved).plan.id != plan.id


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Of a run of two rows per class."""
    return Worker(write_run(prepare(small_recipe(Path(small_controlnet()))), tmp_path_factory.mktemp("saspa") / "run"))


def made(worker: Worker, rows: Sequence[PlanRow], **changes: Any) -> list[torch.Tensor]:
    config: Any = worker.run.recipe.method_config.model_copy(update=changes)
    with torch.inference_mode():
        return [image.pixels for image in saspa.generate(rows, config, worker.context)]


def test_a_row_never_depends_on_its_neighbours(worker: Worker) -> None:
    row, *others = worker.run.plan.rows[:3]
    unguided = [others[0].model_copy(update={"guidance_scale": 1.0}), row]
    first = made(worker, [row, *others])[0]
    for neighbours in (others[::-1], unguided):
        assert torch.equal(made(worker, [row, *neighbours])[0], first)


def test_edges_steer_and_the_network_is_left_as_it_was(worker: Worker) -> None:
    ctx, row = worker.context, worker.run.plan.rows[0]
    xt, cond = torch.zeros(1, *ctx.backbone.latent_shape), ctx.backbone.prompts(["a bag"])
    edges = edge_picture(ctx.backbone.preprocess(ctx.source(row.source_ids[0]), "bilinear"), 120, 200)
    assert edges.shape == (3, 32, 32) and set(edges.unique().tolist()) == {0.0, 1.0}
    with torch.inference_mode():
        before = ctx.backbone.eps(xt, 500, cond)
        with pytest.raises(KeyboardInterrupt), steered(ctx.backbone, ctx.controlnet, edges[None], 0.75):
            under_edges = ctx.backbone.eps(xt, 500, cond)
            raise KeyboardInterrupt
        with steered(ctx.backbone, ctx.controlnet, edges[None], 0.0):
            assert torch.equal(ctx.backbone.eps(xt, 500, cond), before)
        assert torch.equal(ctx.backbone.eps(xt, 500, cond), before)
    assert (under_edges - before).abs().max() > 0.01

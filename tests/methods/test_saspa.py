"""SaSPA's plans, what it refuses before it begins, a U-Net that is left as it was, and subjects as BLIP-Diffusion's."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blip_tiny
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_controlnet import small_controlnet

import diffaug_datasets
from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import saspa
from diffaug_datasets.models.controlnet import edge_picture, steered
from diffaug_datasets.models.subject_folder import check_subject
from diffaug_datasets.models.subjects import load_subjects
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.worker import Worker

PACKAGED = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "pipeline"
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


SUBJECT = {"subject": "blip_diffusion", "subject_name": "clothing", "sampler": "plms", "conditioning_scale": 1.0}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip_tiny.build(tmp_path_factory.mktemp("blip") / "blip", PACKAGED, Path(small_controlnet()))


def subject_recipe(blip: Path, **config: Any) -> Recipe:
    parts = {"controlnet": str(blip / "controlnet"), "qformer": str(blip / "qformer")}
    settings = {**SUBJECT, **parts, "num_inference_steps": 4, "low": 60, "high": 120, **config}
    return config_recipe("fashion_2shot_saspa", **SMALL, backbone={"id": str(blip)}, config=settings)


def test_a_row_with_a_subject_shows_two_images_of_its_class() -> None:
    rows = planned(60, ("at night.",), qformer="/q", **SUBJECT)
    assert {row.source_labels for row in rows} == {(0, 0)} and {row.draw for row in rows} == {'{"subject":"clothing"}'}
    assert set(Counter(row.source_ids[0] for row in rows).values()) == {20}
    assert len({row.source_ids for row in rows}) == 9, "the second one is any of the class"
    assert {row.prompt for row in rows} == {"a photo of a class 0 bird at night"}, "none is a painting"
    assert {row.draw for row in planned(3, qformer="/q", subject="blip_diffusion")} == {'{"subject":"bird"}'}


@torch.no_grad()
def test_pictures_of_a_subject_are_the_pipeline_s(blip: Path, tmp_path: Path) -> None:
    """Vectors, conditions and latents of two rows of two classes, by transformers and diffusers."""
    worker = Worker(write_run(prepare(subject_recipe(blip)), tmp_path / "run"))
    run, context, reference = worker.run, worker.context, blip_tiny.Published(blip, PACKAGED)
    apart = [row for row in run.plan.rows if row.source_ids[0] != row.source_ids[1]]
    rows = list({row.label: row for row in apart}.values())[:2]  # edges of one image, the subject of another
    assert len(rows) == 2
    decoded, decode = [], context.backbone.decode_float
    context.backbone.decode_float = lambda z: (decoded.append(z.clone()), decode(z))[1]  # type: ignore[method-assign]
    before = context.backbone.rows_evaluated
    with torch.inference_mode():
        made = saspa.generate(rows, run.recipe.method_config, context)  # type: ignore[arg-type]
        beside = saspa.generate([rows[0]] * 2, run.recipe.method_config, context)  # type: ignore[arg-type]
    assert context.backbone.rows_evaluated - before == 4 * saspa.evaluations(run.recipe.method_config, rows[0])  # type: ignore[arg-type]
    assert torch.equal(made[0].pixels, beside[0].pixels)
    for row, latent in zip(rows, decoded[0], strict=True):
        shown = context.source(row.source_ids[1])
        vectors = reference.vectors(shown, "clothing")
        assert float((context.subject(shown, "clothing") - vectors[0]).abs().max()) < 1e-4
        cond = reference.condition(vectors, "clothing", row.prompt or "")
        fitted = context.backbone.preprocess(context.source(row.source_ids[0]), "bilinear")
        edges = edge_picture(fitted, 60, 120)[None]  # held against OpenCV elsewhere
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(row.seed or 0))
        wanted = [
            reference.latents(text, row.negative_prompt or "", edges, noise, 4, 7.5)
            for text in (cond, reference.condition(0 * vectors, "clothing", row.prompt or ""))
        ]
        assert float((latent - wanted[0][0]).abs().max()) < 1e-4
        assert float((wanted[1] - wanted[0]).abs().max()) > 1e-2, "the subject does not show"


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ("", r"config\.qformer: subject blip_diffusion shows the model another image .* give the folder `qformer`"),
        ("none", "there is no such folder"),
        ("vocab.txt", r"vocab\.txt is missing: put that of bert-base-uncased beside config\.json"),
        ("model.safetensors", "model.safetensors is missing"),
        ("width", "its subjects have 96 numbers, words of the backbone's text encoder 97"),
    ],
)
def test_without_a_q_former_that_fits_no_plan(blip: Path, tmp_path: Path, spoiled: str, reason: str) -> None:
    copied = shutil.copytree(blip / "qformer", tmp_path / "qformer")
    if spoiled == "width":
        model = shutil.copytree(blip, tmp_path / "model")
        text = json.loads((model / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        (model / "text_encoder" / "config.json").write_text(json.dumps(text | {"hidden_size": 97}), encoding="utf-8")
        with pytest.raises(BackboneError, match=reason):
            check_subject(str(copied), BackboneSpec(id=str(model)))
        return
    if (copied / spoiled).is_file():
        (copied / spoiled).unlink()
    place = {"": None, "none": str(tmp_path / "none")}.get(spoiled, str(copied))
    with pytest.raises((RecipeError, BackboneError), match=reason):
        prepare(subject_recipe(blip, qformer=place))


def test_a_dataset_without_a_word_for_its_classes_is_asked_for_one(blip: Path) -> None:
    with pytest.raises(RecipeError, match=r"config\.subject_name: the dataset states no word for what all its classes"):
        prepare(subject_recipe(blip, subject_name="{metaclass}"))


def test_a_q_former_that_is_damaged_is_a_sentence(blip: Path, tmp_path: Path, worker: Worker) -> None:
    copied = shutil.copytree(blip / "qformer", tmp_path / "qformer")
    weights = load_file(copied / "model.safetensors")
    del weights["proj_layer.dense1.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"proj_layer\.dense1\.weight is missing or of another kind"):
        load_subjects(str(copied), worker.context.backbone)
    table = worker.context.backbone.text_encoder.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding), "the text encoder is as it was"

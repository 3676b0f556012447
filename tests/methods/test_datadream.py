"""DataDream against peft, diffusers and AdamW on the same weights, pictures and random numbers."""

from pathlib import Path
from typing import Any

import datadream_published as published
import numpy as np
import pytest
import torch
from PIL import Image

import diffaug_datasets
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.learning import LoraConfig
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.few_shot import LoraTraining, beside, fresh_matrices, learn_lora
from diffaug_datasets.models.latents import ConceptExample, Latents
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions

PACKAGED = Path(diffaug_datasets.__file__).parent / "assets" / "tiny" / "pipeline"
N, SCALE = 4, 2.0
CFG = LoraConfig(epochs=3, batch=2, rank=2, warmup=2, lr=3e-3, checkpoint_every=2)
PROMPTS = {0: "a photo of a bag", 3: "a photo of a coat"}
pytestmark = pytest.mark.xdist_group("datadream")


def small_recipe(**config: Any) -> Recipe:
    """Two images of each Fashion class, learned in two steps."""
    lora = {"epochs": 2, "batch": 2, "rank": 2, "warmup": 0, "lr": 1e-2}
    settings = {"num_inference_steps": N, "lora": lora, **config}
    changes = {"per_class": 2, "batch_size": 3, "include_test": False, "config": settings}
    return config_recipe("fashion_2shot_datadream", scores={"encoder": None, "judge": None}, **changes)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load(BackboneSpec(id="tiny"))


@pytest.fixture(scope="module")
def examples() -> list[ConceptExample]:
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    return [ConceptExample(picture, label) for picture, label in zip(pictures, (0, 3, 3), strict=True)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A run whose fits are made: LoRA of ten classes."""
    run = write_run(prepare(small_recipe()), tmp_path_factory.mktemp("datadream") / "run")
    worker = Worker(run, WorkerOptions(only_fits=True))
    with torch.enable_grad():
        worker.work()
    return worker


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"unet", "text_encoder"}),
        ({"text_encoder": False, "lr_schedule": "constant"}, {"unet"}),  # diffusers' script, which DreamDA takes
    ],
    ids=["datadream", "text_to_image"],
)
def test_training_is_the_authors(
    changes: dict[str, Any], parts: set[str], backbone: Backbone, examples: list[ConceptExample], tmp_path: Path
) -> None:
    """Six steps: matrices and losses."""
    cfg = CFG.model_copy(update=changes)
    labels = [example.class_id for example in examples]
    read = Latents(backbone, examples, "bilinear")
    latents = read(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    start = {key: matrix.detach().clone() for key, matrix in fresh_matrices(backbone, cfg).items()}
    draws = LoraTraining(backbone, cfg, read, labels, PROMPTS).draws
    steps = [draws.step(i) for i in range(cfg.steps(3))]
    assert len(steps) == 6
    given = [(step.images.tolist(), step.t, step.eps) for step in steps]
    texts, pipe = [PROMPTS[label] for label in labels], published.pipeline(PACKAGED)
    wanted, losses = published.train(pipe, start, list(latents), texts, given, cfg.lr, cfg.warmup, cfg.lr_schedule)
    ours = learn_lora(backbone, examples, PROMPTS, cfg, workdir=tmp_path, resize="bilinear")
    assert ours.losses == pytest.approx(losses, rel=1e-4)
    moved = 0.0
    for key, matrix in wanted.items():
        torch.testing.assert_close(ours.matrices[key], matrix, rtol=1e-3, atol=2e-5)
        moved += float((matrix - start[key]).abs().max())
    assert moved > 0.1, "nothing was learned"
    assert {key.split(".")[0] for key in wanted} == parts


@torch.no_grad()
def test_images_are_the_pipelines_under_their_own_lora(learned: Worker) -> None:
    """Rows of two classes in one batch, each as the pipeline makes it with that class's matrices loaded."""
    run, ctx = learned.run, learned.context
    rows = [next(r for r in run.plan.rows if r.label == label and r.k == k) for label, k in ((8, 0), (4, 0), (8, 1))]
    decoded: list[torch.Tensor] = []
    decode = ctx.backbone.decode_float
    ctx.backbone.decode_float = lambda z: (decoded.append(z.clone()), decode(z))[1]  # type: ignore[method-assign]
    encoded: list[int] = []
    handle = ctx.backbone.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    with torch.inference_mode():
        run.recipe.method_definition.generate(rows, run.recipe.method_config, ctx)
    handle.remove()
    ctx.backbone.decode_float = decode  # type: ignore[method-assign]
    assert len(encoded) == 4, "of each class prompt and empty text, once"
    assert len({row.adapters for row in rows}) == 2
    for row, latent in zip(rows, decoded[0], strict=True):
        prompt = f"a photo of a {('bag', 'coat')[row.label == 4]}"
        assert row.label in (4, 8) and row.prompt == prompt
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(row.seed or 0))
        pipe = published.pipeline(PACKAGED)
        wanted = published.image_latents(pipe, ctx.fit(row.adapters[0]), prompt, noise, N, SCALE)
        assert float((latent - wanted[0]).abs().max()) < 1e-4
        other = published.image_latents(
            published.pipeline(PACKAGED), other_lora(ctx, row, run), prompt, noise, N, SCALE
        )
        assert float((latent - other[0]).abs().max()) > 1e-3, "the classes' matrices do not differ"


def other_lora(ctx: Any, row: Any, run: Run) -> dict[str, torch.Tensor]:
    return dict(ctx.fit(next(unit.name for unit in run.plan.fits if unit.name != row.adapters[0])))


def test_a_rows_bits_do_not_depend_on_its_neighbours(learned: Worker) -> None:
    run = learned.run
    first, second = (row for row in run.plan.rows if row.label == 8)
    third = next(row for row in run.plan.rows if row.label == 4)

    def made(rows: list[Any]) -> torch.Tensor:
        with torch.inference_mode():
            return run.recipe.method_definition.generate(rows, run.recipe.method_config, learned.context)[0].pixels

    assert torch.equal(made([first, second]), made([first, third]))
    assert not torch.equal(made([first, second]), made([second, first]))


def test_one_run_for_all_or_one_for_each_class() -> None:
    alone, together = prepare(small_recipe()).plan, prepare(small_recipe(scope="dataset")).plan
    assert [len(unit.content["images"]) for unit in alone.fits] == [2] * 10
    assert [len(unit.content["images"]) for unit in together.fits] == [20]
    assert {row.adapters for row in together.rows} == {(together.fits[0].name,)}
    assert together.fits[0].content["config"]["steps"] == 2 * 10


def test_killed_training_goes_on_to_the_same_bits(
    backbone: Backbone, examples: list[ConceptExample], tmp_path: Path
) -> None:
    def stop(done: int, _total: int, _loss: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = learn_lora(backbone, examples, PROMPTS, CFG, workdir=tmp_path / "whole", resize="crop")
    with pytest.raises(KeyboardInterrupt):
        learn_lora(backbone, examples, PROMPTS, CFG, workdir=tmp_path / "cut", resize="crop", progress=stop)
    again = learn_lora(backbone, examples, PROMPTS, CFG, workdir=tmp_path / "cut", resize="crop")
    assert again.losses == whole.losses
    assert all(torch.equal(again.matrices[key], matrix) for key, matrix in whole.matrices.items())


def test_the_model_is_left_as_it_was_and_foreign_matrices_are_refused(backbone: Backbone) -> None:
    before = backbone.prompt("a photo of a bag")
    matrices = {key: matrix.detach() + 0.1 for key, matrix in fresh_matrices(backbone, CFG).items()}
    with beside(backbone, [matrices]):
        assert not torch.equal(backbone.prompt("a photo of a bag"), before)
    assert torch.equal(backbone.prompt("a photo of a bag"), before)
    key = next(iter(matrices))
    with pytest.raises(BackboneError, match="has shape"), beside(backbone, [{**matrices, key: torch.zeros(2, 5)}]):
        pass
    elsewhere = {"unet.nowhere.lora_A.weight": torch.zeros(2, 5), "unet.nowhere.lora_B.weight": torch.zeros(5, 2)}
    with pytest.raises(BackboneError, match="which this model has not"), beside(backbone, [elsewhere]):
        pass
    with pytest.raises(BackboneError, match="no image"):
        learn_lora(backbone, [], {}, CFG, workdir=Path(), resize="crop")

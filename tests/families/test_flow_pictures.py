"""Every transformer family against diffusers' own pipeline and scheduler, by the methods that make images with it.

One batch holds rows of several starts, guidance scales, prompts and noises; the reference makes them one by one.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import flow_pictures
import flow_tiny
import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.core.method import PlanSpec, find_method
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.model_folder import check_backbone

STEPS, LEVEL = 5, 1.01  # one grey level, of pixels that are not rounded
PROMPTS = ("a photo of a bird", "a red house on a hill, 1984")
SCALES = {"flux": (3.5, 2.0), "flux2_klein": (4.0, 1.0)}
FAMILIES = tuple(flow_tiny.MAKERS)

pytestmark = pytest.mark.xdist_group("flow_families")


class Lent:
    """What the engine lends a method, as far as these ask for it."""

    def __init__(self, backbone: Backbone, pictures: dict[str, Image.Image]) -> None:
        self.backbone, self._pictures = backbone, pictures

    def source(self, source_id: str) -> Image.Image:
        return self._pictures[source_id]

    def noise(self, rows: Sequence[PlanRow]) -> torch.Tensor:
        return torch.stack([drawn(self.backbone.latent_shape, row.seed or 0) for row in rows])

    def use_concepts(self, name: str) -> None:
        raise AssertionError(name)


def drawn(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def sources() -> dict[str, Image.Image]:
    generator = torch.Generator().manual_seed(5)
    levels = [torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8) for _ in range(4)]
    size = (flow_pictures.SIDE, flow_pictures.SIDE)
    return {
        f"{i:064x}": Image.fromarray(x.numpy()).resize(size, Image.Resampling.BICUBIC) for i, x in enumerate(levels)
    }


@cache
def table() -> SourceTable:
    listed = tuple(Source(name, i % 2, f"{i}") for i, name in enumerate(sources()))
    return SourceTable("t", "train", ("bird", "house"), ("bird", "house"), "", listed)


class Both:
    """A family's tiny pipeline as diffusers drives it and as we do."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.pipe = name, flow_pictures.pipeline(folder)
        spec = BackboneSpec(id=str(folder), height=flow_pictures.SIDE, width=flow_pictures.SIDE)
        facts = check_backbone(spec)
        assert facts is not None
        self.facts: ModelFacts = facts
        self.backbone = Backbone.load(spec)
        self.lent = Lent(self.backbone, sources())
        self.spec = PlanSpec(seed=3, backbone="b", per_class=2, timeline=facts.timeline)

    def planned(self, method: str, **config: object) -> tuple[Any, list[PlanRow]]:
        module = find_method(method)
        cfg = module.Config(num_inference_steps=STEPS, **config)
        return cfg, list(module.plan(cfg, table(), self.spec))

    def made(self, method: str, rows: Sequence[PlanRow], cfg: Any) -> list[np.ndarray[Any, Any]]:
        return [image.pixels.numpy() for image in find_method(method).generate(rows, cfg, self.lent)]


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("flows")

    @cache
    def made(name: str) -> Both:
        return Both(name, flow_tiny.build(folder / name, flow_tiny.MAKERS[name]))

    yield made


def far(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest difference in grey levels."""
    return float(np.abs(ours.astype(np.float64) - theirs).max() * 255)


def scales_of(name: str) -> tuple[float, float]:
    """The scales of the two rows: a family with an embedded scale takes any, FLUX.2 none below 1."""
    return SCALES.get(name, (4.5, 1.0))


def varied(rows: Sequence[PlanRow], name: str) -> list[PlanRow]:
    """Rows with different prompts and guidance scales."""
    changes = [{"prompt": PROMPTS[i % 2], "guidance_scale": scales_of(name)[i % 2]} for i in range(len(rows))]
    return [row.model_copy(update=change) for row, change in zip(rows, changes, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_images_from_noise_are_those_of_the_pipeline(both: Any, name: str) -> None:
    it: Both = both(name)
    sampler = it.facts.samplers[0] if it.facts.samplers[0] != "euler" else "ddim"
    cfg, rows = it.planned("txt2img", sampler=sampler)
    rows = varied(rows[:2], name)
    for row, ours in zip(rows, it.made("txt2img", rows, cfg), strict=True):
        noise = drawn(it.backbone.latent_shape, row.seed or 0)[None]
        theirs = flow_pictures.picture(it.pipe, name, row.prompt or "", noise, STEPS, row.guidance_scale or 0)
        assert far(ours, theirs) < LEVEL, name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_and_the_noise_decide_the_image(both: Any, name: str) -> None:
    it: Both = both(name)
    cfg, rows = it.planned("txt2img", sampler="dpm")
    row = varied(rows[:1], name)[0]
    others = [row.model_copy(update={"prompt": PROMPTS[1]}), row.model_copy(update={"seed": 7})]
    plain, *changed = it.made("txt2img", [row, *others], cfg)
    assert all(far(plain, other) > 3 * LEVEL for other in changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_that_start_at_different_steps_are_those_of_the_scheduler(both: Any, name: str) -> None:
    it: Both = both(name)
    sampler = "dpm" if it.facts.samplers[0] == "dpm" else "ddim"
    cfg, rows = it.planned("img2img", strength=0.6, sampler=sampler)
    rows = [
        row.model_copy(update={"start_step": start}) for row, start in zip(varied(rows[:2], name), (2, 3), strict=True)
    ]
    levels = flow_pictures.sigmas(it.pipe, name, STEPS)
    for row, ours in zip(rows, it.made("img2img", rows, cfg), strict=True):
        latent = flow_pictures.encoded(it.pipe, name, sources()[row.source_ids[0]])
        noise, first = drawn(it.backbone.latent_shape, row.seed or 0)[None], row.start_step or 0
        sigma = levels[first]
        signal = 1 - sigma if it.facts.process == "flow" else 1 / (sigma**2 + 1) ** 0.5
        spread = sigma if it.facts.process == "flow" else sigma * signal
        state = signal * latent + spread * noise
        theirs = flow_pictures.picture(it.pipe, name, row.prompt or "", state, STEPS, row.guidance_scale or 0, first)
        assert far(ours, theirs) < LEVEL, name


@pytest.mark.parametrize("name", flow_pictures.IMG2IMG)
def test_edits_are_those_of_the_img2img_pipeline(both: Any, name: str) -> None:
    it: Both = both(name)
    cfg, rows = it.planned("img2img", strength=0.6, sampler="ddim", guidance_scale=scales_of(name)[0])
    rows = rows[:2]
    for row, ours in zip(rows, it.made("img2img", rows, cfg), strict=True):
        latent = flow_pictures.encoded(it.pipe, name, sources()[row.source_ids[0]])
        told = row.prompt or "", latent, row.seed or 0, STEPS, 0.6, row.guidance_scale or 0
        assert far(ours, flow_pictures.edited(it.pipe, name, *told)) < LEVEL, name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_of_genie_is_the_pipeline_s_from_its_level(both: Any, name: str) -> None:
    it: Both = both(name)
    sampler = "dpm" if it.facts.samplers[0] == "dpm" else "ddim"
    cfg, rows = it.planned("genie", ratio=0.7, sampler=sampler, guidance_scale=scales_of(name)[0])
    for row, ours in zip(rows[:2], it.made("genie", rows[:2], cfg), strict=True):
        latent = flow_pictures.encoded(it.pipe, name, sources()[row.source_ids[0]])
        noise, first = drawn(it.backbone.latent_shape, row.seed or 0)[None], row.start_step or 0
        if it.facts.process == "flow":
            state = 0.3 * latent + 0.7 * noise
        else:
            alphas = it.pipe.scheduler.alphas_cumprod[700]
            state = alphas.sqrt() * latent + (1 - alphas).sqrt() * noise
        theirs = flow_pictures.picture(it.pipe, name, row.prompt or "", state, STEPS, row.guidance_scale or 0, first)
        assert 0 < first < STEPS and far(ours, theirs) < LEVEL, name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_s_bits_do_not_depend_on_its_neighbours(both: Any, name: str) -> None:
    it: Both = both(name)
    cfg, rows = it.planned("img2img", strength=0.6, sampler="ddim")
    rows = varied(rows[:3], name)
    other = rows[1].model_copy(update={"prompt": "x " * 30, "seed": 99, "start_step": 4, "guidance_scale": 1.0})
    first, again = it.made("img2img", rows, cfg), it.made("img2img", [rows[0], other, rows[2]], cfg)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[2], again[2])
    assert not np.array_equal(first[1], again[1])

"""Every transformer family against diffusers' own pipeline and scheduler, by the methods that make images with it.

One batch holds rows of several starts, guidance scales, prompts and noises; the reference makes them one by one.
"""

from collections.abc import Callable, Sequence

import flow_pictures
import numpy as np
import pytest
from flow_both import FAMILIES, LEVEL, STEPS, Both, both, drawn, far, mostly_full, sources

from diffaug_datasets.core.rows import PlanRow

__all__ = ["both"]  # a fixture
PROMPTS = ("a photo of a bird", "a red house on a hill, 1984")
SCALES = {"flux": (3.5, 2.0), "flux2_klein": (4.0, 1.0)}

pytestmark = pytest.mark.xdist_group("flow_families")


def scales_of(name: str) -> tuple[float, float]:
    """The scales of the two rows: a family with an embedded scale takes any, FLUX.2 none below 1."""
    return SCALES.get(name, (4.5, 1.0))


def varied(rows: Sequence[PlanRow], name: str) -> list[PlanRow]:
    """Rows with different prompts and guidance scales."""
    changes = [{"prompt": PROMPTS[i % 2], "guidance_scale": scales_of(name)[i % 2]} for i in range(len(rows))]
    return [row.model_copy(update=change) for row, change in zip(rows, changes, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_images_from_noise_are_those_of_the_pipeline(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("txt2img", sampler=it.sampler)
    rows = varied(rows[:2], name)
    for row, ours in zip(rows, it.made("txt2img", rows, cfg), strict=True):
        noise = drawn(it.backbone.latent_shape, row.seed or 0)[None]
        theirs = flow_pictures.picture(it.pipe, name, row.prompt or "", noise, STEPS, row.guidance_scale or 0)
        assert far(ours, theirs) < LEVEL, name


@pytest.mark.parametrize("name", mostly_full("flux2_klein", "qwen_image"))
def test_the_prompt_and_the_noise_decide_the_image(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("txt2img", sampler="dpm")
    row = varied(rows[:1], name)[0]
    others = [row.model_copy(update={"prompt": PROMPTS[1]}), row.model_copy(update={"seed": 7})]
    plain, *changed = it.made("txt2img", [row, *others], cfg)
    assert all(far(plain, other) > 4 * LEVEL for other in changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_that_start_at_different_steps_are_those_of_the_scheduler(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("img2img", strength=0.6, sampler=it.sampler)
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


@pytest.mark.parametrize(
    "name", ["sd3", *(pytest.param(name, marks=pytest.mark.full) for name in flow_pictures.IMG2IMG if name != "sd3")]
)
def test_edits_are_those_of_the_img2img_pipeline(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("img2img", strength=0.6, sampler="ddim", guidance_scale=scales_of(name)[0])
    rows = rows[:2]
    for row, ours in zip(rows, it.made("img2img", rows, cfg), strict=True):
        latent = flow_pictures.encoded(it.pipe, name, sources()[row.source_ids[0]])
        told = row.prompt or "", latent, row.seed or 0, STEPS, 0.6, row.guidance_scale or 0
        assert far(ours, flow_pictures.edited(it.pipe, name, *told)) < LEVEL, name


@pytest.mark.parametrize("name", mostly_full("sd3", "pixart"))
def test_a_row_of_genie_is_the_pipeline_s_from_its_level(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("genie", ratio=0.7, sampler=it.sampler, guidance_scale=scales_of(name)[0])
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


@pytest.mark.parametrize("name", mostly_full("sd3", "z_image", "qwen_image"))
def test_a_row_s_bits_do_not_depend_on_its_neighbours(both: Callable[[str], Both], name: str) -> None:
    it = both(name)
    cfg, rows = it.planned("img2img", strength=0.6, sampler="ddim")
    rows = varied(rows[:3], name)
    other = rows[1].model_copy(update={"prompt": "x " * 30, "seed": 99, "start_step": 4, "guidance_scale": 1.0})
    first, again = it.made("img2img", rows, cfg), it.made("img2img", [rows[0], other, rows[2]], cfg)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[2], again[2])
    assert not np.array_equal(first[1], again[1])

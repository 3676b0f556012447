"""Families of one U-Net: pictures are those of diffusers' own pipelines and schedulers for the same noise."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import unet_tiny
from PIL import Image

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import Conditions, denoise, later_noise, pure_noise, timesteps
from diffaug_datasets.numerics.schedule import add_noise
from diffaug_datasets.numerics.timesteps import genie_start, img2img_start

PROMPTS = ("a photo of a bird", "the red house")
SEEDS = (11, 12)


@dataclass(frozen=True)
class Case:
    """A family's folder, how it is sampled, and diffusers' two pipelines for it."""

    build: Callable[[Path], Path]
    sampler: Any
    n: int
    scale: float
    pipeline: str
    image_pipeline: str
    scheduler: str = ""


XL = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
CASES = {
    "lcm": Case(
        unet_tiny.lcm, "lcm", 4, 8.5, "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"
    ),
    "sdxl": Case(unet_tiny.sdxl, "ddim", 8, 5.0, *XL),
    "sdxl by dpm": Case(unet_tiny.sdxl, "dpm", 8, 5.0, *XL, "DPMSolverMultistepScheduler"),
    "sdxl-turbo": Case(lambda f: unet_tiny.sdxl(f, turbo=True), "ancestral", 4, 1.0, *XL),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Backbone]]:
    """The folder and the model of a case, made once."""
    made: dict[object, tuple[Path, Backbone]] = {}

    def find(case: str) -> tuple[Path, Backbone]:
        key = case.partition(" ")[0]
        if key not in made:
            folder = CASES[case].build(tmp_path_factory.mktemp("family") / key)
            made[key] = folder, Backbone.load(BackboneSpec(id=str(folder)))
        return made[key]

    return find


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def noise_of(backbone: Backbone) -> torch.Tensor:
    draws = [torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    return torch.stack(draws)


def conditions(scale: float) -> Conditions:
    return Conditions(PROMPTS, ("", ""), (scale, scale), seeds=SEEDS)


def ours(backbone: Backbone, case: Case, way: str) -> tuple[np.ndarray, int]:
    """The pictures of both rows, and the step that they begin at."""
    noise, labels = noise_of(backbone), timesteps(backbone, case.sampler, case.n)
    source = backbone.encode(backbone.preprocess(picture(), "bilinear")[None]).expand(2, -1, -1, -1)
    start = {"txt2img": 0, "img2img": img2img_start(case.n, 0.7), "genie": genie_start(labels, 0.7)}[way]
    xt = pure_noise(backbone, noise, case.sampler, case.n)
    if way != "txt2img":
        label = labels[start] if way == "img2img" else 700
        xt = add_noise(backbone.schedule, source, noise, [label] * 2)
    made = denoise(backbone, xt, conditions(case.scale), case.sampler, case.n, [start] * 2)
    return backbone.decode(made).numpy(), start


def theirs(folder: Path, case: Case, way: str, start: int, backbone: Backbone) -> np.ndarray:
    pictures = [reference(folder, case, way, start, row, backbone) for row in range(2)]
    return np.stack(pictures)


def reference(folder: Path, case: Case, way: str, start: int, row: int, backbone: Backbone) -> np.ndarray:
    """One row by diffusers. What it would draw is put in its place: the start, and the noise after each step."""
    kind = case.pipeline if way == "txt2img" else case.image_pipeline
    pipe = getattr(diffusers, kind).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if case.scheduler:
        pipe.scheduler = getattr(diffusers, case.scheduler).from_config(pipe.scheduler.config)
    noise = noise_of(backbone)[row : row + 1]
    step, done = pipe.scheduler.step, [start]
    drawn = {"LCMScheduler": "lcm", "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete"}
    name = drawn.get(type(pipe.scheduler).__name__)

    def later(*_: Any, **__: Any) -> torch.Tensor:
        return later_noise(backbone, SEEDS, done[0])[row : row + 1]

    def stepped(*args: Any, **words: Any) -> Any:
        result = step(*args, **words)
        done[0] += 1
        return result

    words: dict[str, Any] = {"guidance_scale": case.scale, "output_type": "np"}
    with pytest.MonkeyPatch.context() as patch:
        if name:
            patch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", later)
        patch.setattr(pipe.scheduler, "step", stepped)
        if way == "txt2img":
            found = pipe(PROMPTS[row], latents=noise.clone(), num_inference_steps=case.n, **words)
            return np.asarray(found.images[0])
        labels = list(timesteps(backbone, case.sampler, case.n))
        begun = begin(pipe, noise, labels, start, way)
        patch.setattr(pipe, "prepare_latents", lambda *_, **__: begun)
        if name == "lcm":
            found = pipe(PROMPTS[row], image=picture(), timesteps=labels[start:], strength=1.0, **words)
        else:
            patch.setattr(pipe, "get_timesteps", lambda n, *_, **__: late(pipe.scheduler, start, n))
            found = pipe(PROMPTS[row], image=picture(), num_inference_steps=case.n, strength=0.7, **words)
        return np.asarray(found.images[0])


def late(scheduler: Any, start: int, n: int) -> tuple[torch.Tensor, int]:
    scheduler.set_begin_index(start)
    return scheduler.timesteps[start:], n - start


@torch.no_grad()
def begin(pipe: Any, noise: torch.Tensor, labels: list[int], start: int, way: str) -> torch.Tensor:
    """The noised source, in the units of the pipeline's scheduler: its Euler schedulers divide by the signal."""
    pixels = torch.from_numpy(np.asarray(picture(), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    source = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    bar = pipe.scheduler.alphas_cumprod
    level = bar[labels[start] if way == "img2img" else 700]
    state = level.sqrt() * source + (1 - level).sqrt() * noise
    return state / bar[labels[start]].sqrt() if "Euler" in type(pipe.scheduler).__name__ else state


@pytest.mark.parametrize("way", ["txt2img", "img2img", "genie"])
@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_diffusers(opened: Any, case: str, way: str) -> None:
    folder, backbone = opened(case)
    found, start = ours(backbone, CASES[case], way)
    expected = theirs(folder, CASES[case], way, start, backbone)
    assert float(expected.std()) > 0.005  # a picture, not a grey square
    assert float(np.abs(found / 255 - expected).max() * 255) <= 1

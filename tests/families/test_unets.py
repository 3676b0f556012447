"""Families of one U-Net: pictures are those of diffusers' own pipelines and schedulers for the same noise."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import unet_tiny
from PIL import Image

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.controlnet import steered
from diffaug_datasets.models.denoising import (
    Conditions,
    denoise,
    invert,
    later_noise,
    psnr,
    pure_noise,
    reconstructed,
    timesteps,
)
from diffaug_datasets.models.latents import ConceptExample
from diffaug_datasets.numerics.schedule import add_noise
from diffaug_datasets.numerics.timesteps import genie_start, img2img_start

pytestmark = pytest.mark.xdist_group("unets")

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
    "fused lcm": Case(unet_tiny.fused_lcm, "lcm", 4, 1.5, "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    "sdxl": Case(unet_tiny.sdxl, "ddim", 8, 5.0, *XL),
    "sdxl by dpm": Case(unet_tiny.sdxl, "dpm", 8, 5.0, *XL, "DPMSolverMultistepScheduler"),
    "sdxl-turbo": Case(lambda f: unet_tiny.sdxl(f, turbo=True), "ancestral", 4, 1.0, *XL),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Backbone]]:
    """The folder and the model of a case, made once."""
    made: dict[object, tuple[Path, Backbone]] = {}

    def find(case: str) -> tuple[Path, Backbone]:
        key = case.partition(" by")[0]
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


@cache
def whole(folder: Path, kind: str) -> Any:
    pipe = getattr(diffusers, kind).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder: Path, case: Case, way: str, start: int, backbone: Backbone) -> np.ndarray:
    pictures = [reference(folder, case, way, start, row, backbone) for row in range(2)]
    return np.stack(pictures)


def reference(folder: Path, case: Case, way: str, start: int, row: int, backbone: Backbone) -> np.ndarray:
    """One row by diffusers. What it would draw is put in its place: the start, and the noise after each step."""
    pipe = whole(folder, case.pipeline if way == "txt2img" else case.image_pipeline)
    kind = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
    own = getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")
    pipe.scheduler = getattr(diffusers, case.scheduler).from_config(own.config) if case.scheduler else own
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
        if case.image_pipeline.startswith("Latent"):
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


@pytest.mark.parametrize("way", ["txt2img", pytest.param("img2img", marks=pytest.mark.full), "genie"])
@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_diffusers(opened: Any, case: str, way: str) -> None:
    folder, backbone = opened(case)
    found, start = ours(backbone, CASES[case], way)
    expected = theirs(folder, CASES[case], way, start, backbone)
    assert float(expected.std()) > 0.005  # a picture, not a grey square
    assert float(np.abs(found / 255 - expected).max() * 255) <= 1


@pytest.mark.parametrize("case", CASES)
def test_rows_of_one_batch_start_where_they_like_and_ignore_each_other(opened: Any, case: str) -> None:
    """Also what is drawn after a step is a row's own."""
    _, backbone = opened(case)
    here, n = CASES[case], CASES[case].n
    xt, words = noise_of(backbone), conditions(here.scale)
    together = denoise(backbone, xt, words, here.sampler, n, [0, n // 2])
    other = Conditions((PROMPTS[0], "bird"), ("", ""), (here.scale, here.scale), seeds=(SEEDS[0], 99))
    beside = denoise(backbone, torch.stack([xt[0], -xt[1]]), other, here.sampler, n, [0, n - 1])
    assert torch.equal(together[0], beside[0])
    late = denoise(backbone, xt.flip(0), words_flipped(here.scale), here.sampler, n, [n // 2, 0])
    assert torch.allclose(together[1], late[0], atol=1e-4) and not torch.allclose(together[1], late[1], atol=1e-1)
    assert bool(together.isfinite().all())


def words_flipped(scale: float) -> Conditions:
    return Conditions(PROMPTS[::-1], ("", ""), (scale, scale), seeds=SEEDS[::-1])


def test_one_scale_is_told_and_another_gives_another_picture(opened: Any) -> None:
    """LCM: one call of b rows whatever the scales; each row is told its own."""
    _, backbone = opened("lcm")
    xt, cond = noise_of(backbone), backbone.prompts(PROMPTS)
    before = backbone.rows_evaluated
    mixed = backbone.guided_eps(xt, 499, cond, cond, torch.tensor([1.0, 8.5]))
    assert backbone.rows_evaluated - before == 2
    assert torch.equal(mixed[0], backbone.guided_eps(xt, 499, cond, cond, torch.tensor([1.0, 1.0]))[0])
    assert not torch.allclose(mixed[1], backbone.said(xt, 499, cond)[1], atol=1e-4)


def test_sdxl_conditions_are_those_of_diffusers(opened: Any) -> None:
    folder, backbone = opened("sdxl")
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        text, none, pooled, none_pooled = pipe.encode_prompt("a photo of a bird", device="cpu")
        _, said, _, said_pooled = pipe.encode_prompt("a photo of a bird", device="cpu", negative_prompt="red")
    found, empty = backbone.prompts(["a photo of a bird"]), backbone.prompts([""], negative=True)
    red = backbone.prompts(["red"], negative=True)
    pairs = [(found, text, pooled), (empty, none, none_pooled), (red, said, said_pooled)]
    for ours_, states, end in pairs:
        torch.testing.assert_close(ours_["text"], states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours_["pooled"], end, rtol=1e-5, atol=1e-5)
    assert not bool(empty["text"].any()) and bool(backbone.prompt("")["text"].any())  # no text is zeros only there


@pytest.mark.parametrize(("case", "n", "scale"), [("sdxl", 3, 5.0), ("sdxl-turbo", 2, 1.0)])
def test_edges_steer_sdxl_as_the_pipeline_of_diffusers(opened: Any, case: str, n: int, scale: float) -> None:
    """SaSPA on CUB: the ControlNet is told sizes and pooled text as the U-Net is; DDIM on the model's own labels."""
    folder, backbone = opened(case)
    network, pictures = random_controlnet(folder), (torch.rand(2, 1, 64, 64) > 0.8).float().expand(2, 3, 64, 64)
    pipe = whole(folder, "StableDiffusionXLPipeline")
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**pipe.components, controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    told: dict[str, Any] = {"controlnet_conditioning_scale": 0.75, "guidance_scale": scale, "output_type": "latent"}
    expected = [
        pipe(prompt, image=pictures[i : i + 1], latents=noise_of(backbone)[i : i + 1], num_inference_steps=n, **told)
        for i, prompt in enumerate(PROMPTS)
    ]
    xt = noise_of(backbone)  # of SDXL-Turbo runs begin at Euler's noise, 0.998 of it
    plain = denoise(backbone, xt, conditions(scale), "ddim", n, [0, 0])
    with steered(backbone, network, pictures, 0.75):
        found = denoise(backbone, xt, conditions(scale), "ddim", n, [0, 0])
    torch.testing.assert_close(found, torch.cat([made.images for made in expected]), rtol=1e-3, atol=1e-3)
    assert float((found - plain).abs().max()) > 0.05


def random_controlnet(folder: Path) -> diffusers.ControlNetModel:
    """Beside the folder's U-Net, by diffusers; what starts at zero is drawn."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    torch.manual_seed(0)
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    network.eval().requires_grad_(False)
    for part in (network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return network


def test_sdxl_inverts_images(opened: Any) -> None:
    """Diff-II's way down and up, with the PSNR that it reports."""
    _, backbone = opened("sdxl")
    image = backbone.preprocess(picture().resize((4, 4)).resize((64, 64)), "bilinear")
    reach = backbone.decode_float(backbone.encode(image[None]))[0]
    found: dict[str, float] = {}
    for inverter in ("ddim", "midpoint", "bdia"):
        words: dict[str, Any] = {"steps": 8, "batch": 2, "inverter": inverter}
        latents = invert(backbone, [image], [PROMPTS[0]], **words)
        [back] = reconstructed(backbone, latents, [PROMPTS[0]], **words)
        found[inverter] = psnr(back, reach)
    # A random network is far from smooth, so DDIM loses much; the pairs of BDIA come back whatever the network says.
    assert found["bdia"] > 40 > found["ddim"] > 5


def test_sdxl_learns_concepts_in_both_encoders(opened: Any, tmp_path: Path) -> None:
    """Tokens are rows of both; LoRA, saved as diffusers reads it, changes its U-Net as ours; afterwards all is back."""
    folder, backbone = opened("sdxl")
    names, cfg = {0: "bird", 1: "house"}, ConceptConfig(steps=3, batch=2, rank=2, lr_embedding=0.1, lr_lora=0.1)
    examples = [ConceptExample(picture(), label) for label in names]
    before = backbone.prompt("a photo of a bird")["text"]
    learned = train_concepts(backbone, examples, names, cfg, workdir=tmp_path, metaclass="thing").concepts
    assert {rows.shape for rows in learned.tokens.values()} == {(1, unet_tiny.WIDTH + unet_tiny.OTHER_WIDTH)}
    assert torch.equal(backbone.prompt("a photo of a bird")["text"], before)
    learned.save(tmp_path / "concepts")
    backbone.use_concepts(learned)
    try:
        cond, xt = backbone.prompts(["a <class_0>", "a <class_1>"]), noise_of(backbone)
        assert not torch.allclose(cond["text"][0], cond["text"][1], atol=1e-3)
        assert not torch.allclose(cond["pooled"][0], cond["pooled"][1], atol=1e-5)
        ours_ = backbone.said(xt, 499, cond)
    finally:
        backbone.use_concepts(None)
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipe.load_lora_weights(tmp_path / "concepts", weight_name="pytorch_lora_weights.safetensors")
    told = {"text_embeds": cond["pooled"], "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2).float()}
    with torch.no_grad():
        theirs_ = pipe.unet(xt, torch.tensor([499, 499]), cond["text"], added_cond_kwargs=told).sample
    torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours_, backbone.said(xt, 499, cond), atol=1e-4)

"""Models with other schedules than Stable Diffusion 1.5: pictures are those of diffusers' pipeline and scheduler."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sd_tiny
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.denoising import Conditions, denoise, pure_noise, timesteps
from diffaug_datasets.numerics.schedule import add_noise
from diffaug_datasets.numerics.timesteps import img2img_start

PROMPTS = ("a photo of a bird", "the red house")
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TURBO = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "steps_offset": 1}
SCHEDULERS = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}
CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "zero SNR by ddim": (ZERO_SNR, "ddim"),
    "zero SNR by dpm": (ZERO_SNR, "dpm"),
    "leading by dpm": ({"timestep_spacing": "leading"}, "dpm"),
    "T = 500": ({"num_train_timesteps": 500, "timestep_spacing": "leading"}, "ddim"),
}


def opened(folder: Path, changes: dict[str, object]) -> Backbone:
    return Backbone.load(BackboneSpec(id=str(sd_tiny.rescheduled(folder, changes))))


def noise_of(backbone: Backbone) -> torch.Tensor:
    return torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))


def ours(backbone: Backbone, sampler: Any, n: int, scale: float, strength: float | None = None) -> np.ndarray:
    conditions = Conditions(PROMPTS, ("", ""), (scale, scale))
    noise, start = noise_of(backbone), 0
    if strength is None:
        xt = pure_noise(backbone, noise, sampler, n)
    else:
        start = img2img_start(n, strength)
        source = backbone.preprocess(picture(), "bilinear")[None].expand(2, -1, -1, -1)
        label = timesteps(backbone, sampler, n)[start]
        xt = add_noise(backbone.schedule, backbone.encode(source), noise, [label, label])
    return backbone.decode(denoise(backbone, xt, conditions, sampler, n, [start, start])).numpy()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def theirs(
    folder: Path, scheduler: Any, noise: torch.Tensor, n: int, scale: float, strength: float | None, monkeypatch: Any
) -> np.ndarray:
    kind = StableDiffusionPipeline if strength is None else StableDiffusionImg2ImgPipeline
    pipe = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler
    words: dict[str, Any] = {"num_inference_steps": n, "guidance_scale": scale, "output_type": "np"}
    pictures = []
    for i, prompt in enumerate(PROMPTS):
        row = noise[i : i + 1]
        if strength is None:
            made = pipe(prompt, latents=row.clone(), **words)
        else:
            module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
            monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, row=row, **k: row)
            mode = pipe.vae.encode
            monkeypatch.setattr(pipe.vae, "encode", lambda x, mode=mode: _Mode(mode(x).latent_dist.mode()))
            made = pipe(prompt, image=picture(), strength=strength, **words)
            monkeypatch.undo()
        pictures.append(made.images[0])
    return np.stack(pictures)


class _Mode:
    """A posterior whose every sample is its mode."""

    def __init__(self, mode: torch.Tensor) -> None:
        self.latents = mode


def levels_apart(found: np.ndarray, expected: np.ndarray) -> float:
    assert float(expected.std()) > 0.005  # a picture, not a grey square
    return float(np.abs(found / 255 - expected).max() * 255)


@pytest.mark.parametrize("case", CHANGES)
def test_pictures_are_those_of_diffusers(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, sampler = CHANGES[case]
    backbone = opened(sd_tiny.build(tmp_path / "sd"), changes)
    for strength in (None, 0.6):
        own = DDIMScheduler.from_pretrained(tmp_path / "sd", subfolder="scheduler")
        scheduler = SCHEDULERS[sampler].from_config(own.config)
        expected = theirs(tmp_path / "sd", scheduler, noise_of(backbone), 10, 3.0, strength, monkeypatch)
        found = ours(backbone, sampler, 10, 3.0, strength)
        assert levels_apart(found, expected) <= 1, strength


def test_linspace_by_ddim_is_what_euler_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM of diffusers steps by T // n from each of these labels, to levels beside the next one; Euler does not. In 10
    steps its labels are whole too.
    """
    changes = {"timestep_spacing": "linspace", "set_alpha_to_one": True}
    backbone = opened(sd_tiny.build(tmp_path / "sd"), changes)
    own = EulerDiscreteScheduler.from_pretrained(tmp_path / "sd", subfolder="scheduler")
    expected = theirs(tmp_path / "sd", own, noise_of(backbone), 10, 3.0, 0.6, monkeypatch)
    assert levels_apart(ours(backbone, "ddim", 10, 3.0, 0.6), expected) <= 1


@pytest.mark.parametrize("n", [1, 4])
def test_turbo_is_sampled_as_its_own_pipeline_does(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe says guidance_scale 1; theirs 0, which diffusers takes for the same."""
    backbone = opened(sd_tiny.build(tmp_path / "turbo"), TURBO)
    for strength in (None, 0.5) if n > 1 else (None,):
        scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "turbo", subfolder="scheduler")
        expected = theirs(tmp_path / "turbo", scheduler, noise_of(backbone), n, 0.0, strength, monkeypatch)
        assert levels_apart(ours(backbone, "ddim", n, 1.0, strength), expected) <= 1, strength


def test_rows_ignore_their_neighbours_at_zero_snr(tmp_path: Path) -> None:
    backbone = opened(sd_tiny.build(tmp_path / "sd"), ZERO_SNR)
    noise, conditions = noise_of(backbone), Conditions(PROMPTS, ("", ""), (3.0, 1.0))
    made = denoise(backbone, noise, conditions, "ddim", 6, [0, 3])
    other = denoise(backbone, noise.flip(0).roll(1, 0), Conditions(PROMPTS, ("", ""), (3.0, 1.0)), "ddim", 6, [0, 2])
    assert torch.equal(made[0], other[0])
    assert bool(made.isfinite().all())

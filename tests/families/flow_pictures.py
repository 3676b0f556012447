"""Pictures of the transformer families as diffusers' own pipelines and schedulers make them, from noise that is given.

Imports nothing of ours. `pipeline` reads a folder; `picture` is one row: from noise, or from a state at a later step.
Where diffusers has an img2img pipeline, `edited` asks that one.
"""

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 32
IMG2IMG = {
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
    "z_image": "ZImageImg2ImgPipeline",
    "qwen_image": "QwenImageImg2ImgPipeline",
}
PACKED = ("flux", "qwen_image")


def pipeline(folder: Path) -> Any:
    """The folder as diffusers sees it."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as more_logging

    logging.disable_progress_bar()
    more_logging.disable_progress_bar()
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings(name: str, scale: float, negative: str) -> dict[str, Any]:
    """What this family's pipeline calls guidance, negative prompts and the size; scale 1 = none."""
    size = {"height": SIDE, "width": SIDE}
    if name == "flux":
        return {**size, "guidance_scale": scale}
    if name == "flux2_klein":
        return {**size, "guidance_scale": scale}
    if name == "z_image":
        return {**size, "guidance_scale": scale - 1, "negative_prompt": negative}
    if name == "qwen_image":
        return {**size, "true_cfg_scale": scale, "negative_prompt": negative}
    extra = {"use_resolution_binning": False, "clean_caption": False} if name in ("sana", "pixart") else {}
    return {**size, **extra, "guidance_scale": scale, "negative_prompt": negative}


def packed(pipe: Any, name: str, latents: Tensor) -> Tensor:
    """Latents as the pipeline takes them."""
    return pipe._pack_latents(latents, *latents.shape) if name in PACKED else latents


def starting_at(scheduler: Any, first: int) -> Any:
    """The same scheduler, whose steps before the first one are left out."""

    kind = type(scheduler)

    class Late(kind):  # type: ignore[misc,valid-type]
        @wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **words: Any) -> None:
            super().set_timesteps(*args, **words)
            self.timesteps, self.sigmas = self.timesteps[first:], self.sigmas[first:]

    return Late.from_config(scheduler.config)


def picture(
    pipe: Any,
    name: str,
    prompt: str,
    state: Tensor,
    steps: int,
    scale: float,
    first: int = 0,
    scheduler: Any = None,
    negative: str = "",
) -> "np.ndarray[Any, Any]":
    """One row [h w 3] in [0, 1], from a state [1 c h w] at step `first` of `steps`."""
    own = pipe.scheduler
    pipe.scheduler = starting_at(scheduler or own, first)
    try:
        words = settings(name, scale, negative)
        made = pipe(
            prompt=[prompt],
            latents=packed(pipe, name, state),
            num_inference_steps=steps,
            output_type="np",
            **{key: [value] if key == "negative_prompt" else value for key, value in words.items()},
        )
    finally:
        pipe.scheduler = own
    return made.images[0]


def sigmas(pipe: Any, name: str, steps: int, scheduler: Any = None) -> list[float]:
    """Noise over signal plus noise at every step, as the pipeline's own call sets its scheduler up."""
    own, seen = pipe.scheduler, list[float]()
    kind = type(scheduler or own)

    class Watched(kind):  # type: ignore[misc,valid-type]
        @wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **words: Any) -> None:
            super().set_timesteps(*args, **words)
            seen.extend(self.sigmas.tolist())

    pipe.scheduler = Watched.from_config((scheduler or own).config)
    try:
        c, h, w = latent_shape(pipe, name)
        words = settings(name, 1.0, "")
        noise = packed(pipe, name, torch.zeros(1, c, h, w))
        pipe(prompt=["a"], latents=noise, num_inference_steps=steps, output_type="latent", **words)
    finally:
        pipe.scheduler = own
    return seen


def latent_shape(pipe: Any, name: str) -> tuple[int, int, int]:
    """Of the noise that the pipeline draws, before it is packed."""
    if name == "flux2_klein":
        return 16, SIDE // 8, SIDE // 8
    return 4, SIDE // 4, SIDE // 4


def pixels(image: Image.Image) -> Tensor:
    """A picture of the right size in [-1, 1]."""
    levels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(2 * levels - 1).permute(2, 0, 1)[None]


@torch.no_grad()
def encoded(pipe: Any, name: str, image: Image.Image) -> Tensor:
    """The latent [1 c h w] of a picture as the pipeline scales it: the posterior's mode."""
    seen, vae = pixels(image), pipe.vae
    if name == "sana":
        return vae.encode(seen).latent * vae.config.scaling_factor
    if name == "flux2_klein":
        return pipe._encode_vae_image(seen, generator=None)
    if name == "qwen_image":
        mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
        return (vae.encode(seen[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / deviation
    shift = vae.config.shift_factor or 0.0
    return (vae.encode(seen).latent_dist.mode() - shift) * vae.config.scaling_factor


def edited(
    pipe: Any, name: str, prompt: str, latent: Tensor, seed: int, steps: int, strength: float, scale: float
) -> "np.ndarray[Any, Any]":
    """One row by diffusers' img2img pipeline, whose noise is drawn from a seed."""
    import diffusers

    kind = getattr(diffusers, IMG2IMG[name])
    other = kind(**pipe.components)
    other.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    words = settings(name, scale, "")
    made = other(
        prompt=prompt,
        image=latent,
        strength=strength,
        generator=generator,
        num_inference_steps=steps,
        output_type="np",
        **words,
    )
    return made.images[0]

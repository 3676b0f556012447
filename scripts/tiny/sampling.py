"""Samples of the trained pipeline as grey uint8 pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from tiny import work
from tiny.captions import PHRASES, prompt

BATCH = 100


def load(folder: Path) -> StableDiffusionPipeline:
    """The exported pipeline, quiet, on the GPU when there is one."""
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).to(work.device())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(count: int, seed: int) -> torch.Tensor:
    """Starting latents [count, 4, 8, 8]; the same seed gives the same rows."""
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def class_labels(count: int) -> np.ndarray:
    """`count` labels, the classes in turn."""
    return np.arange(count) % len(PHRASES)


def prompts(labels: np.ndarray, *suffixes: str) -> list[str]:
    """A caption for each label."""
    return [prompt(PHRASES[label], *suffixes) for label in labels]


def _twin(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same networks with a scheduler of its own, so that two threads can sample at once."""
    parts = {**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)}
    twin = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    twin.set_progress_bar_config(disable=True)
    return twin


@dataclass(frozen=True)
class Request:
    """What to draw: texts, a starting latent for each, guidance scale and number of DDIM steps."""

    texts: list[str]
    latents: torch.Tensor
    guidance: float
    steps: int = 25

    def parts(self) -> list[Request]:
        """Requests of at most BATCH texts."""
        starts = range(0, len(self.texts), BATCH)
        return [replace(self, texts=self.texts[i : i + BATCH], latents=self.latents[i : i + BATCH]) for i in starts]


def _draw(pipe: StableDiffusionPipeline, request: Request) -> np.ndarray:
    images = _twin(pipe)(
        request.texts, latents=request.latents.to(pipe.device), guidance_scale=request.guidance,
        num_inference_steps=request.steps, output_type="np",
    ).images  # fmt: skip
    return np.rint(images.mean(3) * 255).astype(np.uint8)


def sample(pipe: StableDiffusionPipeline, request: Request) -> np.ndarray:
    """Pictures [N, 32, 32] uint8; batches are drawn side by side, one thread each."""
    workers = 1 if pipe.device.type == "cuda" else torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return np.concatenate(list(pool.map(partial(_draw, pipe), request.parts())))

"""Euler's ancestral sampler (Karras et al. 2022, arXiv 2206.00364, with the noise of k-diffusion), row by row.

The state is x = x_0 + sigma eps, sigma = sqrt((1 - alpha_bar) / alpha_bar); a step goes down to sigma_down along the
network's direction, and back up to the next sigma with fresh noise of each row's own stream:
sigma_up^2 = sigma_to^2 (sigma^2 - sigma_to^2) / sigma^2, sigma_down^2 = sigma_to^2 - sigma_up^2.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from diffaug_datasets.numerics.schedule import Schedule
from diffaug_datasets.numerics.timesteps import ddim_labels

EpsAt = Callable[[Tensor, float], Tensor]
"""(xt [b c h w], timestep label t, which may lie between whole ones) -> guided eps [b c h w]."""


def euler_timesteps(schedule: Schedule, n: int) -> tuple[float, ...]:
    """The n falling labels; where nothing is said of spacing, n even points on 0..T-1, which need not be whole.

    Follows diffusers' `EulerAncestralDiscreteScheduler`, in float32 as there.
    """
    steps = schedule.num_train_timesteps
    if schedule.spacing in (None, "linspace"):
        return tuple(float(t) for t in np.linspace(0, steps - 1, n, dtype=np.float32)[::-1])
    return tuple(float(t) for t in ddim_labels(n, steps, schedule.steps_offset, schedule.spacing or "leading"))


def euler_sigmas(schedule: Schedule, timesteps: Sequence[float]) -> list[float]:
    """sigma at every label, interpolated between whole ones, and 0 at the end."""
    alpha_bar = schedule.alpha_bar.numpy()
    every = np.sqrt((1 - alpha_bar) / alpha_bar)
    return [*np.interp(timesteps, np.arange(len(every)), every).tolist(), 0.0]


def euler_ancestral_sample(
    eps: EpsAt, schedule: Schedule, n: int, streams: Sequence[Generator], shape: tuple[int, int, int]
) -> Float[Tensor, "b c h w"]:
    """Clean latents from pure noise, float32 on the CPU's order of draws: row j's noise comes from streams[j] alone.

    The first draw of a stream is the start, every later one a step's noise, as diffusers draws from one generator.
    """
    timesteps = euler_timesteps(schedule, n)
    sigmas = euler_sigmas(schedule, timesteps)
    is_leading = schedule.spacing == "leading"
    x = _drawn(streams, shape) * (math.hypot(sigmas[0], 1) if is_leading else sigmas[0])
    for i, t in enumerate(timesteps):
        sigma, end = sigmas[i], sigmas[i + 1]
        direction = eps(x / math.sqrt(sigma**2 + 1), t).float()
        x = x.to(direction.device)
        up = math.sqrt(end**2 * (sigma**2 - end**2) / sigma**2)
        x = x + direction * (math.sqrt(end**2 - up**2) - sigma)
        if up:
            x = x + _drawn(streams, shape).to(x.device) * up
    return x


def _drawn(streams: Sequence[Generator], shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams])

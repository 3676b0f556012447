"""CycleDiffusion: a source's own noise, read step by step and given to another denoising of the same source.

A stochastic sampler is run backwards in the only way that is exact: the source's states are drawn from the posterior
q(x_prev | x_t, x_0), so that what its own prediction leaves unexplained at each step is known. The target is denoised
with just that rest in the place of fresh noise.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.sampling import Final, Network, end_of, falling_levels
from diffaug_datasets.numerics.schedule import Schedule, per_row, widened

Noise = Callable[[int], Tensor]
"""Step index i -> standard normal draws [b c h w] of that step; asked once per step, in order."""


def ddim_sigma(alpha_bar_t: float, alpha_bar_prev: float, eta: float) -> float:
    """The noise that a DDIM step adds: eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev), of levels in (0, 1].

    Implements Eq. 16 of Song et al. (arXiv 2010.02502).
    """
    return eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_prev))


def posterior_step(
    xt: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    levels: tuple[float, float],
    sigma: float,
) -> Float[Tensor, "b c h w"]:
    """A draw of q(x_prev | x_t, x_0) between levels (a_t, a_prev) of (0, 1), in the dtype of x0.

    Implements Eq. 7 of Song et al. (arXiv 2010.02502):
    x_prev = sqrt(a_prev) x_0 + sqrt(1 - a_prev - sigma^2) (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t) + sigma noise.
    """
    level, after = levels
    direction = (widened(xt) - math.sqrt(level) * widened(x0)) / math.sqrt(1 - level)
    mean = math.sqrt(after) * widened(x0) + math.sqrt(max(0.0, 1 - after - sigma**2)) * direction
    return (mean + sigma * widened(noise)).to(x0.dtype)


def cycle_sample(
    networks: tuple[Network, Network],
    x0: Float[Tensor, "b c h w"],
    xt: Float[Tensor, "b c h w"],
    noise: Noise,
    schedule: Schedule,
    timesteps: Sequence[int],
    start: Sequence[int],
    eta: float,
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level: x0, changed by what the target's network sees otherwise than the source's.

    `networks`: eps of source and of target, called in this order. Row j of xt is x0 noised to timesteps[start[j]]. With
    D = y - x, the target's state less the source's, and e the two predictions, a step from level a_t to a_prev is
    D_prev = sqrt(a_prev / a_t) D + (sqrt(1 - a_prev - sigma^2) - sqrt(a_prev / a_t) sqrt(1 - a_t)) (e_y - e_x):
    the step of either with the same rest r = x_prev - sqrt(a_prev) x0_hat - sqrt(1 - a_prev - sigma^2) e_x, one taken
    from the other. Equal networks give x0 back. Implements CycleDiffusion (Wu & De la Torre 2022, arXiv 2210.05559) as
    diffusers' `CycleDiffusionPipeline` does, whose last source state is x0 itself; r is never divided by sigma there.
    `final`: the last level, that of the schedule unless stated.

    Raises:
        ValueError: labels do not fall, start is not one index in 0..n-1 per row, or networks do not say eps.
    """
    if len(start) != len(x0) or not all(0 <= s < len(timesteps) for s in start):
        raise ValueError(f"got start steps {tuple(start)}; give one in 0..{len(timesteps) - 1} for {len(x0)} rows each")
    if schedule.prediction != "epsilon":
        raise ValueError(f"got networks that say {schedule.prediction}; the rest of a step is known of eps alone")
    falling_levels(schedule, timesteps, end_of(schedule, final))  # for its checks
    end = schedule.final_alpha_bar if final is None else 1.0 if final == "zero" else schedule.level(0)
    levels = [*map(schedule.level, timesteps), end]
    clean, source = widened(x0), widened(xt)
    gap = torch.zeros_like(clean)
    for i in range(min(start), len(timesteps)):
        pair = levels[i], levels[i + 1]
        seen = networks[0](source.to(xt.dtype), timesteps[i], i)
        wanted = networks[1]((source + gap).to(xt.dtype), timesteps[i], i)
        drawn, sigma = widened(noise(i)), ddim_sigma(*pair, eta)
        before = clean if i == len(timesteps) - 1 else posterior_step(source, clean, drawn, pair, sigma)
        ratio = math.sqrt(pair[1] / pair[0])
        weight = math.sqrt(max(0.0, 1 - pair[1] - sigma**2)) - ratio * math.sqrt(1 - pair[0])
        has_started = per_row([s <= i for s in start], clean, torch.bool)
        gap = torch.where(has_started, ratio * gap + weight * (widened(wanted) - widened(seen)), gap)
        source = torch.where(has_started, before, source)
    return (source + gap).to(x0.dtype)

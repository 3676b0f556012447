"""Samplers of models that were distilled to a few steps and draw fresh noise after each: consistency, and Euler's
ancestral.

Rows of a batch may start at different steps, as in `sampling`; what is drawn after step i is `fresh(i)`, a tensor for
all rows, of which each row's part must follow from that row alone. On variance-preserving schedules.
"""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.levels import CLEAN
from diffaug_datasets.numerics.sampling import Network, check_start, falling_levels, predicted_data, where_started
from diffaug_datasets.numerics.schedule import Schedule, widened

Fresh = Callable[[int], Tensor]
"""Step index i -> standard normal noise [b c h w], drawn after it."""

SIGMA_DATA = 0.5


def boundary(t: float, scaling: float) -> tuple[float, float]:
    """(c_skip, c_out) of a consistency function at label t: 1 and 0 at label 0, where it must be the identity.

    Implements Eq. 9 of Luo et al. 2023 (arXiv 2310.04378) with sigma_data 0.5 and the timestep times `scaling`, as
    their code and diffusers' `LCMScheduler` have it.
    """
    scaled = t * scaling
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)


def consistency_sample(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    schedule: Schedule,
    timesteps: Sequence[float],
    start: Sequence[int],
    fresh: Fresh,
) -> Float[Tensor, "b c h w"]:
    """Latents free of noise, by a consistency model along falling labels; row j starts at step start[j].

    A step says x0 at once; all but the last noise it again to the next label. Implements algorithm 3 of Luo et al.
    2023 (arXiv 2310.04378); follows diffusers' `LCMScheduler`.

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 per row.
    """
    first = check_start(xt, timesteps, start)
    levels = falling_levels(schedule, timesteps, CLEAN)
    state = widened(xt)
    for i in range(first, len(timesteps)):
        said = widened(network(state.to(xt.dtype), timesteps[i], i))
        skip, out = boundary(timesteps[i], schedule.timestep_scaling)
        stepped = out * predicted_data(schedule.prediction, state, said, levels[i]) + skip * state
        if i + 1 < len(timesteps):
            stepped = levels[i + 1].signal * stepped + levels[i + 1].noise * fresh(i).to(stepped)
        state = where_started(start, i, stepped, state)
    return state.to(xt.dtype)


def ancestral_sample(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    schedule: Schedule,
    timesteps: Sequence[float],
    start: Sequence[int],
    fresh: Fresh,
) -> Float[Tensor, "b c h w"]:
    """Latents free of noise, by Euler's ancestral sampler along falling labels; row j starts at step start[j].

    With sigma = s / a a step goes down to sigma_down and back up to the next sigma with fresh noise:
    sigma_up^2 = sigma_to^2 (sigma^2 - sigma_to^2) / sigma^2, sigma_down^2 = sigma_to^2 - sigma_up^2. Follows diffusers'
    `EulerAncestralDiscreteScheduler`, whose state is the one here over a. The last step, to no noise, is Euler's.

    Raises:
        ValueError: labels do not fall, start is not one index in 0..n-1 per row, or the network does not say eps.
    """
    if schedule.prediction != "epsilon":
        raise ValueError(f"got a network that says {schedule.prediction}; the ancestral sampler needs eps")
    first = check_start(xt, timesteps, start)
    levels = falling_levels(schedule, timesteps, CLEAN)
    state = widened(xt)
    for i in range(first, len(timesteps)):
        eps = widened(network(state.to(xt.dtype), timesteps[i], i))
        (a, s), (a_to, s_to) = levels[i], levels[i + 1]
        sigma, end = s / a, s_to / a_to
        up = math.sqrt(end**2 * (sigma**2 - end**2)) / sigma
        down = math.sqrt(end**2 - up**2)
        stepped = (a_to / a) * state + a_to * (down - sigma) * eps
        if up:
            stepped = stepped + a_to * up * fresh(i).to(stepped)
        state = where_started(start, i, stepped, state)
    return state.to(xt.dtype)

"""PLMS, the linear multistep sampler that Stable Diffusion 1.x ships as its default (diffusers' `PNDMScheduler`)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.ddim import ddim_step
from diffaug_datasets.numerics.precision import per_row, widened
from diffaug_datasets.numerics.sampling import Eps
from diffaug_datasets.numerics.schedule import Schedule

# Adams-Bashforth weights of the newest, the second newest, ... noise (Eq. 9 of Liu et al. 2022, arXiv 2202.09778).
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms_sample(
    eps: Eps, xt: Float[Tensor, "b c h w"], schedule: Schedule, timesteps: Sequence[int], start: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level, by PLMS along the n + 1 labels of `timesteps.plms_labels`; row j starts at start[j].

    Row j of xt is the state at label timesteps[start[j]] and is left untouched by the steps before. A row's second
    evaluation takes its first step again with the mean of both noises; then the noise is extrapolated from up to four.
    Follows diffusers' `PNDMScheduler` with skip_prk_steps as its pipelines drive it, also where these start late: the
    label that the list holds twice is only in its front, so a row that starts behind it is one step noisier than its
    labels say from its third evaluation on.

    Raises:
        ValueError: start is not one index in 0..n a row, or a label lies outside 0..T-1.
    """
    if len(start) != len(xt) or not all(0 <= s < len(timesteps) for s in start):
        wanted = f"one index in 0..{len(timesteps) - 1} for each of {len(xt)} rows"
        raise ValueError(f"got start steps {tuple(start)}; give {wanted}")
    state = before = widened(xt)
    gap = schedule.num_train_timesteps // (len(timesteps) - 1)
    seen: dict[int, Tensor] = {}
    for i in range(min(start), len(timesteps)):
        seen[i] = widened(eps(state.to(xt.dtype), timesteps[i], i))
        stepped = state
        for first in {s for s in start if s <= i}:
            again = i == first + 1
            t = timesteps[i] + (gap if again else 0)
            moved = ddim_step(before if again else state, _noise(seen, first, i), *_levels(schedule, t, t - gap))
            stepped = torch.where(per_row([s == first for s in start], state, torch.bool), moved, stepped)
        before = torch.where(per_row([s == i for s in start], state, torch.bool), state, before)
        state = stepped
        seen.pop(i - 4, None)
    return state.to(xt.dtype)


def _levels(schedule: Schedule, t: int, t_prev: int) -> tuple[float, float]:
    """alpha_bar before and after a step; below the lowest label lies `final_alpha_bar`."""
    return schedule.level(t), schedule.level(t_prev) if t_prev >= 0 else schedule.final_alpha_bar


def _noise(seen: dict[int, Tensor], first: int, i: int) -> Float[Tensor, "b c h w"]:
    """What rows that started at `first` use at evaluation i; their second noise counts in its own step alone."""
    if i == first + 1:
        return (seen[i] + seen[first]) / 2
    kept = [k for k in range(i, first - 1, -1) if k != first + 1][:4]
    weights = WEIGHTS[len(kept) - 1]
    return torch.stack([w * seen[k] for w, k in zip(weights, kept, strict=True)]).sum(0)

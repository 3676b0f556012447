"""Whole trajectories of a batch: DDIM sampling, DDIM inversion, DPM-Solver++(2M), each row from its own start step.

The state is carried in float32 (float64 if the latents are) and handed to eps in the latents' dtype. Departs from
diffusers there, which rounds a half-precision state after every step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.ddim import ddim_inverse_step, ddim_step
from diffaug_datasets.numerics.dpm import dpm_first_order_step, dpm_second_order_step, x0_from_eps
from diffaug_datasets.numerics.precision import per_row, widened
from diffaug_datasets.numerics.schedule import Schedule

Eps = Callable[[Tensor, int, int], Tensor]
"""(xt [b c h w], timestep label t, step index i) -> guided eps [b c h w].

It is always called with the whole batch, waiting rows too: the batch's shape never changes during a run, because the
bits of a network's output depend on it. Prompt switches and guidance by row are its own affair.
"""


def ddim_sample(
    eps: Eps, xt: Float[Tensor, "b c h w"], schedule: Schedule, timesteps: Sequence[int], start: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level, by DDIM (eta = 0) along falling labels; row j starts at step start[j].

    Row j of xt is the state at label timesteps[start[j]] and is left untouched by the steps before. Step i goes from
    label timesteps[i] to timesteps[i + 1], the last one to `final_alpha_bar`. Follows diffusers' `DDIMScheduler`, which
    finds the next label as t - T // n. With 'leading' labels the two differ only for more than T / 2 steps with
    set_alpha_to_one; with others where n does not divide T, where diffusers steps to levels beside its own labels.

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 a row.
    """
    first = _checked_start(xt, timesteps, start)
    levels = falling_levels(schedule, timesteps, schedule.final_alpha_bar)
    state = widened(xt)
    for i in range(first, len(timesteps)):
        direction = eps(state.to(xt.dtype), timesteps[i], i)
        state = _where_started(start, i, ddim_step(state, direction, levels[i], levels[i + 1]), state)
    return state.to(xt.dtype)


def ddim_invert(
    eps: Eps, x0: Float[Tensor, "b c h w"], schedule: Schedule, timesteps: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents at the level of the last label, by DDIM inversion of x0 along rising labels.

    Step i takes the state from the level of the label before (`final_alpha_bar` before the first) to timesteps[i], with
    eps evaluated at timesteps[i]. Follows diffusers' `DDIMInverseScheduler`; implements Eq. 4 of Diff-II, corrected as
    in `ddim_inverse_step`. Sampling returns to x0 only if both lists hold the same labels and eps ignores the state.

    Raises:
        ValueError: labels do not rise.
    """
    levels = rising_levels(schedule, timesteps)
    state = widened(x0)
    for i, t in enumerate(timesteps):
        direction = eps(state.to(x0.dtype), t, i)
        state = ddim_inverse_step(state, direction, levels[i], levels[i + 1])
    return state.to(x0.dtype)


def dpm_sample(
    eps: Eps, xt: Float[Tensor, "b c h w"], schedule: Schedule, timesteps: Sequence[int], start: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents free of noise, by DPM-Solver++(2M) along falling labels; row j starts at step start[j].

    Follows diffusers' `DPMSolverMultistepScheduler` with algorithm_type 'dpmsolver++', solver_order 2, solver_type
    'midpoint' and final_sigmas_type 'zero'. A row's first step is of first order, for it has no x0 before it; so is the
    last, which ends at sigma 0 (there `lower_order_final` changes nothing, whatever the number of steps).

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 a row.
    """
    first = _checked_start(xt, timesteps, start)
    levels = falling_levels(schedule, timesteps, 1.0)
    state = x0_last = widened(xt)
    for i in range(first, len(timesteps)):
        x0 = x0_from_eps(state, eps(state.to(xt.dtype), timesteps[i], i), levels[i])
        stepped = dpm_first_order_step(state, x0, levels[i], levels[i + 1])
        if first < i < len(timesteps) - 1:
            second = dpm_second_order_step(state, x0, x0_last, (levels[i - 1], levels[i], levels[i + 1]))
            stepped = _where_started(start, i - 1, second, stepped)
        state, x0_last = _where_started(start, i, stepped, state), x0
    return state.to(xt.dtype)


def falling_levels(schedule: Schedule, timesteps: Sequence[int], end: float) -> list[float]:
    """alpha_bar before step 0, 1, ..., n-1 and, last, after step n-1: `end`.

    Raises:
        ValueError: labels do not fall strictly, or one lies outside 0..T-1.
    """
    if any(t <= after for t, after in pairwise(timesteps)):
        raise ValueError(f"got timesteps {tuple(timesteps)}; sampling needs labels that fall")
    return [*map(schedule.level, timesteps), end]


def rising_levels(schedule: Schedule, timesteps: Sequence[int]) -> list[float]:
    """alpha_bar before step 0 (`final_alpha_bar`) and after step 0, 1, ..., n-1.

    Raises:
        ValueError: labels do not rise strictly, or one lies outside 0..T-1.
    """
    if any(t >= after for t, after in pairwise(timesteps)):
        raise ValueError(f"got timesteps {tuple(timesteps)}; inversion needs labels that rise")
    return [schedule.final_alpha_bar, *map(schedule.level, timesteps)]


def _checked_start(xt: Tensor, timesteps: Sequence[int], start: Sequence[int]) -> int:
    if len(start) != len(xt) or not all(0 <= s < len(timesteps) for s in start):
        wanted = f"one index in 0..{len(timesteps) - 1} for each of {len(xt)} rows"
        raise ValueError(f"got start steps {tuple(start)}; give {wanted}")
    return min(start)


def _where_started(start: Sequence[int], i: int, if_so: Tensor, otherwise: Tensor) -> Tensor:
    """Row by row, `if_so` where the row's start step is at most i, `otherwise` where it still waits."""
    started = [s <= i for s in start]
    return if_so if all(started) else torch.where(per_row(started, if_so, torch.bool), if_so, otherwise)

"""Deterministic samplers over a batch whose rows may start at different steps: DDIM both ways, DPM-Solver++(2M), PLMS.

The state is carried in float32 (float64 if the latents are) and handed to the network in the latents' dtype. Departs
from diffusers there, which rounds a half-precision state after every step.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.schedule import Schedule, per_row, widened

Eps = Callable[[Tensor, int, int], Tensor]
"""(xt [b c h w], timestep label t, step index i) -> guided eps [b c h w].

It is always called with the whole batch, waiting rows too: the batch's shape never changes during a run, because the
bits of a network's output depend on it. Prompt switches and guidance per row are up to it.
"""
# Adams-Bashforth weights of the newest, the second newest, ... noise (Eq. 9 of Liu et al. 2022, arXiv 2202.09778).
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ddim_step(
    xt: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], alpha_bar_t: float, alpha_bar_prev: float
) -> Float[Tensor, "b c h w"]:
    """The state at level alpha_bar_prev from the state at level alpha_bar_t, both in (0, 1]. Returns xt's dtype.

    Implements Eq. 12 of Song et al. (arXiv 2010.02502) with sigma = 0:
    x_prev = sqrt(a_prev) (x_t - sqrt(1 - a_t) eps) / sqrt(a_t) + sqrt(1 - a_prev) eps,
    gathered into one multiple of x_t and one of eps so that the cancellation happens in float64.
    """
    ratio = math.sqrt(alpha_bar_prev / alpha_bar_t)
    eps_weight = math.sqrt(1 - alpha_bar_prev) - ratio * math.sqrt(1 - alpha_bar_t)
    return (ratio * widened(xt) + eps_weight * widened(eps)).to(xt.dtype)


def ddim_inverse_step(
    xt: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], alpha_bar_from: float, alpha_bar_to: float
) -> Float[Tensor, "b c h w"]:
    """The state at the noisier level alpha_bar_to from the state at alpha_bar_from, both in (0, 1]. Returns xt's dtype.

    Implements Eq. 4 of Diff-II, corrected:
    x_to = sqrt(a_to / a_from) (x_from - sqrt(1 - a_from) eps) + sqrt(1 - a_to) eps.
    The paper's v1 prints the factor as sqrt(a_t) / sqrt(a_t - 1), the root of a negative number; the denominator is the
    source level's sqrt(a_{t-1}). Follows diffusers' `DDIMInverseScheduler`, where eps is evaluated on the state at
    alpha_bar_from but with the label of alpha_bar_to: that is why inversion is only first-order accurate.
    """
    return ddim_step(xt, eps, alpha_bar_t=alpha_bar_from, alpha_bar_prev=alpha_bar_to)


def x0_from_eps(
    xt: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """The data that eps predicts for the state at level alpha_bar_t in (0, 1]. Returns xt's dtype."""
    x0 = (widened(xt) - math.sqrt(1 - alpha_bar_t) * widened(eps)) / math.sqrt(alpha_bar_t)
    return x0.to(xt.dtype)


def dpm_first_order_step(
    xt: Float[Tensor, "b c h w"], x0: Float[Tensor, "b c h w"], alpha_bar_t: float, alpha_bar_prev: float
) -> Float[Tensor, "b c h w"]:
    """The state at level alpha_bar_prev in (0, 1], holding x0 constant from level alpha_bar_t in (0, 1).

    Implements the first-order solver of Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095), equal to DDIM:
    x_prev = (sigma_prev / sigma_t) x_t - alpha_prev (exp(-h) - 1) x0, with signal scale alpha, noise scale sigma and h
    the step in log(alpha / sigma). Since exp(-h) is sigma_prev alpha_t / (alpha_prev sigma_t), the last step, where
    alpha_bar_prev is 1 and h infinite, is an ordinary one: it gives x0. Returns xt's dtype.
    """
    shrink = math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t))
    x0_weight = math.sqrt(alpha_bar_prev) - shrink * math.sqrt(alpha_bar_t)
    return (shrink * widened(xt) + x0_weight * widened(x0)).to(xt.dtype)


def dpm_second_order_step(
    xt: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    x0_last: Float[Tensor, "b c h w"],
    levels: tuple[float, float, float],
) -> Float[Tensor, "b c h w"]:
    """The state at the third level, from the state and x0 at the second and the x0 of the step before, at the first.

    `levels` are three alpha_bars of (0, 1), rising. Implements DPM-Solver++(2M) of Lu et al. 2022 (arXiv 2211.01095),
    the midpoint rule: the first-order step, taken with x0 extrapolated along log(alpha / sigma) to the middle of the
    step. Follows diffusers' `DPMSolverMultistepScheduler` with solver_order 2. Returns xt's dtype.

    Raises:
        ValueError: the last level is 1, where the step in log(alpha / sigma) has no middle.
    """
    last, now, prev = levels
    weight = second_order_weight(last, now, prev)
    midpoint = widened(x0) + weight * (widened(x0) - widened(x0_last))
    return dpm_first_order_step(xt, midpoint, now, prev)


def second_order_weight(alpha_bar_last: float, alpha_bar_t: float, alpha_bar_prev: float) -> float:
    """How far x0 is extrapolated: 1 / (2 r) = h / (2 h_last), of the step and of the one before, in log(alpha / sigma).

    Raises:
        ValueError: alpha_bar_prev is 1.
    """
    if alpha_bar_prev >= 1:
        raise ValueError("a second-order step cannot end at alpha_bar 1; take the first-order step there")
    h_last = _log_signal_to_noise(alpha_bar_t) - _log_signal_to_noise(alpha_bar_last)
    h = _log_signal_to_noise(alpha_bar_prev) - _log_signal_to_noise(alpha_bar_t)
    return h / (2 * h_last)


def _log_signal_to_noise(alpha_bar: float) -> float:
    """log(alpha / sigma), lambda in the DPM-Solver papers."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def ddim_sample(
    eps: Eps, xt: Float[Tensor, "b c h w"], schedule: Schedule, timesteps: Sequence[int], start: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level, by DDIM (eta = 0) along falling labels; row j starts at step start[j].

    Row j of xt is the state at label timesteps[start[j]] and is left untouched by the steps before. Step i goes from
    label timesteps[i] to timesteps[i + 1], the last one to `final_alpha_bar`. Follows diffusers' `DDIMScheduler`, which
    finds the next label as t - T // n. With 'leading' labels the two differ only for more than T / 2 steps with
    set_alpha_to_one; with others where n does not divide T, where diffusers steps to levels beside its own labels.

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 per row.
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
        ValueError: labels do not fall, or start is not one index in 0..n-1 per row.
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
        ValueError: start is not one index in 0..n per row, or a label lies outside 0..T-1.
    """
    earliest = _checked_start(xt, timesteps, start)
    state = before = widened(xt)
    gap = schedule.num_train_timesteps // (len(timesteps) - 1)
    seen: dict[int, Tensor] = {}
    for i in range(earliest, len(timesteps)):
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
    """The first step at which any row starts."""
    if len(start) != len(xt) or not all(0 <= s < len(timesteps) for s in start):
        wanted = f"one index in 0..{len(timesteps) - 1} for each of {len(xt)} rows"
        raise ValueError(f"got start steps {tuple(start)}; give {wanted}")
    return min(start)


def _where_started(start: Sequence[int], i: int, if_so: Tensor, otherwise: Tensor) -> Tensor:
    """Row by row, `if_so` where the row's start step is at most i, `otherwise` where it still waits."""
    started = [s <= i for s in start]
    return if_so if all(started) else torch.where(per_row(started, if_so, torch.bool), if_so, otherwise)


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

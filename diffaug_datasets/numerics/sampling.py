"""Deterministic samplers over a batch whose rows may start at different steps: DDIM, DPM-Solver++(2M), PLMS.

On a rectified flow the first two are Euler's method and the same solver by log(a / s). The state is carried in float32
(float64 if the latents are) and handed to the network in the latents' dtype. Departs from diffusers there, which rounds
a half-precision state after every step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.levels import (
    CLEAN,
    Level,
    Prediction,
    data_weights,
    of_alpha_bar,
    second_order_weight,
    step_weights,
)
from diffaug_datasets.numerics.schedule import Process, Schedule, per_row, widened

Network = Callable[[Tensor, float, int], Tensor]
"""(xt [b c h w], timestep label t, step index i) -> what the process's `prediction` names, guided [b c h w].

It is always called with the whole batch, waiting rows too: the batch's shape never changes during a run, because the
bits of a network's output depend on it. Prompt switches and guidance per row are up to it.
"""
Final = Literal["zero", "alpha_bar_0"]
"""Where sampling ends: without noise, or at the level of label 0."""

LEAST_SIGNAL = of_alpha_bar(2.0**-24)
LEAST_FOR_SECOND_ORDER = 15  # steps, of a last step that does not end at zero (diffusers' lower_order_final)
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
    return step("epsilon", xt, eps, of_alpha_bar(alpha_bar_t), of_alpha_bar(alpha_bar_prev))


def x0_from_eps(
    xt: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """The data that eps predicts for the state at level alpha_bar_t in (0, 1]. Returns xt's dtype."""
    return predicted_data("epsilon", xt, eps, of_alpha_bar(alpha_bar_t))


def predicted_data(
    kind: Prediction, xt: Float[Tensor, "b c h w"], said: Float[Tensor, "b c h w"], level: Level
) -> Float[Tensor, "b c h w"]:
    """The data x0 that a prediction means for the state at a level. Returns xt's dtype."""
    state, prediction = widened(xt), widened(said)
    if kind == "epsilon" and level.signal > 0:
        return ((state - level.noise * prediction) / level.signal).to(xt.dtype)
    weights = data_weights(kind, level)
    return (weights.state * state + weights.said * prediction).to(xt.dtype)


def step(
    kind: Prediction, xt: Float[Tensor, "b c h w"], said: Float[Tensor, "b c h w"], level: Level, to: Level
) -> Float[Tensor, "b c h w"]:
    """The state at the level `to`, up or down, from the state at `level` and a prediction. Returns xt's dtype.

    Implements the rule of `levels.step_weights`.
    """
    weights = step_weights(kind, level, to)
    return (weights.state * widened(xt) + weights.said * widened(said)).to(xt.dtype)


def dpm_first_order_step(
    xt: Float[Tensor, "b c h w"], x0: Float[Tensor, "b c h w"], level: Level, to: Level
) -> Float[Tensor, "b c h w"]:
    """The state at the level `to` from the state at `level`, which holds noise, while x0 stays what it is.

    Implements the first-order solver of Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095), equal to DDIM:
    x_prev = (sigma_prev / sigma_t) x_t - alpha_prev (exp(-h) - 1) x0, with signal scale alpha, noise scale sigma and h
    the step in log(alpha / sigma). Since exp(-h) is sigma_prev alpha_t / (alpha_prev sigma_t), the last step, where
    sigma_prev is 0 and h infinite, is an ordinary one: it gives x0. Returns xt's dtype.
    """
    shrink = to.noise / level.noise
    return (shrink * widened(xt) + (to.signal - shrink * level.signal) * widened(x0)).to(xt.dtype)


def dpm_second_order_step(
    xt: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    x0_last: Float[Tensor, "b c h w"],
    levels: tuple[Level, Level, Level],
) -> Float[Tensor, "b c h w"]:
    """The state at the third level, from the state and x0 at the second and the x0 of the step before, at the first.

    Implements DPM-Solver++(2M) of Lu et al. 2022 (arXiv 2211.01095), the midpoint rule: the first-order step, taken
    with x0 extrapolated along log(alpha / sigma) to the middle of the step; the first-order step itself where a level
    has no signal or no noise. Follows diffusers' `DPMSolverMultistepScheduler` with solver_order 2. Returns xt's dtype.
    """
    last, now, to = levels
    weight = second_order_weight(last, now, to)
    midpoint = widened(x0) + weight * (widened(x0) - widened(x0_last)) if weight else widened(x0)
    return dpm_first_order_step(xt, midpoint, now, to)


def ddim_sample(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[float],
    start: Sequence[int],
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level, by DDIM (eta = 0) along falling labels, on a flow by Euler's method; row j starts at
    step start[j].

    Row j of xt is the state at label timesteps[start[j]] and is left untouched by the steps before. Step i goes from
    label timesteps[i] to timesteps[i + 1], the last one to `final` (the process's own end if None). Follows diffusers'
    `DDIMScheduler`, which finds the next label as t - T // n; with 'leading' labels the two differ only for more than
    T / 2 steps with set_alpha_to_one; with others where n does not divide T, where diffusers steps to levels beside its
    own labels. With `final` 'zero' it is `EulerDiscreteScheduler` too; on a flow `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 per row.
    """
    first = check_start(xt, timesteps, start)
    levels = falling_levels(process, timesteps, end_of(process, final))
    state = widened(xt)
    for i in range(first, len(timesteps)):
        said = network(state.to(xt.dtype), timesteps[i], i)
        stepped = step(process.prediction, state, said, levels[i], levels[i + 1])
        state = where_started(start, i, stepped, state)
    return state.to(xt.dtype)


def dpm_sample(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[float],
    start: Sequence[int],
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents free of noise, by DPM-Solver++(2M) along falling labels; row j starts at step start[j].

    Follows diffusers' `DPMSolverMultistepScheduler` with algorithm_type 'dpmsolver++', solver_order 2, solver_type
    'midpoint' and final_sigmas_type 'zero'. A row's first step is of first order, for it has no x0 before it; so is the
    last, which ends at sigma 0 (there `lower_order_final` changes nothing, whatever the number of steps). With `final`
    'alpha_bar_0' the last step ends at the level of label 0, as in diffusers 0.19 (today: final_sigmas_type
    'sigma_min'), and is of second order from 15 steps on. A first level without signal is taken as alpha_bar 2^-24, as
    diffusers has it; on a flow, which begins without signal too, the step after it is of first order.

    Raises:
        ValueError: labels do not fall, or start is not one index in 0..n-1 per row.
    """
    first = check_start(xt, timesteps, start)
    levels = falling_levels(process, timesteps, end_of(process, final or "zero"))
    if levels[0].signal == 0 and process.prediction != "flow_prediction":
        levels[0] = LEAST_SIGNAL
    last_of_second_order = len(timesteps) - (1 if len(timesteps) >= LEAST_FOR_SECOND_ORDER else 2)
    state = x0_last = widened(xt)
    for i in range(first, len(timesteps)):
        said = network(state.to(xt.dtype), timesteps[i], i)
        x0 = predicted_data(process.prediction, state, widened(said), levels[i])
        stepped = dpm_first_order_step(state, x0, levels[i], levels[i + 1])
        if first < i <= last_of_second_order and levels[i + 1].noise > 0:
            second = dpm_second_order_step(state, x0, x0_last, (levels[i - 1], levels[i], levels[i + 1]))
            stepped = where_started(start, i - 1, second, stepped)
        state, x0_last = where_started(start, i, stepped, state), x0
    return state.to(xt.dtype)


def plms_sample(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[float],
    start: Sequence[int],
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents at the data's level, by PLMS along the n + 1 labels of `timesteps.plms_labels`; row j starts at start[j].

    Row j of xt is the state at label timesteps[start[j]] and is left untouched by the steps before. A row's second
    evaluation takes its first step again with the mean of both noises; then the noise is extrapolated from up to four.
    Follows diffusers' `PNDMScheduler` with skip_prk_steps as its pipelines drive it, also where these start late: the
    label that the list holds twice is only in its front, so a row that starts behind it is one step noisier than its
    labels say from its third evaluation on.

    Raises:
        ValueError: start is not one index in 0..n per row, a label lies outside 0..T-1, or what the network says is not
            eps, which alone is extrapolated.
    """
    if process.prediction != "epsilon":
        raise ValueError(f"got a network that says {process.prediction}; PLMS extrapolates eps, use ddim or dpm")
    end = end_of(process, final)
    earliest = check_start(xt, timesteps, start)
    state = before = widened(xt)
    gap = process.num_train_timesteps // (len(timesteps) - 1)
    seen: dict[int, Tensor] = {}
    for i in range(earliest, len(timesteps)):
        seen[i] = widened(network(state.to(xt.dtype), timesteps[i], i))
        stepped = state
        for first in {s for s in start if s <= i}:
            again = i == first + 1
            t = timesteps[i] + (gap if again else 0)
            level, to = process.pair(t), process.pair(t - gap) if t >= gap else end
            moved = step("epsilon", before if again else state, _noise(seen, first, i), level, to)
            stepped = torch.where(per_row([s == first for s in start], state, torch.bool), moved, stepped)
        before = torch.where(per_row([s == i for s in start], state, torch.bool), state, before)
        state = stepped
        seen.pop(i - 4, None)
    return state.to(xt.dtype)


def end_of(process: Process, final: Final | None) -> Level:
    """The level that a choice of `final` means; the process's own end if None.

    Raises:
        ValueError: 'alpha_bar_0' of a flow, which has no such level.
    """
    if final is None:
        return process.end
    if final == "zero":
        return CLEAN
    if not isinstance(process, Schedule):
        raise ValueError("got final 'alpha_bar_0' for a flow, which ends without noise; use 'zero'")
    return process.pair(0)


def falling_levels(process: Process, timesteps: Sequence[float], end: Level) -> list[Level]:
    """The level before step 0, 1, ..., n-1 and, last, after step n-1: `end`.

    Raises:
        ValueError: labels do not fall strictly, or one lies outside 0..T-1.
    """
    if any(t <= after for t, after in pairwise(timesteps)):
        raise ValueError(f"got timesteps {tuple(timesteps)}; sampling needs labels that fall")
    return [*map(process.pair, timesteps), end]


def check_start(xt: Tensor, timesteps: Sequence[float], start: Sequence[int]) -> int:
    """The first step at which any row starts."""
    if len(start) != len(xt) or not all(0 <= s < len(timesteps) for s in start):
        wanted = f"one index in 0..{len(timesteps) - 1} for each of {len(xt)} rows"
        raise ValueError(f"got start steps {tuple(start)}; give {wanted}")
    return min(start)


def where_started(start: Sequence[int], i: int, if_so: Tensor, otherwise: Tensor) -> Tensor:
    """Row by row, `if_so` where the row's start step is at most i, `otherwise` where it still waits."""
    started = [s <= i for s in start]
    return if_so if all(started) else torch.where(per_row(started, if_so, torch.bool), if_so, otherwise)


def _noise(seen: dict[int, Tensor], first: int, i: int) -> Float[Tensor, "b c h w"]:
    """What rows that started at `first` use at evaluation i; their second noise counts in its own step alone."""
    if i == first + 1:
        return (seen[i] + seen[first]) / 2
    kept = [k for k in range(i, first - 1, -1) if k != first + 1][:4]
    weights = WEIGHTS[len(kept) - 1]
    return torch.stack([w * seen[k] for w, k in zip(weights, kept, strict=True)]).sum(0)

"""DPM-Solver++(2M): the multistep solver in the predicted x0, one step at a time."""

import math

from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.precision import widened


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

"""DDIM with eta = 0: one deterministic step towards the data, and the same step towards the noise."""

import math

from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.precision import widened


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

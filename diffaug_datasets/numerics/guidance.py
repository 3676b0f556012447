"""From what the network predicts to the eps that a sampler uses: guidance and prediction types."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.schedule import per_row, widened


def guided(
    eps_uncond: Float[Tensor, "b c h w"], eps_cond: Float[Tensor, "b c h w"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance, eps_uncond + w (eps_cond - eps_uncond), each row with its own scale w >= 0.

    Follows diffusers' convention, in which w = 1 means no guidance and w = 0 the unconditional prediction; Eq. 6 of
    Ho & Salimans (arXiv 2207.12598) writes 1 + w for this w. Departs from diffusers' pipelines for w < 1, which they
    take as 1. Returns eps_cond's dtype.

    Raises:
        ValueError: there is not one scale a row.
    """
    uncond, cond = widened(eps_uncond), widened(eps_cond)
    w = per_row(scale, cond)
    # w = 1 gives eps_cond to the bit, so that a caller may leave out the unconditional pass for such rows.
    return torch.where(w == 1, cond, uncond + w * (cond - uncond)).to(eps_cond.dtype)


def eps_from_v(
    v: Float[Tensor, "b c h w"], xt: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """eps of a v-prediction, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, at level alpha_bar_t in [0, 1].

    Implements the v of Salimans & Ho 2022 (arXiv 2202.00512), solved for eps:
    eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t. Returns v's dtype.
    """
    eps = math.sqrt(alpha_bar_t) * widened(v) + math.sqrt(1 - alpha_bar_t) * widened(xt)
    return eps.to(v.dtype)


def eps_from_x0(
    x0: Float[Tensor, "b c h w"], xt: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """eps of a predicted x0 (diffusers' prediction type 'sample') at level alpha_bar_t in [0, 1).

    Implements q(x_t | x_0) solved for eps. Returns x0's dtype.

    Raises:
        ValueError: alpha_bar_t is 1, where x_t holds no noise to recover.
    """
    if alpha_bar_t >= 1:
        raise ValueError(f"got alpha_bar {alpha_bar_t}; eps is undefined without noise, give a level below 1")
    eps = (widened(xt) - math.sqrt(alpha_bar_t) * widened(x0)) / math.sqrt(1 - alpha_bar_t)
    return eps.to(x0.dtype)

"""In which dtype a step computes, and how one number a row meets a batch of latents."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def widened(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in the dtype that steps compute in: float64 stays, everything narrower becomes float32.

    A step is a difference of two nearly equal multiples; in half precision that difference is mostly rounding.
    """
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def per_row(
    values: Sequence[float] | Tensor, like: Float[Tensor, "b ..."], dtype: torch.dtype | None = None
) -> Shaped[Tensor, "b ..."]:
    """One value a row as [b 1 1 ...], to broadcast over `like` [b ...], in its dtype unless one is named.

    Raises:
        ValueError: there are not exactly b values.
    """
    column = torch.as_tensor(values, dtype=dtype or like.dtype, device=like.device)
    if column.shape != like.shape[:1]:
        raise ValueError(f"got values of shape {tuple(column.shape)}; give one for each of {like.shape[0]} rows")
    return column.reshape(-1, *[1] * (like.ndim - 1))

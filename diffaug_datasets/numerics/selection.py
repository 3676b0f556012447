"""GeNIe-Ada (Algorithm 1): the noise level just after the image's class jumps from source to target."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def projections(
    z_levels: Float[Tensor, "m d"], z_source: Float[Tensor, " d"], z_target: Float[Tensor, " d"]
) -> Float64[Tensor, " m"]:
    """Where each level's features lie along the line from source to target features, in the features' own units.

    Implements the distance of Algorithm 1 of GeNIe: d_k = (Z_k - Z_S) . (Z_T - Z_S) / ||Z_T - Z_S||. 0 is the source,
    ||Z_T - Z_S|| the target.

    Raises:
        ValueError: source and target features coincide, or some are not finite.
    """
    source = z_source.double()
    line = z_target.double() - source
    length = float(torch.linalg.vector_norm(line))
    if not 0 < length < math.inf:
        raise ValueError(f"source and target features lie {length} apart; the line between them needs a finite length")
    return (z_levels.double() - source) @ line / length


def largest_jump(d: Float[Tensor, " m"] | Sequence[float]) -> int:
    """The 0-based index k >= 1 of the largest |d_k - d_{k-1}|, the first one on ties; at least two levels.

    Implements the argmax of Algorithm 1 of GeNIe: the level just *after* the jump, so never the smallest level.

    Raises:
        ValueError: there are fewer than two levels, or a distance is not finite.
    """
    values = [float(value) for value in d]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"got distances {values}; a jump needs two or more finite levels")
    return max(range(1, len(values)), key=lambda k: abs(values[k] - values[k - 1]))

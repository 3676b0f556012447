"""Pictures brought to another size on the device that made them, as Pillow does it.

Pillow resizes 8-bit levels along rows, rounds, then along columns, and rounds again, with filters that widen where a
picture shrinks; so does this, in float32: equal but for single levels (at most one, on few pixels).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

FILTERS = ("bilinear", "bicubic")
"""Those that torch has too; others are Pillow's."""


def resized(pixels: Float[Tensor, "h w 3"], size: tuple[int, int], kind: str) -> Float[Tensor, "H W 3"]:
    """Pixels in [0, 1] at (width, height), at 8-bit levels; what is not finite spreads to its neighbours.

    Raises:
        ValueError: a filter that torch has not.
    """
    if kind not in FILTERS:
        raise ValueError(f"got the filter {kind!r}; torch has {' and '.join(FILTERS)}")
    width, height = size
    levels = _rounded(pixels.float() * 255).permute(2, 0, 1)[None]
    for wanted in ((levels.shape[2], width), (height, width)):
        if wanted != levels.shape[2:]:
            levels = _rounded(interpolate(levels, wanted, mode=kind, antialias=True, align_corners=False))
    return levels[0].permute(1, 2, 0) / 255


def _rounded(levels: Tensor) -> Tensor:
    # Pillow rounds halves up, torch to even.
    return torch.floor(levels + 0.5).clamp(0, 255)

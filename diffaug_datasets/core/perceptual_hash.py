"""What a picture looks like in a few bits: re-encoding, resizing and small changes of light leave most of them."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32


def perceptual_hash(image: Image.Image, frequencies: int = 8) -> NDArray[np.bool_]:
    """Bits [frequencies^2]: which low frequencies of the 32 x 32 grey picture lie above their median.

    Implements the DCT hash of Zauner 2010 (Implementation and Benchmarking of Perceptual Image Hash Functions), as the
    pHash library's common re-implementations do: the 8 x 8 lowest coefficients, their median taken without the mean.
    More `frequencies` (up to 32) tell more pictures apart and survive less. A mirrored or cropped picture has another
    hash.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    basis = _cosines(frequencies)
    low = (basis @ grey @ basis.T).ravel()
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


@cache
def _cosines(frequencies: int) -> NDArray[Any]:
    """The first rows of the unnormalised DCT-II over 32 points [frequencies 32]."""
    places = np.arange(SIDE) + 0.5
    return np.cos(np.pi * np.arange(frequencies)[:, None] * places / SIDE)

"""What a picture looks like in 64 bits: re-encoding, resizing and small changes of light leave most of them alone."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
KEPT = 8
BITS = KEPT * KEPT


def perceptual_hash(image: Image.Image) -> NDArray[np.bool_]:
    """64 bits [64]: which low frequencies of the 32 x 32 grey picture lie above their median.

    Implements the DCT hash of Zauner 2010 (Implementation and Benchmarking of Perceptual Image Hash Functions), as the
    pHash library's common re-implementations do: the 8 x 8 lowest coefficients, their median taken without the mean.
    A mirrored or cropped picture has another hash.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    basis = _cosines()
    low = (basis @ grey @ basis.T).ravel()
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


@cache
def _cosines() -> NDArray[Any]:
    """The first 8 rows of the unnormalised DCT-II over 32 points."""
    places = np.arange(SIDE) + 0.5
    return np.cos(np.pi * np.arange(KEPT)[:, None] * places / SIDE)

"""Properties measured from pixels: the ground truth behind the context suffixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOREGROUND = 0.12
"""Intensity above which a pixel counts as garment: decoded backgrounds are close to 0, never exactly 0."""

DEFINITIONS = {
    "brightness": "mean intensity of the foreground pixels (grey value above 0.12 on a 0..1 scale)",
    "width": "number of foreground pixels divided by the number of rows with two or more of them, in pixels",
    "contrast": "standard deviation of the intensity of the foreground pixels",
}


@dataclass(frozen=True)
class Suffix:
    """A context phrase that is true of the pictures in the top ("up") or bottom ("down") of a property."""

    text: str
    property: str
    direction: str


SUFFIXES = (
    Suffix("in bright tones.", "brightness", "up"),
    Suffix("in dark tones.", "brightness", "down"),
    Suffix("with a wide cut.", "width", "up"),
    Suffix("with a narrow cut.", "width", "down"),
    Suffix("with strong contrast.", "contrast", "up"),
    Suffix("with an even surface.", "contrast", "down"),
)


def foreground(grey: np.ndarray) -> np.ndarray:
    """Boolean mask of the garment; grey is [N, H, W] in 0..1."""
    return grey > FOREGROUND


def brightness(grey: np.ndarray) -> np.ndarray:
    """Mean foreground intensity per picture, [N] in 0..1."""
    mask = foreground(grey)
    return (grey * mask).sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1)


def width(grey: np.ndarray) -> np.ndarray:
    """Mean length of a garment row per picture, [N] in pixels."""
    mask = foreground(grey)
    rows = (mask.sum(2) >= 2).sum(1)
    return mask.sum((1, 2)) / np.maximum(rows, 1)


def contrast(grey: np.ndarray) -> np.ndarray:
    """Standard deviation of the foreground intensity per picture, [N] in 0..0.5."""
    mask = foreground(grey)
    spread = (grey - brightness(grey)[:, None, None]) ** 2 * mask
    return np.sqrt(spread.sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1))


MEASURES = {"brightness": brightness, "width": width, "contrast": contrast}


def measure(grey: np.ndarray) -> np.ndarray:
    """All properties of [N, H, W] pictures in 0..1, as [N, 3] in the order of MEASURES."""
    return np.stack([MEASURES[name](grey) for name in MEASURES], axis=1).astype(np.float32)


def states(values: np.ndarray, labels: np.ndarray, share: float = 0.3) -> np.ndarray:
    """-1, 0 or +1 per picture and property: in the bottom, the middle or the top `share` of its own class."""
    result = np.zeros(values.shape, np.int64)
    for label in np.unique(labels):
        rows = labels == label
        low, high = np.quantile(values[rows], (share, 1 - share), axis=0)
        result[rows] = (values[rows] >= high).astype(np.int64) - (values[rows] <= low)
    return result

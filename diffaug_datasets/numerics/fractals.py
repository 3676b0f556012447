"""Fractal pictures of random iterated function systems, the same on every machine: nothing is downloaded or shipped.

1. N maps x -> A x + b, A = R(theta) diag(s1, s2) R(phi) diag(+-1, +-1), b uniform in [-1, 1]^2       `sampled_system`
2. singular values whose sum of s1 + 2 s2 lies in [(5 + N) / 2, (6 + N) / 2]: neither dust nor blob  `_singular_values`
3. the chaos game, map i with a probability in proportion to |det A_i|                                       `rendered`
4. colour: the running mean of the visited maps' colours, over the logarithm of how often a pixel was met

Steps 1 to 3 follow Anderson & Farrell, "Improving fractal pre-training" (WACV 2022, arXiv 2110.03091), step 4 the flame
algorithm of Draves. Draws are raw bits of PCG64, a stream that numpy keeps across its releases; parameters are rounded,
so that libraries of mathematics that differ in a last bit give the same systems.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAPS = (2, 8)
CHAINS, SETTLING = 2048, 20
POINTS = 4  # per pixel
LEAST_SHARE = 0.01  # of a map in the chaos game, however small its determinant
DIGITS = 9  # that parameters keep


@dataclass(frozen=True)
class System:
    """An iterated function system of N maps, with a colour each and one behind them, in [0, 1]."""

    matrices: NDArray[np.float64]  # [N 2 2]
    offsets: NDArray[np.float64]  # [N 2]
    colours: NDArray[np.float64]  # [N 3]
    ground: NDArray[np.float64]  # [3]


class Bits:
    """Uniform numbers in [0, 1) out of PCG64's raw bits."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.many(1)[0])

    def many(self, count: int) -> NDArray[np.float64]:
        raw = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        uniform: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return uniform


def fractal(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """The picture [height width 3] of a seed in [0, 2^63)."""
    bits = Bits(seed)
    return rendered(sampled_system(bits), bits, height, width)


def sampled_system(bits: Bits) -> System:
    """Steps 1 and 2."""
    low, high = MAPS
    count = low + int(bits.uniform() * (high - low + 1))
    scales = _singular_values(bits, count)
    matrices = [_matrix(bits, *pair) for pair in scales]
    offsets = [[bits.uniform(-1, 1), bits.uniform(-1, 1)] for _ in range(count)]
    colours = [colorsys.hsv_to_rgb(bits.uniform(), bits.uniform(0.4, 1), bits.uniform(0.6, 1)) for _ in range(count)]
    ground = colorsys.hsv_to_rgb(bits.uniform(), bits.uniform(0, 0.6), bits.uniform(0.1, 0.7))
    made = (np.round(np.array(part), DIGITS) for part in (matrices, offsets, colours, ground))
    return System(*made)


def _singular_values(bits: Bits, count: int) -> list[tuple[float, float]]:
    """s1 >= s2 in [0, 1] of every map; all s1 + 2 s2 together are drawn first and then shared out."""
    left = bits.uniform((5 + count) / 2, (6 + count) / 2)
    pairs: list[tuple[float, float]] = []
    for others in range(count - 1, 0, -1):
        least = left - 3 * others  # the others can take 3 each
        s1 = bits.uniform(max(0.0, least / 3), min(1.0, left))
        s2 = bits.uniform(max(0.0, (least - s1) / 2), min(s1, (left - s1) / 2))
        pairs.append((s1, s2))
        left -= s1 + 2 * s2
    s2 = bits.uniform(max(0.0, (left - 1) / 2), left / 3)
    return [*pairs, (left - 2 * s2, s2)]


def _matrix(bits: Bits, s1: float, s2: float) -> NDArray[np.float64]:
    turns = [bits.uniform(-math.pi, math.pi) for _ in range(2)]
    signs = [1.0 if bits.uniform() < 0.5 else -1.0 for _ in range(2)]
    first, second = (np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]]) for t in turns)
    matrix: NDArray[np.float64] = first @ np.diag([s1, s2]) @ second @ np.diag(signs)
    return matrix


def rendered(system: System, bits: Bits, height: int, width: int) -> NDArray[np.uint8]:
    """Steps 3 and 4; the attractor fills the picture."""
    points, colours = _visited(system, bits, max(SETTLING, -(-POINTS * height * width // CHAINS)))
    low, high = points.min(0), points.max(0)
    places = ((points - low) / np.maximum(high - low, 1e-9) * [height - 1, width - 1]).round().astype(np.int64)
    cells = places[:, 0] * width + places[:, 1]
    met = np.bincount(cells, minlength=height * width).astype(np.float64)
    sums = [np.bincount(cells, weights=colours[:, c], minlength=height * width) for c in range(3)]
    mean = np.stack(sums, axis=1) / np.maximum(met, 1)[:, None]
    strength = (np.log1p(met) / math.log1p(max(float(np.quantile(met[met > 0], 0.9)), 1.0))).clip(0, 1)[:, None]
    picture = strength * mean + (1 - strength) * system.ground
    return (picture.reshape(height, width, 3) * 255).round().clip(0, 255).astype(np.uint8)


def _visited(system: System, bits: Bits, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [n 2] and their colours [n 3] of many chains, so many steps after they have settled."""
    matrices = system.matrices
    areas = np.abs(matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0])
    shares = np.maximum(areas, LEAST_SHARE * areas.max() + 1e-12)
    limits = np.cumsum(shares / shares.sum())[:-1]
    at, colour = np.zeros((CHAINS, 2)), np.full((CHAINS, 3), 0.5)
    points: list[NDArray[np.float64]] = []
    colours: list[NDArray[np.float64]] = []
    for step in range(SETTLING + steps):
        chosen = np.searchsorted(limits, bits.many(CHAINS), side="right")
        a, b = matrices[chosen], system.offsets[chosen]
        at = np.stack([a[:, i, 0] * at[:, 0] + a[:, i, 1] * at[:, 1] + b[:, i] for i in range(2)], axis=1)
        colour = (colour + system.colours[chosen]) / 2
        if step >= SETTLING:
            points.append(at)
            colours.append(colour)
    return np.concatenate(points), np.concatenate(colours)

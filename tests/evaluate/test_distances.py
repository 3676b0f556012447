"""Blocks of distances are scipy's, also between near copies; measures are the same in blocks, and memory is bounded."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffaug_datasets.evaluate import metrics
from diffaug_datasets.evaluate.distances import BLOCK_BYTES, distance_blocks, reach, row_blocks

TINY = 8 * 7  # bytes: less than a row of most tables here


def unit(n: int, d: int, seed: int) -> np.ndarray:
    """Features as encoders make them: of length 1, and all of them about the same way."""
    x = np.random.default_rng(seed).normal(size=(n, d)) * 0.2 + 1
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def whole(a: np.ndarray, b: np.ndarray, most_bytes: int) -> np.ndarray:
    return np.concatenate([block.copy() for _, block in distance_blocks(a, b, most_bytes)])


@pytest.mark.parametrize("most_bytes", [TINY, 8 * 40 * 3, BLOCK_BYTES])
def test_distances_are_scipys_down_to_those_of_near_copies(most_bytes: int) -> None:
    a, b = unit(30, 12, 0), unit(40, 12, 1)
    b[0], b[1], b[2:6] = a[3], a[4] + 1e-9, a[5]
    found = whole(a, b, most_bytes)
    np.testing.assert_allclose(found, cdist(a, b), rtol=1e-8, atol=0)
    assert found[3, 0] == 0 and found[5, 2] == 0
    assert found[4, 1] == pytest.approx(np.sqrt(12) * 1e-9, rel=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_reach_is_the_distance_to_the_kth_other(k: int) -> None:
    x = unit(33, 6, 2)
    np.testing.assert_allclose(reach(x, k, TINY), np.sort(cdist(x, x), axis=1)[:, k], rtol=1e-9)
    twice = np.concatenate([x, x])
    assert not reach(twice, 1).any()


def test_all_rows_are_in_one_block_each() -> None:
    for rows, columns, most in ((10, 3, 1), (10, 3, 24 * 4), (0, 3, 24), (5, 0, 8)):
        parts = list(row_blocks(rows, columns, most))
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
        assert all(part.stop - part.start <= max(1, most // (8 * max(1, columns))) for part in parts)


MEASURES: tuple[Callable[..., tuple[float, ...]], ...] = (metrics.manifold, metrics.copies, metrics.kernel_distance)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_is_the_same_in_the_smallest_blocks(measure: Callable[..., tuple[float, ...]]) -> None:
    real, synthetic = unit(50, 8, 3), unit(37, 8, 4)
    synthetic[:4] = real[:4] + 1e-7
    small = measure(real, synthetic, most_bytes=TINY)
    assert small == pytest.approx(measure(real, synthetic), rel=1e-12, abs=1e-15)
    assert small != pytest.approx(measure(real, unit(37, 8, 5)), rel=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_no_table_of_all_pairs_is_in_memory(measure: Callable[..., tuple[float, ...]]) -> None:
    """2,500 x 2,500 distances are 50 MB; in blocks of 1 MB a few of these are there at once."""
    real, synthetic = unit(2500, 4, 6), unit(2500, 4, 7)
    tracemalloc.start()
    try:
        measure(real, synthetic, most_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


def test_frechet_distance_needs_no_table_of_pairs() -> None:
    a, b = unit(3000, 5, 8), unit(3000, 5, 9)
    tracemalloc.start()
    try:
        metrics.frechet_distance(a, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20

"""Distances between all pairs of two sets of features, a block of rows at a time, so that memory is bounded in bytes.

A table of 50,000 x 50,000 distances would take 20 GB. Blocks are squared lengths less a matrix product, as fast as
the processor multiplies; where two rows are so near that this loses digits, their difference is taken itself.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]

BLOCK_BYTES = 128 << 20  # of one block of distances, float64; a few arrays of that size are there at once
NEAR = 1e-6  # of the largest squared lengths: below it a difference of squares has lost half of its digits


def row_blocks(rows: int, columns: int, most_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of `rows` rows, each as many as a float64 table with so many columns may have, at least one."""
    step = max(1, most_bytes // (8 * max(1, columns)))
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


def distance_blocks(a: Features, b: Features, most_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, Features]]:
    """Euclidean distances of all rows of `a` [n d] to all rows of `b` [m d]: (rows, [rows m]) from the top down."""
    centre = b.mean(0)  # distances stay what they are, and squared lengths become small
    a, b = a - centre, b - centre
    of_a, of_b = (np.einsum("nd,nd->n", x, x) for x in (a, b))
    limit = NEAR * (of_a.max(initial=0.0) + of_b.max(initial=0.0))
    for rows in row_blocks(len(a), len(b), most_bytes):
        block = a[rows] @ b.T
        block *= -2
        block += of_a[rows, None]
        block += of_b[None, :]
        _exact_where_near(block, a[rows], b, limit, most_bytes)
        np.sqrt(block, out=block)
        yield rows, block


def reach(x: Features, k: int, most_bytes: int = BLOCK_BYTES) -> Features:
    """Distance [n] of every row to its k-th nearest other row; k is below n."""
    far = np.empty(len(x))
    for rows, apart in distance_blocks(x, x, most_bytes):
        apart[np.arange(len(apart)), np.arange(rows.start, rows.stop)] = np.inf
        apart.partition(k - 1, axis=1)
        far[rows] = apart[:, k - 1]
    return far


def _exact_where_near(block: Features, a: Features, b: Features, limit: float, most_bytes: int) -> None:
    """Put the squared differences themselves where a squared distance is not above the limit."""
    near = np.flatnonzero(block.ravel() <= limit)
    for part in row_blocks(len(near), a.shape[1], most_bytes):
        places = near[part]
        differences = a[places // len(b)] - b[places % len(b)]
        block.ravel()[places] = np.einsum("nd,nd->n", differences, differences)

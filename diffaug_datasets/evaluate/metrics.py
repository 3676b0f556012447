"""Distances between two sets of images, and what is in one set, all from features: numpy and scipy, no torch.

Features are float arrays [n d], one row per image. A distance between sets means nothing without its floor: what two
random parts of the real images are apart at the same n (`compared`). No table of all pairs is ever in memory whole, so
50,000 images beside 50,000 are no matter of memory. Small sets make some numbers worthless;
`withheld` says which and why, and callers print that sentence where the number would stand.

Sources: Frechet distance, Heusel et al. (arXiv 1706.08500); kernel distance, Binkowski et al. (arXiv 1801.01401);
precision and recall, Kynkaanniemi et al. (arXiv 1904.06991); density and coverage, Naeem et al. (arXiv 2002.09797);
Vendi score, Friedman and Dieng (arXiv 2210.02410); authenticity, Alaa et al. (arXiv 2102.08921).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from diffaug_datasets.evaluate.distances import BLOCK_BYTES, Features, distance_blocks, reach, row_blocks
from diffaug_datasets.release.measures import Interval as Interval

Distance = Callable[[Features, Features], float]
Distances = Callable[[Features, Features], Sequence[float]]

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as their authors advise
FLOOR_REPEATS = 10


class Manifold(NamedTuple):
    """Shares in [0, 1], but for density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


class Copies(NamedTuple):
    """How near synthetic images lie to real ones, against how near real ones lie to each other.

    `authenticity`: share of synthetic images that are farther from their nearest real image than that one is from its
    own nearest. `ratio`: median of the two distances' quotient; far below 1 is memorisation.
    """

    authenticity: float
    ratio: float


def withheld(name: str, n: int, d: int) -> str:
    """Why a measure of n images with d features says nothing, as a sentence; empty where it does.

    The Frechet distance needs a covariance of d features, so at least 2 d images; measures of neighbours need more
    images than `NEIGHBOURS`, the two-sample classifier ten; every other one needs two.
    """
    if name == "frechet" and n < 2 * d:
        return f"{n} images, {2 * d} are needed for a covariance of {d} features"
    least = {**dict.fromkeys(Manifold._fields, NEIGHBOURS + 1), "two_sample_accuracy": 10}.get(name, 2)
    return f"{n} images, {least} are needed" if n < least else ""


def frechet_distance(a: Features, b: Features) -> float:
    """|m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2) of two sets [n d] and [m d]; 0 = the same.

    The last trace is the nuclear norm of A B^T, A and B centred and divided by sqrt(n - 1): no matrix root is taken,
    so a singular covariance does no harm.

    Raises:
        ValueError: a set has fewer than two rows, widths differ, or features are not finite.
    """
    _check(a, b)
    halves = [_half(x) for x in (a, b)]
    traces = sum(float((half**2).sum()) for half in halves)
    common = float(np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum())
    return float(((a.mean(0) - b.mean(0)) ** 2).sum()) + traces - 2 * common


def _half(x: Features) -> Features:
    """A matrix of at most d rows whose product with itself is the covariance of x: its singular values stay."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    half: Features = np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred
    return half


def kernel_distance(a: Features, b: Features, most_bytes: int = BLOCK_BYTES) -> Interval:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, and its jackknife interval.

    0 = the same distribution; the estimate itself may be below 0.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(a, b)
    n, m = len(a), len(b)
    rows_a, rows_b = (_kernel_sums(x, x, most_bytes)[0] - _kernel_diagonal(x) for x in (a, b))
    across_a, across_b = _kernel_sums(a, b, most_bytes)
    total_a, total_b, total = rows_a.sum(), rows_b.sum(), across_a.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * total / (n * m)
    variance = 0.0
    if n > 2:
        without = (total_a - 2 * rows_a) / ((n - 1) * (n - 2)) + total_b / (m * (m - 1))
        without -= 2 * (total - across_a) / ((n - 1) * m)
        variance += (n - 1) / n * float(((without - without.mean()) ** 2).sum())
    if m > 2:
        without = total_a / (n * (n - 1)) + (total_b - 2 * rows_b) / ((m - 1) * (m - 2))
        without -= 2 * (total - across_b) / (n * (m - 1))
        variance += (m - 1) / m * float(((without - without.mean()) ** 2).sum())
    reach = float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    return Interval(float(value), float(value) - reach, float(value) + reach)


def _kernel_sums(a: Features, b: Features, most_bytes: int) -> tuple[Features, Features]:
    """Sums of the kernel's table over its rows [n] and over its columns [m]."""
    rows, columns = np.empty(len(a)), np.zeros(len(b))
    for part in row_blocks(len(a), len(b), most_bytes):
        block = a[part] @ b.T
        block /= a.shape[1]
        block += 1
        block *= block * block
        rows[part] = block.sum(1)
        columns += block.sum(0)
    return rows, columns


def _kernel_diagonal(x: Features) -> Features:
    diagonal: Features = (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1) ** 3
    return diagonal


def manifold(real: Features, synthetic: Features, k: int = NEIGHBOURS, most_bytes: int = BLOCK_BYTES) -> Manifold:
    """Precision, recall, density and coverage with balls that reach to each image's k-th neighbour in its own set.

    Raises:
        ValueError: a set has k or fewer rows; else as `frechet_distance`.
    """
    _check(real, synthetic)
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(f"got {len(real)} real and {len(synthetic)} synthetic images, expected more than {k} of each")
    of_real, of_synthetic = reach(real, k, most_bytes), reach(synthetic, k, most_bytes)
    balls = np.zeros(len(synthetic), dtype=np.int64)  # of real images that each synthetic one lies in
    recalled = covered = 0
    for rows, apart in distance_blocks(real, synthetic, most_bytes):
        balls += (apart < of_real[rows, None]).sum(0)
        recalled += int((apart < of_synthetic[None, :]).any(1).sum())
        covered += int((apart.min(1) < of_real[rows]).sum())
    return Manifold(
        precision=float((balls > 0).mean()),
        recall=recalled / len(real),
        density=float(balls.mean() / k),
        coverage=covered / len(real),
    )


def vendi_score(features: Features) -> float:
    """The effective number of different images: 1 (all alike) to n (all at right angles), by cosine similarity.

    Raises:
        ValueError: there is no row, or features are not finite or zero.
    """
    unit = _unit(features)
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    shares = np.linalg.eigvalsh(gram / len(unit))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_pairwise_distance(features: Features) -> float:
    """Mean over all pairs of 1 - cosine, in [0, 2].

    Raises:
        ValueError: there are fewer than two rows, or features are not finite or zero.
    """
    unit = _unit(features)
    n = len(unit)
    if n < 2:
        raise ValueError(f"got {n} images, expected two or more")
    return float(1 - ((unit.sum(0) ** 2).sum() - n) / (n * (n - 1)))


def copies(real: Features, synthetic: Features, most_bytes: int = BLOCK_BYTES) -> Copies:
    """Authenticity and memorisation of synthetic images against the real images that they were made from.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(real, synthetic)
    to_real, nearest = np.empty(len(synthetic)), np.empty(len(synthetic), dtype=np.int64)
    for rows, apart in distance_blocks(synthetic, real, most_bytes):
        to_real[rows], nearest[rows] = apart.min(1), apart.argmin(1)
    own = reach(real, 1, most_bytes)[nearest]
    return Copies(float((to_real > own).mean()), float(np.median(to_real / np.maximum(own, np.finfo(float).tiny))))


def two_sample_accuracy(a: Features, b: Features, seed: int = 0) -> Interval:
    """How often a linear classifier tells which set an unseen image is of, over 5 folds: .5 = it cannot, 1 = always.

    Each fold has as many images of either set. The interval is Wilson's.

    Raises:
        ValueError: a set has fewer than ten rows; else as `frechet_distance`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(a, b)
    size = min(len(a), len(b))
    if size < 10:
        raise ValueError(f"got {len(a)} and {len(b)} images, expected ten or more of each")
    rng = np.random.default_rng(seed)
    parts = [x[rng.permutation(len(x))[:size]] for x in (a, b)]
    labels = np.repeat([0, 1], size)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(model, np.concatenate(parts), labels, cv=folds)
    return share(int((predicted == labels).sum()), len(labels))


def share(hits: int, n: int) -> Interval:
    """hits / n and Wilson's interval.

    Raises:
        ValueError: n is below 1 or hits lies outside [0, n].
    """
    ends = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Interval(hits / n, float(ends.low), float(ends.high))


class Compared(NamedTuple):
    """A distance and its floor, both between sets of `size` images: means over random parts, and their ranges."""

    distance: Interval
    floor: Interval
    size: int


def compared(
    distance: Distance, synthetic: Features, real: Features, seed: int = 0, repeats: int = FLOOR_REPEATS
) -> Compared:
    """The distance of synthetic images to real ones beside that of real ones to real ones, at the same n.

    Each time the real images are split into two random parts of n; one is compared with n synthetic images and with the
    other part. n is as large as there are synthetic images and half as many real ones.

    Raises:
        ValueError: there are fewer than two synthetic or four real images.
    """
    return compared_each(lambda a, b: (distance(a, b),), synthetic, real, seed, repeats)[0]


def compared_each(
    distances: Distances, synthetic: Features, real: Features, seed: int = 0, repeats: int = FLOOR_REPEATS
) -> tuple[Compared, ...]:
    """The same of several distances that come out of one pass over the images, such as those of `manifold`.

    Raises:
        ValueError: as `compared`.
    """
    size = min(len(synthetic), len(real) // 2)
    if size < 2:
        raise ValueError(f"got {len(synthetic)} synthetic and {len(real)} real images, expected two and four or more")
    rng = np.random.default_rng(seed)
    to_real, floor = [], []
    for _ in range(repeats):
        order, chosen = rng.permutation(len(real)), rng.permutation(len(synthetic))[:size]
        part, other = real[order[:size]], real[order[size : 2 * size]]
        to_real.append(distances(part, synthetic[chosen]))
        floor.append(distances(part, other))
    pairs = zip(zip(*to_real, strict=True), zip(*floor, strict=True), strict=True)
    return tuple(Compared(_ranged(near), _ranged(apart), size) for near, apart in pairs)


def floor_of(distance: Distance, real: Features, size: int, seed: int = 0, repeats: int = FLOOR_REPEATS) -> Interval:
    """The floor alone: between two random parts of `size` real images.

    Raises:
        ValueError: there are fewer than twice as many real images, or `size` is below two.
    """
    if size < 2 or len(real) < 2 * size:
        raise ValueError(f"got {len(real)} real images, expected {2 * max(2, size)} or more")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(real)) for _ in range(repeats)]
    return _ranged([distance(real[order[:size]], real[order[size : 2 * size]]) for order in orders])


def at_size(value: Callable[[Features], float], real: Features, n: int, seed: int = 0) -> Interval:
    """A number of n random real images: mean, lowest and highest of ten draws; the floor of what is no distance.

    Raises:
        ValueError: there are fewer than n.
    """
    if len(real) < n:
        raise ValueError(f"got {len(real)} real images, expected {n} or more")
    rng = np.random.default_rng(seed)
    return _ranged([value(real[rng.permutation(len(real))[:n]]) for _ in range(FLOOR_REPEATS)])


def _ranged(values: Sequence[float]) -> Interval:
    return Interval(float(np.mean(values)), float(min(values)), float(max(values)))


def _unit(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not len(features) or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ValueError(f"got features of shape {features.shape} that are missing, not finite or zero")
    unit: Features = features / lengths
    return unit


def _check(a: Features, b: Features) -> None:
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"got features of shapes {a.shape} and {b.shape}, expected two or more rows of one width")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("got features that are not finite")

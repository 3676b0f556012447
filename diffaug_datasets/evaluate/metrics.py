"""Distances between two sets of images, and what is in one set, all from features: numpy and scipy, no torch.

Features are float arrays [n d], one row per image. A distance between sets means nothing without its floor: what two
random parts of the real images are apart at the same n (`compared`). Small sets make some numbers worthless;
`withheld` says which and why, and callers print that sentence where the number would stand.

Sources: Frechet distance, Heusel et al. (arXiv 1706.08500); kernel distance, Binkowski et al. (arXiv 1801.01401);
precision and recall, Kynkaanniemi et al. (arXiv 1904.06991); density and coverage, Naeem et al. (arXiv 2002.09797);
Vendi score, Friedman and Dieng (arXiv 2210.02410); authenticity, Alaa et al. (arXiv 2102.08921).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

Features = NDArray[np.float64]
Distance = Callable[[Features, Features], float]

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as their authors advise
FLOOR_REPEATS = 10


class Interval(NamedTuple):
    """A number and the ends of its 95 % confidence interval, or of what it ranged over in several draws."""

    value: float
    low: float
    high: float


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
    means, halves = zip(*((x.mean(0), (x - x.mean(0)) / math.sqrt(len(x) - 1)) for x in (a, b)), strict=True)
    traces = sum(float((half**2).sum()) for half in halves)
    common = float(np.linalg.svd(halves[0] @ halves[1].T, compute_uv=False).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * common


def kernel_distance(a: Features, b: Features) -> Interval:
    """The unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, and its jackknife interval.

    0 = the same distribution; the estimate itself may be below 0.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(a, b)
    n, m, d = len(a), len(b), a.shape[1]
    of_a, of_b, across = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    rows_a, rows_b = of_a.sum(1) - np.diag(of_a), of_b.sum(1) - np.diag(of_b)
    total_a, total_b, total = rows_a.sum(), rows_b.sum(), across.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * total / (n * m)
    variance = 0.0
    if n > 2:
        without = (total_a - 2 * rows_a) / ((n - 1) * (n - 2)) + total_b / (m * (m - 1))
        without -= 2 * (total - across.sum(1)) / ((n - 1) * m)
        variance += (n - 1) / n * float(((without - without.mean()) ** 2).sum())
    if m > 2:
        without = total_a / (n * (n - 1)) + (total_b - 2 * rows_b) / ((m - 1) * (m - 2))
        without -= 2 * (total - across.sum(0)) / (n * (m - 1))
        variance += (m - 1) / m * float(((without - without.mean()) ** 2).sum())
    reach = float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    return Interval(float(value), float(value) - reach, float(value) + reach)


def manifold(real: Features, synthetic: Features, k: int = NEIGHBOURS) -> Manifold:
    """Precision, recall, density and coverage with balls that reach to each image's k-th neighbour in its own set.

    Raises:
        ValueError: a set has k or fewer rows; else as `frechet_distance`.
    """
    _check(real, synthetic)
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(f"got {len(real)} real and {len(synthetic)} synthetic images, expected more than {k} of each")
    apart = cdist(real, synthetic)
    of_real, of_synthetic = _reach(real, k), _reach(synthetic, k)
    inside = apart < of_real[:, None]
    return Manifold(
        precision=float(inside.any(0).mean()),
        recall=float((apart < of_synthetic[None, :]).any(1).mean()),
        density=float(inside.sum(0).mean() / k),
        coverage=float((apart.min(1) < of_real).mean()),
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


def copies(real: Features, synthetic: Features) -> Copies:
    """Authenticity and memorisation of synthetic images against the real images that they were made from.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(real, synthetic)
    apart = cdist(synthetic, real)
    nearest = apart.argmin(1)
    to_real, own = apart.min(1), _reach(real, 1)[nearest]
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
    size = min(len(synthetic), len(real) // 2)
    if size < 2:
        raise ValueError(f"got {len(synthetic)} synthetic and {len(real)} real images, expected two and four or more")
    rng = np.random.default_rng(seed)
    to_real, floor = [], []
    for _ in range(repeats):
        order, chosen = rng.permutation(len(real)), rng.permutation(len(synthetic))[:size]
        part, other = real[order[:size]], real[order[size : 2 * size]]
        to_real.append(distance(part, synthetic[chosen]))
        floor.append(distance(part, other))
    return Compared(_ranged(to_real), _ranged(floor), size)


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


def _reach(x: Features, k: int) -> Features:
    """Distance of every row to its k-th nearest other row."""
    apart = cdist(x, x)
    np.fill_diagonal(apart, np.inf)
    reach: Features = np.partition(apart, k - 1, axis=1)[:, k - 1]
    return reach


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

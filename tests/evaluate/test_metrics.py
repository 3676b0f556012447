"""Every measure against its authors' library, scipy or scikit-learn, and at values that are known."""

import numpy as np
import prdc
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist
from scipy.stats import binomtest
from sklearn.metrics.pairwise import polynomial_kernel
from vendi_score import vendi

from diffaug_datasets.evaluate import metrics


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.3 + rng.normal(size=d) + shift


@pytest.mark.parametrize(("n", "m", "d"), [(60, 90, 8), (12, 40, 20)])
def test_frechet_distance_is_scipys(n: int, m: int, d: int) -> None:
    a, b = features(n, d, 0), features(m, d, 1, 0.5)
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    tolerance = 1e-8 if n > d else 1e-4  # sqrtm itself loses digits where a covariance is singular
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=tolerance)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_scikit_learns_and_its_interval_is_the_jackknifes() -> None:
    a, b = features(30, 6, 0), features(20, 6, 1, 0.3)

    def unbiased(x: np.ndarray, y: np.ndarray) -> float:
        of_x, of_y, across = (polynomial_kernel(*pair, degree=3) for pair in ((x, x), (y, y), (x, y)))
        parts = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (of_x, of_y)]
        return float(sum(parts) - 2 * across.mean())

    without = [
        [unbiased(np.delete(a, i, 0), b) for i in range(30)],
        [unbiased(a, np.delete(b, i, 0)) for i in range(20)],
    ]
    variance = sum((len(part) - 1) * np.var(part) for part in without)
    found = metrics.kernel_distance(a, b)
    assert found.value == pytest.approx(unbiased(a, b), rel=1e-10)
    assert (found.high - found.low) / 2 == pytest.approx(1.959963985 * variance**0.5, rel=1e-8)


def test_kernel_distance_of_one_distribution_has_zero_in_its_interval() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(100):
        found = metrics.kernel_distance(rng.normal(size=(40, 10)), rng.normal(size=(40, 10)))
        hits += found.low <= 0 <= found.high
    assert hits >= 90
    far = metrics.kernel_distance(rng.normal(size=(40, 10)), rng.normal(size=(40, 10)) + 1)
    assert far.low > 0


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_and_coverage_are_the_authors(k: int, capsys: pytest.CaptureFixture[str]) -> None:
    real, synthetic = features(50, 5, 0), features(40, 5, 1)
    expected = prdc.compute_prdc(real, synthetic, nearest_k=k)
    assert metrics.manifold(real, synthetic, k)._asdict() == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_are_not_symmetric() -> None:
    real = np.random.default_rng(0).normal(size=(60, 3))
    found = metrics.manifold(real, real[:20] + 1e-3)
    assert found.precision == 1
    assert metrics.manifold(real, real + 100) == (0, 0, 0, 0)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (6, 30)])
def test_vendi_score_is_the_authors(n: int, d: int) -> None:
    x = features(n, d, 2)
    assert metrics.vendi_score(x) == pytest.approx(vendi.score_dual(x, normalize=True), rel=1e-9)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert metrics.vendi_score(x) == pytest.approx(vendi.score_K(unit @ unit.T), rel=1e-6)


def test_vendi_score_counts_different_images() -> None:
    assert metrics.vendi_score(np.eye(7)) == pytest.approx(7)
    assert metrics.vendi_score(np.repeat(np.eye(3), 5, axis=0)) == pytest.approx(3)
    assert metrics.vendi_score(np.ones((4, 9))) == pytest.approx(1)


def test_mean_pairwise_distance_is_scipys() -> None:
    x = features(25, 4, 3)
    assert metrics.mean_pairwise_distance(x) == pytest.approx(pdist(x, "cosine").mean(), rel=1e-10)


def test_a_copy_is_no_authentic_image() -> None:
    real = np.random.default_rng(0).normal(size=(50, 8))
    assert metrics.copies(real, real[:10] + 1e-6).authenticity == 0
    assert metrics.copies(real, real[:10] + 1e-6).ratio < 1e-4
    assert metrics.copies(real, real[:10] + 50) == (1.0, pytest.approx(metrics.copies(real, real[:10] + 50).ratio))
    assert metrics.copies(real, real[:10] + 50).ratio > 5


def test_two_sets_of_one_distribution_are_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    same = metrics.two_sample_accuracy(rng.normal(size=(150, 5)), rng.normal(size=(90, 5)))
    assert same.low <= 0.5 <= same.high
    assert metrics.two_sample_accuracy(rng.normal(size=(50, 5)), rng.normal(size=(50, 5)) + 3).value > 0.95


def test_a_share_has_wilsons_interval() -> None:
    ends = binomtest(7, 20).proportion_ci(method="wilson")
    assert metrics.share(7, 20) == pytest.approx((0.35, ends.low, ends.high))
    z, n, p = 1.959963984540054, 20, 0.35
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert (ends.low + ends.high) / 2 == pytest.approx(centre)


def test_the_floor_falls_with_n_and_never_shares_an_image() -> None:
    real = np.random.default_rng(0).normal(size=(400, 6))
    small, large = (metrics.compared(metrics.frechet_distance, real[:n] + 1, real).floor for n in (20, 200))
    assert small.value > 3 * large.value > 0
    assert small.low <= small.value <= small.high
    shared: list[int] = []

    def count(a: np.ndarray, b: np.ndarray) -> float:
        shared.append(len({row.tobytes() for row in a} & {row.tobytes() for row in b}))
        return float(len(a))

    found = metrics.compared(count, real[:300] + 1, real)
    assert shared == [0] * 2 * metrics.FLOOR_REPEATS
    assert found == ((200, 200, 200), (200, 200, 200), 200)


def test_images_of_the_same_distribution_lie_at_the_floor() -> None:
    rng = np.random.default_rng(5)
    real, same, far = rng.normal(size=(200, 6)), rng.normal(size=(90, 6)), rng.normal(size=(90, 6)) + 0.5
    for i in range(4):
        near = metrics.compared(lambda a, b, i=i: metrics.manifold(a, b)[i], same, real)
        assert near.floor.low - 0.1 <= near.distance.value <= near.floor.high + 0.1
    assert metrics.compared(metrics.frechet_distance, same, real).distance.value < 0.8
    moved = metrics.compared(metrics.frechet_distance, far, real)
    assert moved.distance.low > moved.floor.high


def test_the_diversity_of_as_many_real_images() -> None:
    real = np.repeat(np.eye(5), 20, axis=0)
    assert metrics.at_size(metrics.vendi_score, real, 100) == pytest.approx((5, 5, 5))
    assert metrics.at_size(metrics.vendi_score, real, 5).value < 5
    with pytest.raises(ValueError, match="got 100 real images, expected 101 or more"):
        metrics.at_size(metrics.vendi_score, real, 101)


@pytest.mark.parametrize(
    ("name", "n", "d", "reason"),
    [
        ("frechet", 100, 64, "100 images, 128 are needed for a covariance of 64 features"),
        ("frechet", 128, 64, ""),
        ("coverage", 5, 64, "5 images, 6 are needed"),
        ("vendi", 1, 64, "1 images, 2 are needed"),
        ("vendi", 2, 64, ""),
    ],
)
def test_what_too_few_images_cannot_say_is_withheld(name: str, n: int, d: int, reason: str) -> None:
    assert metrics.withheld(name, n, d) == reason


@pytest.mark.parametrize(
    "measure", [metrics.frechet_distance, metrics.kernel_distance, metrics.copies, metrics.manifold]
)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((1, 3)), np.ones((9, 3))),
        (np.ones((9, 3)), np.ones((9, 4))),
        (np.full((9, 3), np.nan), np.ones((9, 3))),
    ],
)
def test_features_that_cannot_be_are_refused(measure, a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"got features"):
        measure(a, b)


def test_distances_of_one_pass_are_those_of_one_pass_each() -> None:
    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(60, 4)), rng.normal(size=(30, 4)) + 0.3
    together = metrics.compared_each(metrics.manifold, synthetic, real)
    for i, found in enumerate(together):
        assert found == metrics.compared(lambda a, b, i=i: metrics.manifold(a, b)[i], synthetic, real)
    alone = metrics.floor_of(metrics.frechet_distance, real, 30)
    assert alone.low <= alone.value <= alone.high
    with pytest.raises(ValueError, match="got 60 real images, expected 62 or more"):
        metrics.floor_of(metrics.frechet_distance, real, 31)

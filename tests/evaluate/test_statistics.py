"""Known answers: textbook values, libraries, and simulations in which the truth is known."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels
from statsmodels.stats.multitest import multipletests

from diffaug_datasets.evaluate import statistics


def test_a_paired_difference_is_students() -> None:
    line, base = np.array([0.83, 0.86, 0.88, 0.84]), np.array([0.80, 0.84, 0.83, 0.83])
    expected = stats.ttest_rel(line, base)
    found = statistics.paired_difference(line, base)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.value, found.draws) == (pytest.approx(0.0275), 4)


def test_the_same_line_twice_differs_by_exactly_nothing() -> None:
    line = np.array([0.83, 0.86, 0.88])
    assert statistics.paired_difference(line, line) == (0, 0, 0, 1, 3)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [statistics.paired_difference(rng.normal(0.02, 0.015, 10), np.zeros(10)) for _ in range(1000)]
    assert 0.93 <= np.mean([d.low <= 0.02 <= d.high for d in found]) <= 0.97
    null = [statistics.paired_difference(rng.normal(0, 0.015, 5), np.zeros(5)).p < 0.05 for _ in range(1000)]
    assert np.mean(null) <= 0.065


def answers(rng: np.random.Generator, draws: int, images: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two lines whose accuracy differs by `gain` on average; draws and images have effects of their own."""
    ease = rng.normal(0.8, 0.1, images)[None] + rng.normal(0, 0.02, draws)[:, None]
    return rng.random((draws, images)) < ease + gain, rng.random((draws, images)) < ease


def test_the_hierarchical_interval_covers_and_is_wider_than_that_of_images_alone() -> None:
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(60):
        line, base = answers(rng, 12, 200, 0.03)
        low, high = statistics.hierarchical_interval(line, base, resamples=300)
        hits.append(low <= 0.03 <= high)
    assert np.mean(hits) >= 0.85  # clipping of probabilities at 1 and the short bootstrap leave some
    line, base = answers(rng, 6, 300, 0.03)
    base[0] = False  # a draw in which the other line failed
    low, high = statistics.hierarchical_interval(line, base)
    one = statistics.hierarchical_interval(line.reshape(1, -1), base.reshape(1, -1))
    assert high - low > 2 * (one[1] - one[0])


def test_the_mean_of_many_episodes_has_the_interval_of_few_shot_tables() -> None:
    accuracy = np.random.default_rng(4).normal(0.7, 0.1, 600)
    low, high = statistics.mean_interval(accuracy)
    assert (low + high) / 2 == pytest.approx(accuracy.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * accuracy.std(ddof=1) / 600**0.5, rel=0.003)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 599, accuracy.mean(), stats.sem(accuracy)))
    assert statistics.mean_interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)


def test_the_interval_of_a_share_is_wilsons() -> None:
    expected = stats.binomtest(83, 100).proportion_ci(0.95, method="wilson")
    assert statistics.share_interval(np.arange(100) < 83) == pytest.approx((expected.low, expected.high))
    assert statistics.share_interval(np.ones(50, bool))[0] > 0.9


def test_both_intervals_hold_a_planted_gain_over_five_draws() -> None:
    """Student's as often as it says; the bootstrap is too wide with few test images, too narrow with few draws."""
    rng = np.random.default_rng(6)

    def covered(draws: int, images: int, spread: float, benches: int = 120) -> tuple[float, float]:
        hits = []
        for _ in range(benches):
            base = rng.random((draws, images)) < 0.7
            line = rng.random((draws, images)) < 0.73 + rng.normal(0, spread, (draws, 1))
            student = statistics.paired_difference(line.mean(1), base.mean(1))
            low, high = statistics.hierarchical_interval(line, base, resamples=100)
            hits.append((student.low <= 0.03 <= student.high, low <= 0.03 <= high))
        t, bootstrap = np.mean(hits, axis=0)
        return float(t), float(bootstrap)

    error = 3 * (0.95 * 0.05 / 120) ** 0.5
    few_images, few_draws = covered(5, 100, 0.01), covered(3, 1000, 0.05)
    assert few_images[0] == pytest.approx(0.95, abs=error) and few_images[1] >= 0.97
    assert few_draws[0] == pytest.approx(0.95, abs=error) and few_draws[1] <= 0.9


def test_draws_with_images_of_their_own_are_resampled_apart() -> None:
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(60):
        gains = 0.05 + rng.normal(0, 0.02, 12)
        line = [rng.random(40 + 5 * i) < 0.7 + gain for i, gain in enumerate(gains)]
        base = [rng.random(40 + 5 * i) < 0.7 for i in range(12)]
        low, high = statistics.interval_of_apart(line, base, resamples=100)
        hits.append(low <= 0.05 <= high)
    assert np.mean(hits) >= 0.9
    alike = np.array([True, False, True, True])
    assert statistics.interval_of_apart([alike, alike[:2]], [alike, alike[:2]]) == (0, 0)


def test_several_initialisations_of_one_draw_are_paired_over_its_images() -> None:
    rng = np.random.default_rng(8)
    line, base = (rng.random((4, 500)) < share for share in (0.75, 0.7))
    found = statistics.difference_over_images(line.mean(0), base.mean(0))
    expected = stats.ttest_rel(line.mean(0), base.mean(0))
    assert found.p == pytest.approx(expected.pvalue) and found.draws == 1
    assert statistics.difference_over_images(line[0], base[0]) == statistics.mcnemar(line[0], base[0])


def test_ranks_of_one_draw_are_resampled_over_its_images() -> None:
    rng = np.random.default_rng(9)
    correct = {name: (rng.random(400) < share).astype(float) for name, share in (("a", 0.9), ("b", 0.6), ("c", 0.61))}
    ranks = statistics.rank_intervals(correct)
    assert ranks["a"] == (1, 1, 1)
    assert (ranks["b"].low, ranks["b"].high) == (2, 3)


def test_mcnemar_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(10)
    line, base = (rng.random(300) < share for share in (0.8, 0.7))
    cells = [[(line & base).sum(), (line & ~base).sum()], [(~line & base).sum(), (~line & ~base).sum()]]
    assert statistics.mcnemar(line, base).p == pytest.approx(of_statsmodels(cells, exact=True).pvalue)


def test_mcnemar_is_the_binomial_test_of_the_images_that_changed() -> None:
    line, base = np.zeros(100, bool), np.zeros(100, bool)
    line[:60], base[5:50] = True, True
    base[60:63] = True
    found = statistics.mcnemar(line, base)
    assert found.p == pytest.approx(stats.binomtest(3, 18).pvalue)
    assert found.value == pytest.approx(0.12)
    assert found.low < 0.12 < found.high


def test_holm_corrects_in_order() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []
    p_values = np.random.default_rng(0).random(20) ** 3
    np.testing.assert_allclose(statistics.holm(p_values.tolist()), multipletests(p_values, method="holm")[1])


def test_ranks_follow_the_means_and_ties_share() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(0.8, 0.02, 20)
    ranks = statistics.rank_intervals({"worse": base - 0.1, "a": base, "same as a": base, "better": base + 0.1})
    assert ranks["better"] == (1, 1, 1)
    assert ranks["worse"] == (4, 4, 4)
    assert ranks["a"] == ranks["same as a"] == (2.5, 2.5, 2.5)
    close = statistics.rank_intervals({"a": base, "b": base[::-1] + 0.001})
    assert close["a"].low == 1 and close["a"].high == 2


def test_the_smallest_effect_is_found_four_times_of_five() -> None:
    effect = statistics.smallest_effect(0.0146, 5)
    rng = np.random.default_rng(3)
    found = [statistics.paired_difference(rng.normal(effect, 0.0146, 5), np.zeros(5)).p < 0.05 for _ in range(2000)]
    assert 0.77 <= np.mean(found) <= 0.83
    assert statistics.draws_needed(0.0146, effect) == 5
    assert 18 <= statistics.draws_needed(0.0146, 0.01) <= 20
    assert statistics.draws_needed(0.0, 0.01) == 2
    assert statistics.draws_needed(0.0146, 10.0) == 2
    assert statistics.draws_needed(0.0146, 1e-6) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.paired_difference(np.zeros(1), np.zeros(1)),
        lambda: statistics.paired_difference(np.zeros(3), np.zeros(2)),
        lambda: statistics.hierarchical_interval(np.zeros((2, 3), bool), np.zeros((2, 4), bool)),
        lambda: statistics.mcnemar(np.zeros(0, bool), np.zeros(0, bool)),
        lambda: statistics.mean_interval(np.zeros(1)),
        lambda: statistics.share_interval(np.zeros(0, bool)),
        lambda: statistics.interval_of_apart([], []),
        lambda: statistics.interval_of_apart([np.zeros(3)], [np.zeros(2)]),
        lambda: statistics.rank_intervals({"a": np.zeros(2), "b": np.zeros(3)}),
        lambda: statistics.smallest_effect(0.01, 1),
        lambda: statistics.draws_needed(0.01, 0),
    ],
)
def test_what_cannot_be_computed_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"^got "):
        call()

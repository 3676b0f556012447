"""How sure a difference between two training sets is: paired over draws of the real images, by scipy and statsmodels.

Accuracies come as arrays [draws] or, where every test image counts, as `correct` [draws images]: whether an image got
its label, or the share of initialisations with which it did. Draws are the unit: they differ in the real images that a
run may see, and that is most of the spread. Differences are paired, a line against another in the same draw.

Student's interval holds 95 % where differences are normal, also for two draws, so verdicts are Student's. The bootstrap
is a second look: over few draws that differ much it is too narrow, as it knows no spread that they do not show, and
where test images are few it is too wide, as their luck counts in every draw and once more when they are resampled. A
simulation in `tests/evaluate/test_statistics.py` shows both.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
Correct = NDArray[np.bool_]
Answers = Values | Correct

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
DIGITS = 12  # of an accuracy that count; what lies below is the order of additions
COUNTS_AT_ONCE = 2_000_000  # how often each image was drawn, in the resamples that are made together


class Difference(NamedTuple):
    """A paired difference in accuracy, its 95 % interval, the p value against 0, and how many draws it is of."""

    value: float
    low: float
    high: float
    p: float
    draws: int


class Ranks(NamedTuple):
    """The rank of a line by its mean, 1 = best, and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_difference(line: Values, base: Values) -> Difference:
    """Mean of line - base over draws [k], with Student's interval and test.

    Differences that are all alike have an interval of no width, and p 1 where they are 0, else 0.

    Raises:
        ValueError: fewer than two draws, or not as many of each.
    """
    if line.shape != base.shape or line.ndim != 1 or len(line) < 2:
        raise ValueError(f"got draws of shapes {line.shape} and {base.shape}, expected two or more of each, in pairs")
    gaps = np.round(line - base, DIGITS)
    value = float(gaps.mean())
    if float(np.ptp(gaps)) == 0:
        return Difference(value, value, value, float(value == 0), len(gaps))
    test = stats.ttest_1samp(gaps, 0.0)
    ends = test.confidence_interval(LEVEL)
    return Difference(value, float(ends.low), float(ends.high), float(test.pvalue), len(gaps))


def mean_interval(values: Values) -> tuple[float, float]:
    """Student's 95 % interval of the mean over draws or episodes [k]; of no width where all are alike.

    For many episodes it is the 1.96 s / sqrt(k) of few-shot tables, s with k - 1 below.

    Raises:
        ValueError: fewer than two values.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"got values of shape {values.shape}, expected two or more")
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach


def share_interval(correct: Answers) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy on the test images [n] of one draw.

    Raises:
        ValueError: there is no image.
    """
    from statsmodels.stats.proportion import proportion_confint

    if correct.ndim != 1 or not correct.size:
        raise ValueError(f"got answers of shape {correct.shape}, expected those of one image or more")
    low, high = proportion_confint(float(correct.sum()), len(correct), alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def hierarchical_interval(
    line: Answers, base: Answers, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference in accuracy: draws are resampled, then test images.

    `line` and `base`: [draws images], the same test images in the same order. The images are resampled once for all
    draws, as they are the same in all; `interval_of_apart` is for draws with test images of their own.

    Raises:
        ValueError: shapes differ, or there is no draw or image.
    """
    if line.shape != base.shape or line.ndim != 2 or not line.size:
        raise ValueError(f"got answers of shapes {line.shape} and {base.shape}, expected [draws images], in pairs")
    rng = np.random.default_rng(seed)
    gaps = line.astype(np.float64) - base
    draws, images = gaps.shape
    means: list[NDArray[np.float64]] = []
    at_once = max(1, COUNTS_AT_ONCE // images)
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        of_draws = rng.multinomial(draws, np.full(draws, 1 / draws), size) / draws
        of_images = rng.multinomial(images, np.full(images, 1 / images), size) / images
        means.append(((of_draws @ gaps) * of_images).sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_of_apart(
    line: Sequence[Answers], base: Sequence[Answers], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The same where every draw has test images of its own, as episodes have: one array [images] for each draw.

    Raises:
        ValueError: not as many draws of each, not in pairs, or there is no draw or a draw without images.
    """
    if not line or [a.shape for a in line] != [b.shape for b in base] or not all(a.size for a in line):
        raise ValueError(f"got answers of {len(line)} and {len(base)} draws, expected one array or more, in pairs")
    rng = np.random.default_rng(seed)
    gaps = [a.astype(np.float64) - b for a, b in zip(line, base, strict=True)]
    chosen = rng.integers(0, len(gaps), (resamples, len(gaps)))
    means = np.empty(chosen.shape)
    for place, gap in enumerate(gaps):
        slots = chosen == place
        total, n = int(slots.sum()), len(gap)
        at_once = max(1, COUNTS_AT_ONCE // n)
        sizes = [min(at_once, total - begin) for begin in range(0, total, at_once)]
        resampled = [rng.multinomial(n, np.full(n, 1 / n), size) @ gap / n for size in sizes]
        means[slots] = np.concatenate(resampled) if resampled else []
    low, high = np.quantile(means.mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference_over_images(line: Answers, base: Answers) -> Difference:
    """The difference in accuracy of one draw [images]: McNemar's test, or Student's over images for shares.

    Shares are those of several initialisations, which McNemar's test does not know.

    Raises:
        ValueError: shapes differ, or there is no image (of shares: no two).
    """
    if line.dtype == np.bool_ and base.dtype == np.bool_:
        return mcnemar(line.astype(np.bool_), base.astype(np.bool_))
    return paired_difference(line.astype(np.float64), base.astype(np.float64))._replace(draws=1)


def mcnemar(line: Correct, base: Correct) -> Difference:
    """The difference in accuracy of one draw [images]: McNemar's exact test and the Wald interval of the difference.

    Raises:
        ValueError: shapes differ, or there is no image.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact

    if line.shape != base.shape or line.ndim != 1 or not line.size:
        raise ValueError(f"got answers of shapes {line.shape} and {base.shape}, expected [images], in pairs")
    n = len(line)
    better, worse = int((line & ~base).sum()), int((base & ~line).sum())
    value = (better - worse) / n
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(better + worse - n * value**2) / n
    p = float(exact([[0, worse], [better, 0]], exact=True).pvalue)
    return Difference(value, value - reach, value + reach, p, 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for how many comparisons there are, in their order (Holm 1979).

    The k-th smallest of n is multiplied by n - k + 1, and is at least as large as the one before it, at most 1.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def rank_intervals(accuracy: Mapping[str, Values], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Ranks]:
    """Ranks of lines by their mean over units [k], which are resampled together; ties share a mean rank.

    Units are draws, each with a line's accuracy, or the test images of one draw.

    Raises:
        ValueError: the lines have not the same number of units, or none.
    """
    shapes = {values.shape for values in accuracy.values()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()) or len(shape) != 1:
        raise ValueError("got lines with other numbers of units or none, expected one or more each, the same number")
    table = np.stack(list(accuracy.values())).astype(np.float64)
    units = table.shape[1]
    rng = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // units)
    sizes = [min(at_once, resamples - begin) for begin in range(0, resamples, at_once)]
    means = [rng.multinomial(units, np.full(units, 1 / units), size) @ table.T / units for size in sizes]
    ranks = stats.rankdata(-np.round(np.concatenate(means), DIGITS), axis=1)
    low, high = np.quantile(ranks, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    mean = stats.rankdata(-np.round(table.mean(1), DIGITS))
    return {name: Ranks(*map(float, numbers)) for name, *numbers in zip(accuracy, mean, low, high, strict=True)}


def smallest_effect(deviation: float, draws: int) -> float:
    """The paired difference that a two-sided test at 5 % finds with 80 % power, from the deviation of differences.

    Raises:
        ValueError: fewer than two draws.
    """
    from statsmodels.stats.power import TTestPower

    if draws < 2:
        raise ValueError(f"got {draws} draws, expected two or more")
    return deviation * float(TTestPower().solve_power(nobs=draws, alpha=1 - LEVEL, power=POWER))


def draws_needed(deviation: float, effect: float, most: int = 1000) -> int | None:
    """How many draws find a paired difference of that size with 80 % power in a two-sided test at 5 %; at least two.

    None where more than `most` would be needed.

    Raises:
        ValueError: the effect is not above 0.
    """
    from statsmodels.stats.power import TTestPower

    if not effect > 0:
        raise ValueError(f"got an effect of {effect}, expected one above 0")
    test = TTestPower()

    def suffices(draws: int) -> bool:
        return deviation == 0 or float(test.power(effect / deviation, draws, alpha=1 - LEVEL)) >= POWER

    high = 2  # doubled from below, as the power of far too many draws overflows
    while high < most and not suffices(high):
        high = min(most, 2 * high)
    low = max(2, high // 2)
    return low + bisect_left(range(low, high), True, key=suffices) if suffices(high) else None

"""Single steps of DPM-Solver++: where they end, how they relate to DDIM, and their orders of convergence."""

import math
from itertools import pairwise

import pytest
import torch

from diffaug_datasets.numerics.levels import of_alpha_bar, second_order_weight
from diffaug_datasets.numerics.sampling import (
    ddim_step,
    dpm_first_order_step,
    dpm_second_order_step,
    x0_from_eps,
)


def test_the_first_order_step_is_ddim(latents):
    xt, eps = latents(2, 4, 4, 4, dtype=torch.float64), latents(2, 4, 4, 4, seed=1, dtype=torch.float64)
    x0 = x0_from_eps(xt, eps, 0.3)
    torch.testing.assert_close(
        dpm_first_order_step(xt, x0, of_alpha_bar(0.3), of_alpha_bar(0.6)),
        ddim_step(xt, eps, 0.3, 0.6),
        rtol=1e-13,
        atol=1e-14,
    )


def test_the_step_to_zero_noise_gives_x0(latents):
    xt, x0 = latents(2, 4, 4, 4), latents(2, 4, 4, 4, seed=1)
    assert torch.equal(dpm_first_order_step(xt, x0, of_alpha_bar(0.9), of_alpha_bar(1.0)), x0)


def test_an_unchanged_x0_needs_no_second_order(latents):
    xt, x0 = latents(2, 4, 4, 4), latents(2, 4, 4, 4, seed=1)
    last, now, to = map(of_alpha_bar, (0.2, 0.3, 0.5))
    assert torch.equal(dpm_second_order_step(xt, x0, x0, (last, now, to)), dpm_first_order_step(xt, x0, now, to))


def test_equal_steps_in_log_signal_to_noise_extrapolate_by_half():
    levels = [of_alpha_bar(1 / (1 + math.exp(-2 * lam))) for lam in (-1.0, -0.5, 0.0)]
    assert second_order_weight(*levels) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("levels", [(0.2, 0.3, 1.0), (0.0, 0.3, 0.5)], ids=["to zero noise", "from zero signal"])
def test_where_log_signal_to_noise_is_infinite_the_step_is_of_first_order(latents, levels):
    xt, x0, x0_last = (latents(1, 4, 4, 4, seed=seed) for seed in range(3))
    last, now, to = map(of_alpha_bar, levels)
    assert second_order_weight(last, now, to) == 0
    assert torch.equal(dpm_second_order_step(xt, x0, x0_last, (last, now, to)), dpm_first_order_step(xt, x0, now, to))


MEAN, SPREAD = 0.7, 0.4


def posterior_mean(xt, level):
    """E[x0 | x_t] for data from N(MEAN, SPREAD^2)."""
    variance = level * SPREAD**2 + 1 - level
    return MEAN + math.sqrt(level) * SPREAD**2 / variance * (xt - math.sqrt(level) * MEAN)


def solve(xt, levels, second_order):
    x0_last = None
    for i, (now, prev) in enumerate(pairwise(levels)):
        x0 = posterior_mean(xt, now)
        if second_order and x0_last is not None:
            xt = dpm_second_order_step(xt, x0, x0_last, tuple(map(of_alpha_bar, (levels[i - 1], now, prev))))
        else:
            xt = dpm_first_order_step(xt, x0, of_alpha_bar(now), of_alpha_bar(prev))
        x0_last = x0
    return xt


@pytest.mark.parametrize("second_order", [False, True])
def test_order_of_convergence(latents, second_order):
    xt, errors = latents(1, 1, 4, 4, dtype=torch.float64), []
    for n in (40, 80, 160, 320):
        levels = [1 / (1 + math.exp(-2 * (-2.5 + 4.5 * i / n))) for i in range(n + 1)]
        before, after = (level * SPREAD**2 + 1 - level for level in (levels[0], levels[-1]))
        score = (xt - math.sqrt(levels[0]) * MEAN) / math.sqrt(before)
        exact = math.sqrt(levels[-1]) * MEAN + math.sqrt(after) * score
        errors.append((solve(xt, levels, second_order) - exact).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-2:] == pytest.approx([1 + second_order] * 2, abs=0.15)

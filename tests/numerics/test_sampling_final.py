"""Where sampling ends: at zero noise, or at the level of label 0 as in diffusers 0.19, which GeNIe's authors pin."""

import math

import pytest
import torch

from diffaug_datasets.numerics.sampling import ddim_sample, dpm_sample, plms_sample
from diffaug_datasets.numerics.schedule import ddim_timesteps, dpm_timesteps, plms_timesteps


def dpm_of_0_19(eps, xt, n, start, alphas_cumprod):
    """DPM-Solver++(2M) from the paper's Algorithm 2, with what diffusers 0.19 does at the end: the last step goes to
    label 0, and is of first order below 15 steps. Imports nothing of ours."""
    alpha, sigma = alphas_cumprod.double().sqrt(), (1 - alphas_cumprod.double()).sqrt()
    lam = alpha.log() - sigma.log()
    labels = [round(i * 999 / n) for i in range(n, 0, -1)]
    last, last_label = None, None
    for i in range(start, n):
        t, to = labels[i], labels[i + 1] if i + 1 < n else 0
        x0 = (xt - sigma[t] * eps(xt, t)) / alpha[t]
        h = lam[to] - lam[t]
        direction = x0
        if last is not None and not (i == n - 1 and n < 15):
            r = (lam[t] - lam[last_label]) / h
            direction = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last
        xt = sigma[to] / sigma[t] * xt - alpha[to] * (math.exp(-h) - 1) * direction
        last, last_label = x0, t
    return xt


@pytest.fixture
def ends(sd15, toy_eps, latents):
    """Ours and the reference, in float64."""

    def run(n, start, final="alpha_bar_0"):
        xt = latents(2, 4, 8, 8, dtype=torch.float64)
        labels = dpm_timesteps(sd15, n)
        found = dpm_sample(lambda x, t, i: toy_eps(x, t), xt, sd15, labels, [start] * 2, final)
        return found, dpm_of_0_19(toy_eps, xt, n, start, sd15.alpha_bar)

    return run


@pytest.mark.parametrize(("n", "start"), [(50, 0), (50, 10), (50, 49), (25, 13), (15, 0), (14, 0), (5, 2), (1, 0)])
def test_alpha_bar_0_is_what_diffusers_0_19_did(ends, n, start):
    found, expected = ends(n, start)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("final", ["zero", None])
def test_the_default_ends_elsewhere(ends, final):
    found, expected = ends(50, 10, final)
    assert float((found - expected).abs().max()) > 1e-2


def test_a_last_step_of_first_order_is_seen(ends, monkeypatch):
    monkeypatch.setattr("diffaug_datasets.numerics.sampling.LEAST_FOR_SECOND_ORDER", 1000)
    found, expected = ends(50, 10)
    assert float((found - expected).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("sample", "labels"), [(ddim_sample, ddim_timesteps), (dpm_sample, dpm_timesteps), (plms_sample, plms_timesteps)]
)
def test_a_network_that_knows_the_data_is_taken_there(sd15, latents, sample, labels):
    """With eps that always means the same x0, what is left of the noise is that of the last level."""
    x0, noise = (latents(1, 4, 8, 8, seed=seed, dtype=torch.float64) for seed in (1, 2))

    def eps(xt, t, _step):
        a, s = sd15.pair(t)
        return (xt - a * x0) / s

    a, s = sd15.pair(labels(sd15, 20)[0])
    found = {f: sample(eps, a * x0 + s * noise, sd15, labels(sd15, 20), [0], f) for f in ("zero", "alpha_bar_0", None)}
    a, s = sd15.pair(0)
    torch.testing.assert_close(found["zero"], x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["alpha_bar_0"], a * x0 + s * noise, rtol=0, atol=1e-9)
    assert torch.equal(found[None], found["zero" if sample is dpm_sample else "alpha_bar_0"])

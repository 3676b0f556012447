"""Whole trajectories: rows stand alone, dtypes hold, inversion inverts what it can, and the orders of convergence."""

import math
from itertools import pairwise

import pytest
import torch

from diffaug_datasets.numerics.inverting import ddim_invert
from diffaug_datasets.numerics.sampling import ddim_sample, dpm_sample
from diffaug_datasets.numerics.schedule import Schedule, ddim_inverse_timesteps, ddim_timesteps, dpm_timesteps, guided

SAMPLERS = [(ddim_sample, ddim_timesteps), (dpm_sample, dpm_timesteps)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def eps(toy_eps):
    return lambda xt, t, i: toy_eps(xt, t)


def mixed_prompts(toy_eps, scale, switch):
    """An eps whose rows differ in guidance scale and in the step where the prompt switches."""

    def eps(xt, t, i):
        early = torch.tensor([0.2 if i < s else -0.1 for s in switch], dtype=xt.dtype).reshape(-1, 1, 1, 1)
        return guided(toy_eps(xt, t), toy_eps(xt, t) + early, torch.tensor(scale))

    return eps


@pytest.mark.parametrize(("sample", "labels"), SAMPLERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [(0, 9, 3, 24, 3), (7, 20, 7, 8, 9)])
def test_a_mixed_batch_equals_each_row_alone_to_the_bit(sd15, toy_eps, latents, sample, labels, dtype, start):
    xt, scale, switch = latents(5, 4, 4, 4, dtype=dtype), (7.5, 1.0, 3.0, 7.5, 0.0), (2, 0, 25, 24, 7)
    timesteps = labels(sd15, 25)
    batch = sample(mixed_prompts(toy_eps, scale, switch), xt, sd15, timesteps, start)
    for row in range(5):
        own = slice(row, row + 1)
        alone = sample(mixed_prompts(toy_eps, scale[own], switch[own]), xt[own], sd15, timesteps, start[own])
        assert torch.equal(batch[own], alone)


@pytest.mark.parametrize(("sample", "labels"), SAMPLERS)
def test_rows_wait_untouched_and_the_loop_begins_at_the_earliest_row(sd15, eps, latents, sample, labels):
    xt, seen = latents(2, 4, 4, 4), []

    def watching(x, t, i):
        seen.append((i, t, torch.equal(x[1], xt[1])))
        return eps(x, t, i)

    timesteps = labels(sd15, 10)
    sample(watching, xt, sd15, timesteps, (4, 7))
    assert seen == [(i, timesteps[i], i <= 7) for i in range(4, 10)]


@pytest.mark.parametrize(("sample", "labels"), SAMPLERS)
def test_a_broken_row_stays_alone(sd15, eps, latents, sample, labels):
    xt = latents(3, 4, 4, 4)
    xt[1] = math.nan
    out = sample(eps, xt, sd15, labels(sd15, 10), (0, 2, 5))
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_model_and_the_caller_see_the_dtype_of_the_latents(sd15, toy_eps, latents, dtype):
    def eps(x, t, i):
        assert x.dtype == dtype
        return toy_eps(x, t)

    xt = latents(2, 4, 4, 4, dtype=dtype)
    assert ddim_invert(eps, xt, sd15, ddim_inverse_timesteps(sd15, 5)).dtype == dtype
    for sample, labels in SAMPLERS:
        assert sample(eps, xt, sd15, labels(sd15, 5), (0, 2)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("sample", "labels"), SAMPLERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_the_cpu(sd15, eps, latents, sample, labels, dtype):
    xt = latents(3, 4, 4, 4, dtype=dtype)
    here = sample(eps, xt, sd15, labels(sd15, 25), (0, 3, 9))
    there = sample(eps, xt.cuda(), sd15, labels(sd15, 25), (0, 3, 9))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu().double(), here.double(), rtol=0, atol=here.abs().max().item() * 2e-2)


@pytest.mark.parametrize(("sample", "labels"), SAMPLERS)
def test_wrong_starts_and_labels_are_refused(sd15, eps, latents, sample, labels):
    xt, timesteps = latents(2, 4, 4, 4), labels(sd15, 10)
    for start in [(0,), (0, 10), (-1, 0)]:
        with pytest.raises(ValueError, match=r"give one index in 0\.\.9 for each of 2 rows"):
            sample(eps, xt, sd15, timesteps, start)
    with pytest.raises(ValueError, match="sampling needs labels that fall"):
        sample(eps, xt, sd15, timesteps[::-1], (0, 0))
    with pytest.raises(ValueError, match="inversion needs labels that rise"):
        ddim_invert(eps, xt, sd15, timesteps)


def test_inversion_then_sampling_returns_when_eps_knows_only_the_time(sd15, latents):
    x0, noise = latents(2, 4, 8, 8, dtype=torch.float64), latents(2, 4, 8, 8, seed=1, dtype=torch.float64)

    def eps(xt, t, i):
        return math.sin(t / 100) * noise

    xt = ddim_invert(eps, x0, sd15, ddim_inverse_timesteps(sd15, 25))
    back = ddim_sample(eps, xt, sd15, ddim_timesteps(sd15, 25), (0, 0))
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)


def test_inversion_then_sampling_does_not_return_when_eps_knows_the_state(sd15, latents):
    x0 = latents(1, 4, 8, 8, dtype=torch.float64)

    def eps(xt, t, i):
        return 0.3 * xt

    xt = ddim_invert(eps, x0, sd15, ddim_inverse_timesteps(sd15, 25))
    back = ddim_sample(eps, xt, sd15, ddim_timesteps(sd15, 25), (0,))
    assert 0.05 < (back - x0).abs().max() < 1.0


MEAN, SPREAD = 0.7, 0.4


@pytest.fixture(scope="module")
def gentle():
    """A forward process that is smooth from its first level on, so that the order shows at moderate steps."""
    return Schedule(torch.linspace(0.95, 0.02, 961, dtype=torch.float64))


def gaussian_eps(schedule):
    """The exact eps of data from N(MEAN, SPREAD^2): E[eps | x_t]."""

    def eps(xt, t, i):
        level = schedule.level(t)
        return math.sqrt(1 - level) * (xt - math.sqrt(level) * MEAN) / (level * SPREAD**2 + 1 - level)

    return eps


def exact_flow(x, level_from, level_to):
    """Where the probability-flow ODE of that data takes x: its standard score within the marginal never changes."""
    score = (x - math.sqrt(level_from) * MEAN) / math.sqrt(level_from * SPREAD**2 + 1 - level_from)
    return math.sqrt(level_to) * MEAN + math.sqrt(level_to * SPREAD**2 + 1 - level_to) * score


def orders(error_of):
    """log2 of how much the error falls each time that the steps double, for n = 20, 40, 80, 160."""
    errors = [error_of(tuple(range(960 // n, 961, 960 // n))) for n in (20, 40, 80, 160)]
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def test_ddim_inversion_is_first_order(gentle, latents):
    x0 = latents(1, 1, 4, 4, dtype=torch.float64)
    exact = exact_flow(x0, gentle.final_alpha_bar, gentle.level(960))

    def error(labels):
        return (ddim_invert(gaussian_eps(gentle), x0, gentle, labels) - exact).abs().max().item()

    assert orders(error) == pytest.approx([1, 1, 1], abs=0.15)


def test_ddim_sampling_is_first_order(gentle, latents):
    xt = latents(1, 1, 4, 4, dtype=torch.float64)
    exact = exact_flow(xt, gentle.level(960), gentle.final_alpha_bar)

    def error(labels):
        return (ddim_sample(gaussian_eps(gentle), xt, gentle, labels[::-1], (0,)) - exact).abs().max().item()

    assert orders(error) == pytest.approx([1, 1, 1], abs=0.15)

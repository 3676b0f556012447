"""Single DDIM steps: the formula, its inverse, and the dtypes it computes in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaug_datasets.numerics.sampling import ddim_step

LEVELS = st.floats(0.004, 0.9995)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def pair(latents):
    return latents(2, 4, 4, 4, dtype=torch.float64), latents(2, 4, 4, 4, seed=1, dtype=torch.float64)


def test_the_sampling_step_as_printed(pair):
    xt, eps = pair
    x0 = (xt - math.sqrt(1 - 0.3) * eps) / math.sqrt(0.3)
    torch.testing.assert_close(
        ddim_step(xt, eps, 0.3, 0.6), math.sqrt(0.6) * x0 + math.sqrt(1 - 0.6) * eps, rtol=1e-13, atol=1e-14
    )


def test_the_inversion_step_as_diff_ii_should_print_it(pair):
    x, eps = pair
    expected = math.sqrt(0.3 / 0.6) * (x - math.sqrt(1 - 0.6) * eps) + math.sqrt(1 - 0.3) * eps
    torch.testing.assert_close(ddim_step(x, eps, 0.6, 0.3), expected, rtol=1e-13, atol=1e-14)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(level_from=LEVELS, level_to=LEVELS)
def test_with_one_eps_the_two_steps_undo_each_other(level_from, level_to):
    x, eps = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = ddim_step(x, eps, level_from, level_to)
    torch.testing.assert_close(ddim_step(there, eps, level_to, level_from), x, rtol=1e-11, atol=1e-11)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(level_from=LEVELS, level_to=LEVELS)
def test_the_true_noise_leads_to_the_true_state(level_from, level_to):
    x0, eps = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = lambda level: math.sqrt(level) * x0 + math.sqrt(1 - level) * eps  # noqa: E731
    torch.testing.assert_close(
        ddim_step(at(level_from), eps, level_from, level_to), at(level_to), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_rounds_once_at_the_end(pair, dtype):
    xt, eps = (x.to(dtype) for x in pair)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    step = ddim_step(xt, eps, 0.0073, 0.0094)
    assert step.dtype == dtype
    assert torch.equal(step, ddim_step(xt.to(wide), eps.to(wide), 0.0073, 0.0094).to(dtype))

"""Guidance by row, and the conversions between what a network may predict."""

import math

import pytest
import torch

from diffaug_datasets.numerics.schedule import eps_from_v, eps_from_x0, guided

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def predictions(latents):
    return latents(3, 4, 4, 4), latents(3, 4, 4, 4, seed=1)


def test_each_row_has_its_own_scale(predictions):
    uncond, cond = predictions
    mixed = guided(uncond, cond, torch.tensor([7.5, 1.0, 0.0]))
    torch.testing.assert_close(mixed[0], 7.5 * cond[0] - 6.5 * uncond[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed[1], cond[1])
    assert torch.equal(mixed[2], uncond[2])


def test_a_row_does_not_depend_on_the_others(predictions):
    uncond, cond = predictions
    scale = torch.tensor([7.5, 1.0, 3.0])
    mixed = guided(uncond, cond, scale)
    for row in range(3):
        own = slice(row, row + 1)
        assert torch.equal(mixed[own], guided(uncond[own], cond[own], scale[own]))


def test_scale_one_ignores_even_a_broken_unconditional_prediction(predictions):
    _, cond = predictions
    assert torch.equal(guided(torch.full_like(cond, math.nan), cond, torch.ones(3)), cond)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_rounds_once_at_the_end(predictions, dtype):
    uncond, cond = (x.to(dtype) for x in predictions)
    mixed = guided(uncond, cond, torch.full((3,), 7.5))
    assert mixed.dtype == dtype
    exact = uncond.double() + 7.5 * (cond.double() - uncond.double())
    torch.testing.assert_close(mixed.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("level", [0.00466, 0.3, 0.9991])
@pytest.mark.parametrize("dtype", DTYPES)
def test_v_and_x0_predictions_give_back_eps(latents, level, dtype):
    x0, eps = latents(2, 4, 4, 4, dtype=torch.float64), latents(2, 4, 4, 4, seed=1, dtype=torch.float64)
    signal, noise = math.sqrt(level), math.sqrt(1 - level)
    xt = signal * x0 + noise * eps
    from_v = eps_from_v((signal * eps - noise * x0).to(dtype), xt.to(dtype), level)
    from_x0 = eps_from_x0(x0.to(dtype), xt.to(dtype), level)
    assert from_v.dtype == from_x0.dtype == dtype
    slack = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(from_v.double(), eps, rtol=0, atol=slack)
    torch.testing.assert_close(from_x0.double(), eps, rtol=0, atol=slack / noise)


def test_no_eps_without_noise(latents):
    x0 = latents(1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"got alpha_bar 1\.0; eps is undefined without noise"):
        eps_from_x0(x0, x0, 1.0)

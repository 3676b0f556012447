"""Noise levels: the vectors of the method specification, and diffusers' own."""

import pytest
import torch

from diffaug_datasets.numerics.schedule import Schedule, add_noise

SPOT_VALUES = {
    0: 0.99914998,
    1: 0.99829602,
    41: 0.96087265,
    300: 0.590501,
    500: 0.276332,
    600: 0.160782,
    700: 0.0825208,
    800: 0.0368696,
    900: 0.0141511,
    961: 0.00728172,
    996: 0.00483171,
    999: 0.00466010,
}


@pytest.mark.parametrize(("t", "expected"), SPOT_VALUES.items())
def test_alpha_bar_spot_values(sd15, t, expected):
    assert sd15.level(t) == pytest.approx(expected, rel=4e-6)


@pytest.mark.parametrize(
    ("kind", "beta_start", "beta_end"),
    [("scaled_linear", 0.00085, 0.012), ("linear", 0.0001, 0.02), ("squaredcos_cap_v2", 0.0001, 0.02)],
)
def test_alpha_bar_rounds_to_diffusers(reference, kind, beta_start, beta_end):
    ours = Schedule.from_betas(kind, beta_start, beta_end).alpha_bar
    theirs = reference.alphas_cumprod(kind, beta_start, beta_end)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-7, atol=0)


def test_final_level_is_alpha_bar_0_unless_set_to_one(sd15):
    assert sd15.final_alpha_bar == sd15.level(0)
    assert Schedule(sd15.alpha_bar, set_alpha_to_one=True).final_alpha_bar == 1.0


def test_schedules_compare_and_hash_by_identity(sd15):
    assert sd15 == sd15
    assert sd15 != Schedule(sd15.alpha_bar)
    assert len({sd15, sd15}) == 1


def test_add_noise_takes_each_row_to_its_own_level(sd15, latents):
    x0, eps = latents(3, 4, 4, 4, dtype=torch.float64), latents(3, 4, 4, 4, seed=1, dtype=torch.float64)
    xt = add_noise(sd15, x0, eps, (1, 500, 999))
    for row, t in enumerate((1, 500, 999)):
        level = sd15.level(t)
        torch.testing.assert_close(xt[row], level**0.5 * x0[row] + (1 - level) ** 0.5 * eps[row], rtol=1e-14, atol=0)
        assert torch.equal(xt[row : row + 1], add_noise(sd15, x0[row : row + 1], eps[row : row + 1], (t,)))


def test_strength_one_is_not_pure_noise(sd15, latents):
    x0 = latents(1, 4, 4, 4, dtype=torch.float64)
    survives = add_noise(sd15, x0, torch.zeros_like(x0), (999,)) / x0
    assert survives.mean().item() == pytest.approx(0.0682649, rel=1e-4)


def test_add_noise_agrees_with_diffusers(sd15, reference, latents):
    x0, eps = latents(2, 4, 4, 4), latents(2, 4, 4, 4, seed=1)
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler"):
        labels = reference.labels(name, 25)[3:5]
        torch.testing.assert_close(add_noise(sd15, x0, eps, labels), reference.add_noise(name, x0, eps, labels))


def test_add_noise_refuses_a_missing_or_wild_label(sd15, latents):
    x0 = latents(2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"got values of shape \(1,\); give one for each of 2 rows"):
        add_noise(sd15, x0, x0, (5,))
    with pytest.raises(ValueError, match="got timestep -1; labels run from 0 to 999"):
        add_noise(sd15, x0, x0, (5, -1))


def test_a_last_level_of_zero_needs_a_network_that_says_more_than_eps():
    levels = torch.tensor([0.5, 0.0], dtype=torch.float64)
    assert Schedule(levels, prediction="v_prediction").pair(1) == (0, 1)
    with pytest.raises(ValueError, match="must not end at 0 where eps is predicted"):
        Schedule(levels)


@pytest.mark.parametrize(
    "levels", [[0.5, 0.9], [1.0, 0.5], [0.5, 0.0, 0.0], [0.5, -0.1], [0.5, 0.5], [float("nan"), 0.5]]
)
def test_levels_that_do_not_fall_inside_0_1_are_refused(levels):
    with pytest.raises(ValueError, match=r"must fall strictly and lie in \(0, 1\)"):
        Schedule(torch.tensor(levels, dtype=torch.float64))


def test_an_unknown_beta_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="got beta schedule 'cosine'; use 'linear', 'scaled_linear' or"):
        Schedule.from_betas("cosine", 0.1, 0.2)

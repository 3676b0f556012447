"""DDIM, DDIM inversion and DPM-Solver++(2M) agree with diffusers to float32 rounding, and faults show.

The comparison itself is tested: each planted fault must move the result by far more than the tolerance.
"""

from dataclasses import replace

import pytest
import torch

from diffaug_datasets.numerics import inverting, sampling
from diffaug_datasets.numerics import levels as pairs
from diffaug_datasets.numerics.schedule import Schedule, ddim_inverse_timesteps, ddim_timesteps, dpm_timesteps
from diffaug_datasets.numerics.timesteps import img2img_start

TOLERANCE = 1e-5
"""Of the largest value of the state; float32 rounding over 50 steps."""
STEPS_AND_STRENGTHS = [(n, s) for n in (5, 14, 15, 25, 50) for s in (1.0, 0.75, 0.5, 0.2)]


def relative_error(ours, theirs):
    assert ours.dtype == theirs.dtype
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture
def ddim_error(sd15, reference, toy_eps, latents):
    def measure(n, strength, schedule=sd15, **changes):
        xt, start = latents(2, 4, 8, 8), img2img_start(n, strength)
        theirs = reference.ddim(toy_eps, xt, n, start, **changes)
        labels = ddim_timesteps(schedule, n)
        return relative_error(
            sampling.ddim_sample(lambda x, t, i: toy_eps(x, t), xt, schedule, labels, [start] * 2), theirs
        )

    return measure


@pytest.fixture
def inverse_error(sd15, reference, toy_eps, latents):
    def measure(n, schedule=sd15, **changes):
        x0 = latents(2, 4, 8, 8)
        theirs = reference.ddim_inverse(toy_eps, x0, n, **changes)
        labels = ddim_inverse_timesteps(schedule, n)
        return relative_error(inverting.ddim_invert(lambda x, t, i: toy_eps(x, t), x0, schedule, labels), theirs)

    return measure


@pytest.fixture
def dpm_error(sd15, reference, toy_eps, latents):
    def measure(n, strength, schedule=sd15, **changes):
        xt, start = latents(2, 4, 8, 8), img2img_start(n, strength)
        theirs = reference.dpm(toy_eps, xt, n, start, **changes)
        labels = dpm_timesteps(schedule, n)
        return relative_error(
            sampling.dpm_sample(lambda x, t, i: toy_eps(x, t), xt, schedule, labels, [start] * 2), theirs
        )

    return measure


@pytest.mark.parametrize("n", [5, 25, 50])
def test_other_spacings_agree_where_steps_divide_the_schedule(ddim_error, inverse_error, dpm_error, sd15, n):
    """DDIM's 'trailing' labels are T / n apart there; else diffusers steps by T // n and asks at labels beside that."""
    schedule = replace(sd15, spacing="trailing")
    for strength in (1.0, 0.5):
        assert ddim_error(n, strength, schedule, timestep_spacing="trailing") < TOLERANCE
        assert ddim_error(n, strength, schedule) > 100 * TOLERANCE
        for spacing in ("trailing", "leading"):
            other = {"timestep_spacing": spacing, "steps_offset": 1}
            assert dpm_error(n, strength, replace(sd15, spacing=spacing), **other) < TOLERANCE
    assert inverse_error(n, schedule, timestep_spacing="trailing") < TOLERANCE


@pytest.mark.parametrize(("n", "strength"), STEPS_AND_STRENGTHS)
def test_ddim_sampling(ddim_error, n, strength):
    assert ddim_error(n, strength) < TOLERANCE


@pytest.mark.parametrize("n", [1, 5, 25, 50, 200])
def test_ddim_inversion(inverse_error, n):
    assert inverse_error(n) < TOLERANCE


@pytest.mark.parametrize(("n", "strength"), STEPS_AND_STRENGTHS)
def test_dpm_solver(dpm_error, n, strength):
    assert dpm_error(n, strength) < TOLERANCE


@pytest.mark.parametrize("n", [1, 2, 3, 14])
def test_few_dpm_steps_do_not_depend_on_lower_order_final(dpm_error, n):
    for lower_order_final in (True, False):
        assert dpm_error(n, 1.0, lower_order_final=lower_order_final) < TOLERANCE


def test_a_last_level_of_one(sd15, ddim_error, inverse_error):
    to_one = Schedule(sd15.alpha_bar, set_alpha_to_one=True)
    assert ddim_error(25, 1.0, schedule=to_one, set_alpha_to_one=True) < TOLERANCE
    assert inverse_error(25, schedule=to_one, set_alpha_to_one=True) < TOLERANCE


def flip_ddim_sign(monkeypatch):
    step = sampling.step
    monkeypatch.setattr(sampling, "step", lambda kind, xt, eps, level, to: step(kind, xt, -eps, level, to))


def end_ddim_at_one(monkeypatch):
    levels = sampling.falling_levels
    monkeypatch.setattr(sampling, "falling_levels", lambda schedule, labels, end: levels(schedule, labels, pairs.CLEAN))


def shift_start(monkeypatch):
    # private: a fault planted where every sampler takes its start
    checked = sampling.check_start
    monkeypatch.setattr(sampling, "check_start", lambda xt, labels, start: checked(xt, labels, start) + 1)


def shift_inverse_levels(monkeypatch):
    rising = inverting._rising  # private: a fault planted where every inversion takes its levels

    def shifted(schedule, labels):
        known, levels = rising(schedule, labels)
        return known, [*levels[1:], pairs.of_alpha_bar(0.004)]

    monkeypatch.setattr(inverting, "_rising", shifted)


def delay_inverse_label(monkeypatch):
    invert = inverting.ddim_invert

    def delayed(eps, x0, schedule, labels):
        return invert(lambda x, t, i: eps(x, max(t - 40, 0), i), x0, schedule, labels)

    monkeypatch.setattr(inverting, "ddim_invert", delayed)


def swap_inverse_direction(monkeypatch):
    step = inverting.step
    monkeypatch.setattr(inverting, "step", lambda kind, xt, eps, level, to: step(kind, xt, eps, to, level))


def double_second_order(monkeypatch):
    weight = sampling.second_order_weight
    monkeypatch.setattr(sampling, "second_order_weight", lambda *levels: 2 * weight(*levels))


def drop_second_order(monkeypatch):
    monkeypatch.setattr(sampling, "second_order_weight", lambda *levels: 0.0)


def nudge_second_order(monkeypatch):
    weight = sampling.second_order_weight
    monkeypatch.setattr(sampling, "second_order_weight", lambda *levels: 1.02 * weight(*levels))


@pytest.mark.parametrize("plant", [flip_ddim_sign, end_ddim_at_one, shift_start])
def test_ddim_comparison_sees_a_fault(monkeypatch, ddim_error, plant):
    plant(monkeypatch)
    assert ddim_error(25, 0.75) > 10 * TOLERANCE


@pytest.mark.parametrize("plant", [shift_inverse_levels, delay_inverse_label, swap_inverse_direction])
def test_inversion_comparison_sees_a_fault(monkeypatch, inverse_error, plant):
    plant(monkeypatch)
    assert inverse_error(25) > 10 * TOLERANCE


@pytest.mark.parametrize("plant", [double_second_order, drop_second_order, nudge_second_order, shift_start])
def test_dpm_comparison_sees_a_fault(monkeypatch, dpm_error, plant):
    plant(monkeypatch)
    assert dpm_error(25, 0.75) > 10 * TOLERANCE


def test_half_precision_state_is_closer_to_the_truth_than_diffusers(sd15, reference, toy_eps, latents):
    xt = latents(2, 4, 8, 8)
    truth = reference.ddim(toy_eps, xt.double(), 25)
    theirs = reference.ddim(toy_eps, xt.half(), 25)
    ours = sampling.ddim_sample(lambda x, t, i: toy_eps(x, t), xt.half(), sd15, ddim_timesteps(sd15, 25), [0, 0])
    assert ours.dtype == torch.float16
    assert (ours - truth).norm() < (theirs - truth).norm()

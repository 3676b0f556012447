"""Label lists, start steps and the prompt switch: the vectors of the method specification, and diffusers' own."""

import subprocess
import sys
from inspect import unwrap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaug_datasets.numerics.schedule import ddim_inverse_timesteps, ddim_timesteps, dpm_timesteps
from diffaug_datasets.numerics.timesteps import (
    ddim_labels,
    dpm_labels,
    genie_start,
    img2img_start,
    plms_labels,
    suffix_steps,
)


def test_plans_need_no_torch():
    code = "import sys; import diffaug_datasets.numerics.timesteps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_schedule_gives_its_own_length_and_offset(sd15):
    assert ddim_timesteps(sd15, 25) == ddim_labels(25) == ddim_labels(25, 1000, 1)
    assert ddim_inverse_timesteps(sd15, 25) == ddim_labels(25)[::-1]
    assert dpm_timesteps(sd15, 25) == dpm_labels(25)
    assert ddim_labels(4, 100, 0) == (75, 50, 25, 0)


def test_label_lists_of_the_specification(sd15):
    ddim, inverse = ddim_labels(25), ddim_inverse_timesteps(sd15, 25)
    assert (ddim[:2], ddim[-2:]) == ((961, 921), (41, 1))
    assert (inverse[0], inverse[1], inverse[-1]) == (1, 41, 961)
    assert ddim_inverse_timesteps(sd15, 200)[-1] == 996
    dpm25, dpm50 = dpm_labels(25), dpm_labels(50)
    assert (dpm25[:2], dpm25[12:14], dpm25[-2:]) == ((999, 959), (519, 480), (80, 40))
    assert (dpm50[:2], dpm50[-1], dpm50[dpm50.index(519) + 1]) == ((999, 979), 20, 500)


def test_inversion_ends_where_sampling_begins(sd15):
    assert ddim_inverse_timesteps(sd15, 25)[-1] == ddim_timesteps(sd15, 25)[0] == 961
    assert ddim_inverse_timesteps(sd15, 200)[-1] != ddim_timesteps(sd15, 25)[0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 14, 15, 20, 25, 30, 33, 40, 50, 64, 100, 200, 333, 500, 999])
def test_label_lists_equal_diffusers(sd15, reference, n):
    assert ddim_labels(n) == reference.labels("DDIMScheduler", n)
    assert ddim_inverse_timesteps(sd15, n) == reference.labels("DDIMInverseScheduler", n)
    assert dpm_labels(n) == reference.labels("DPMSolverMultistepScheduler", n)


def test_impossible_step_counts_are_refused():
    for labels in (ddim_labels, dpm_labels):
        with pytest.raises(ValueError, match="got 0 inference steps; give 1 to"):
            labels(0)
        with pytest.raises(ValueError, match="got 1001 inference steps; give 1 to"):
            labels(1001)
    with pytest.raises(ValueError, match="got 1000 steps with offset 1: label 1000 lies outside 0 to 999"):
        ddim_labels(1000)
    with pytest.raises(ValueError, match="got 1000 inference steps; give 1 to 999"):
        dpm_labels(1000)


@pytest.mark.parametrize(
    ("n", "strength", "executed", "first_label"),
    [
        (25, 0.1, 2, 80),
        (25, 0.25, 6, 240),
        (25, 0.3, 7, 280),
        (25, 0.5, 12, 480),
        (25, 0.7, 17, 679),
        (25, 0.75, 18, 719),
        (25, 0.8, 20, 799),
        (25, 0.9, 22, 879),
        (25, 1.0, 25, 999),
        (50, 0.3, 15, 300),
        (50, 0.5, 25, 500),
        (50, 0.7, 35, 699),
        (50, 0.8, 40, 799),
        (50, 0.9, 45, 899),
        (50, 1.0, 50, 999),
    ],
)
def test_img2img_start_of_the_specification(n, strength, executed, first_label):
    start = img2img_start(n, strength)
    assert n - start == executed
    assert dpm_labels(n)[start] == first_label


@given(n=st.integers(1, 1000), strength=st.floats(0, 1))
def test_img2img_start_runs_between_one_and_all_steps(n, strength):
    if int(n * strength) == 0:
        with pytest.raises(ValueError, match="runs no step; use a strength of at least"):
            img2img_start(n, strength)
    else:
        assert 0 <= img2img_start(n, strength) < n


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="give a number above 0 and at most 1"):
        img2img_start(25, strength)


@pytest.mark.parametrize(
    ("ratio", "kept", "first_label"),
    [(0.3, 15, 300), (0.5, 25, 500), (0.6, 30, 599), (0.7, 35, 699), (0.8, 40, 799), (0.9, 45, 899), (1.0, 50, 999)],
)
def test_genie_start_of_the_specification(ratio, kept, first_label):
    labels = dpm_labels(50)
    start = genie_start(labels, ratio)
    assert len(labels) - start == kept
    assert labels[start] == first_label


def test_genie_start_at_its_two_bounds():
    assert genie_start((802, 801, 800), 0.8) == 1
    assert genie_start((4999, 4000), 0.9991, num_train_timesteps=5000) == 0
    assert genie_start((4999, 4000), 0.999, num_train_timesteps=5000) == 1


def test_genie_start_refuses_what_keeps_nothing():
    with pytest.raises(ValueError, match=r"noise ratio 0\.01 keeps none of 50 labels"):
        genie_start(dpm_labels(50), 0.01)
    with pytest.raises(ValueError, match="got noise ratio 0; give a number above 0"):
        genie_start(dpm_labels(50), 0)


@pytest.mark.parametrize(
    ("split_ratio", "code", "paper"), [(0, 0, 25), (0.1, 2, 22), (0.3, 7, 17), (0.5, 12, 12), (1, 25, 0)]
)
def test_switch_counts_of_the_specification(split_ratio, code, paper):
    labels = ddim_labels(25)
    assert suffix_steps(labels, split_ratio) == suffix_steps(labels, split_ratio, "code") == code
    assert suffix_steps(labels, split_ratio, "paper") == paper


def test_the_smallest_ratio_keeps_the_two_noisiest_labels():
    labels = ddim_labels(25)
    assert labels[: suffix_steps(labels, 0.1)] == (961, 921)


def test_a_label_on_the_threshold_counts_for_the_code_alone():
    assert suffix_steps((901, 900, 899), 0.1) == 2
    assert suffix_steps((301, 300, 299), 0.3, "paper") == 1


def test_ratios_and_conventions_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"got split ratio 1\.5; give a number from 0 to 1"):
        suffix_steps((961, 1), 1.5)
    with pytest.raises(ValueError, match=r"got split ratio -0\.1"):
        suffix_steps((961, 1), -0.1)
    # Past the run-time type check, which refuses it first: callers outside the tests have none.
    with pytest.raises(ValueError, match="got convention 'v2'; use 'code' or 'paper'"):
        unwrap(suffix_steps)((961, 1), 0.5, "v2")


def diffusers_labels(name: str, n: int, **config: object) -> tuple[int, ...]:
    import diffusers

    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(n)
    labels = tuple(scheduler.timesteps.tolist())
    # Where T / n is no binary fraction, numpy's float range may hold one more point, which would be the label -1.
    return labels[:-1] if labels[-1] == -1 else labels


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("T", "offset"), [(1000, 1), (1000, 0), (500, 1), (20, 0), (1999, 3)])
def test_every_spacing_offset_and_length_equals_diffusers(T, offset, spacing):
    """`set_timesteps` of the three schedulers, wherever its labels lie in the schedule and fall."""
    config = {"num_train_timesteps": T, "steps_offset": offset, "timestep_spacing": spacing}
    for n in [n for n in (2, 3, 4, 7, 10, 19, 25, 30, 50, 64, 99, 100, 250, 333, 490) if n < T]:
        assert ddim_labels(n, T, offset, spacing) == diffusers_labels("DDIMScheduler", n, **config)
        assert dpm_labels(n, T, offset, spacing) == diffusers_labels("DPMSolverMultistepScheduler", n, **config)
        plms = diffusers_labels("PNDMScheduler", n, **config, skip_prk_steps=True)
        assert plms_labels(n, T, offset, spacing) == plms


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_labels_fall_inside_every_schedule(spacing):
    for T in (20, 999, 1000):
        for n in range(2, T - 1):
            for labels in (ddim_labels(n, T, 0, spacing), dpm_labels(n, T, 0, spacing)):
                assert len(labels) == n and labels[0] < T and labels[-1] >= 0
                assert all(a > b for a, b in pairwise(labels))


def test_one_even_label_would_be_the_clean_end():
    with pytest.raises(ValueError, match="got 1 inference steps; give 2 to 1000"):
        ddim_labels(1, spacing="linspace")

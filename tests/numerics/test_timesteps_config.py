"""Scheduler configurations: every key of diffusers' schedulers is honoured, neutral, or refused by its name."""

import inspect
import math
from typing import Any

import diffusers
import pytest

from diffaug_datasets.numerics.timesteps import HONOURED, NEUTRAL, ONLY, SPACINGS, Unfit, read_settings

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def parameters(name: str) -> dict[str, Any]:
    """Key -> default of a scheduler of diffusers, as it saves them."""
    kind = getattr(diffusers, name)
    if hasattr(kind, "_backends"):  # what diffusers has in the place of a scheduler whose libraries are not installed
        pytest.skip(f"{name} needs {kind._backends}")
    found = inspect.signature(kind.__init__).parameters.items()
    return {key: p.default for key, p in found if key != "self" and p.kind is not p.VAR_KEYWORD}


@pytest.mark.parametrize("name", sorted(SPACINGS))
def test_all_keys_of_diffusers_are_known_and_its_defaults_are_read(name: str) -> None:
    saved = parameters(name)
    assert saved.keys() <= HONOURED | NEUTRAL | ONLY.keys()
    # Stable Diffusion's pipelines switch clipping off, and say so; files of theirs hold that.
    settings = read_settings(
        {"_class_name": name, **saved, **({"clip_sample": False} if "clip_sample" in saved else {})}
    )
    assert (settings.beta_start, settings.num_train_timesteps) == (saved["beta_start"], 1000)
    assert settings.spacing == saved.get("timestep_spacing") and SPACINGS[name] == (settings.spacing or SPACINGS[name])


CHANGES_IMAGES: dict[str, Any] = {
    **dict.fromkeys(("clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas"), True),
    **dict.fromkeys(("use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"), True),
    "flow_shift": 3.0,
    "lambda_min_clipped": -5.1,
    "final_sigmas_type": "sigma_min",
    "shift_terminal": 0.1,
    "timestep_type": "continuous",
    "sigma_min": 0.02,
    "sigma_max": 14.6,
    "variance_type": "learned_range",
}


def test_every_key_with_an_only_value_is_tried() -> None:
    assert ONLY.keys() == CHANGES_IMAGES.keys()


@pytest.mark.parametrize("key", CHANGES_IMAGES)
def test_what_no_sampler_here_follows_is_refused_by_name(key: str) -> None:
    for usual in ONLY[key]:
        read_settings({**BETAS, key: usual})
    with pytest.raises(Unfit, match=f"has a scheduler with {key} .*, which no sampler here follows"):
        read_settings({**BETAS, key: CHANGES_IMAGES[key]})


def test_few_step_models_are_told_apart() -> None:
    ancestral = read_settings(
        {**BETAS, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    )
    assert ancestral.is_few_step and ancestral.is_ancestral and ancestral.ends_clean
    lcm = read_settings({**BETAS, "_class_name": "LCMScheduler", "original_inference_steps": 40})
    assert lcm.original_steps == 40 and lcm.timeline.labels("lcm", 4) == (999, 749, 499, 249)
    assert read_settings({**BETAS, "_class_name": "DDIMScheduler"}).original_steps is None


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "zero SNR": ({"rescale_betas_zero_snr": True}, "rescales its betas to zero terminal SNR, where eps says nothing"),
    "unknown key": ({"sharpness": 2}, "has an unknown key 'sharpness' in its scheduler"),
    "unknown class": ({"_class_name": "MyScheduler"}, "has a scheduler of the class 'MyScheduler'"),
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "of the class 'FlowMatchEulerDiscreteScheduler'"),
    "TCD": ({"_class_name": "TCDScheduler", "original_inference_steps": 50}, r"for a few steps \(TCDScheduler"),
    "LCM": (
        {"_class_name": "LCMScheduler", "original_inference_steps": 2000},
        "inference_steps 2000 for 1000 timesteps",
    ),
    "scaling": (
        {"_class_name": "LCMScheduler", "timestep_scaling": 0},
        "timestep_scaling 0, expected a number above 0",
    ),
    "was LCM": ({"original_inference_steps": 50}, "its scheduler has original_inference_steps"),
    "spacing": ({"timestep_spacing": "logarithmic"}, "timestep_spacing 'logarithmic', expected 'leading', 'trailing'"),
    "prediction": (
        {"prediction_type": ["epsilon"]},
        r"predicts \['epsilon'\], expected epsilon, v_prediction or sample",
    ),
    "rule": ({"beta_schedule": "laplace"}, r"got beta schedule 'laplace'; use 'linear', 'scaled_linear' or"),
    "a text": ({"beta_start": "0.1"}, "beta_start '0.1', expected a number between 0 and 1"),
    "not a number": ({"beta_end": math.nan}, "beta_end nan, expected a number between 0 and 1"),
    "a fraction": ({"num_train_timesteps": 1000.5}, "num_train_timesteps 1000.5, expected a whole number from 2"),
    "far too many": ({"num_train_timesteps": 10**12}, "expected a whole number from 2 to 100,000"),
    "below 0": ({"steps_offset": -1}, "steps_offset -1, expected a whole number from 0"),
    "truth": ({"set_alpha_to_one": 1}, "set_alpha_to_one 1, expected true or false"),
    "betas": ({"trained_betas": [0.1, "x"]}, "whose trained_betas make no schedule, expected a list of numbers"),
    "few betas": ({"trained_betas": [0.1, 0.2]}, "trained_betas of 2 numbers for 1000 timesteps, expected one number"),
}


@pytest.mark.parametrize("case", ODD)
def test_refusals_name_the_key(case: str) -> None:
    changes, expected = ODD[case]
    with pytest.raises(Unfit, match=expected):
        read_settings({"_class_name": "DDIMScheduler", **BETAS, **changes})


def test_a_schedule_without_betas_is_refused() -> None:
    with pytest.raises(Unfit, match="has a EDMEulerScheduler without betas"):
        read_settings({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002})


@pytest.mark.parametrize(
    ("written_by", "said", "expected"),
    [
        ("DDIMScheduler", "leading", "leading"),
        ("DDIMScheduler", "trailing", "trailing"),
        ("PNDMScheduler", "linspace", "linspace"),
        ("EulerDiscreteScheduler", "linspace", "linspace"),
        ("DPMSolverMultistepScheduler", "leading", "leading"),
        (None, "leading", "leading"),
        ("DDIMScheduler", None, None),
    ],
)
def test_a_spacing_that_is_said_counts(written_by: str | None, said: str | None, expected: str | None) -> None:
    assert read_settings({"_class_name": written_by, **BETAS, "timestep_spacing": said}).spacing == expected

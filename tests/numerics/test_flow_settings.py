"""Flows from a scheduler's configuration: the same sigmas as diffusers' own schedulers, and every other key refused."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from diffaug_datasets.numerics.flow import FittedShift, FlowSchedule
from diffaug_datasets.numerics.flow_settings import read_flow
from diffaug_datasets.numerics.timesteps import Unfit

EULER = "FlowMatchEulerDiscreteScheduler"
SOLVER = "DPMSolverMultistepScheduler"


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 9000])
@pytest.mark.parametrize("n", [4, 10, 50, 200])
def test_the_shift_of_flux_2_is_its_pipeline_s(tokens: int, n: int) -> None:
    assert FittedShift().mu(tokens, n) == pytest.approx(compute_empirical_mu(tokens, n), rel=1e-6)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_the_sigmas_of_the_solver_are_its_own(n: int) -> None:
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(n)
    ours = read_flow({**theirs.config, "_class_name": SOLVER}).sigmas(n)
    assert torch.tensor([*ours, 0.0]) == pytest.approx(theirs.sigmas, abs=1e-6)


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"shift": 1.15, "num_train_timesteps": 500}])
def test_a_written_configuration_gives_its_scheduler_s_sigmas(config: dict[str, float]) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(7)
    ours = read_flow({**theirs.config, "_class_name": EULER})
    assert torch.tensor([*ours.sigmas(7), 0.0]) == pytest.approx(theirs.sigmas, abs=1e-6)
    assert torch.tensor(ours.labels(7)) == pytest.approx(theirs.timesteps, abs=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_a_dynamic_shift_is_read_with_all_its_numbers(kind: str, terminal: float | None) -> None:
    said = {"base_shift": 0.4, "max_shift": 0.9, "base_image_seq_len": 64, "max_image_seq_len": 8192}
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal, **said
    )
    mu = 0.4 + (0.9 - 0.4) * (1024 - 64) / (8192 - 64)
    theirs.set_timesteps(sigmas=[1 - i / 6 for i in range(6)], mu=mu)
    ours = read_flow({**theirs.config, "_class_name": EULER}, grid="even", tokens=1024)
    assert torch.tensor([*ours.sigmas(6), 0.0]) == pytest.approx(theirs.sigmas, abs=1e-6)


REFUSED = {
    "class": ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "scheduler of the class 'FlowMatchHeunDisc"),
    "betas": ({"_class_name": SOLVER}, "of the class 'DPMSolverMultistepScheduler'.*use_flow_sigmas"),
    "karras": ({"use_karras_sigmas": True}, "use_karras_sigmas True, which no sampler here follows.*False there"),
    "inverted": ({"invert_sigmas": True}, "invert_sigmas True"),
    "stochastic": ({"stochastic_sampling": True}, "stochastic_sampling True"),
    "one for false": ({"invert_sigmas": 0}, "invert_sigmas 0"),
    "unknown": ({"sharpness": 3}, "unknown key 'sharpness'"),
    "shift of text": ({"shift": "3"}, "shift '3'.*a number"),
    "shift nothing": ({"shift": 0}, "shift 0.*above 0"),
    "steps": ({"num_train_timesteps": 1}, "num_train_timesteps 1.*whole number"),
    "kind": ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "time_shift_type 'cubic'"),
    "dynamic of text": ({"use_dynamic_shifting": "yes"}, "use_dynamic_shifting 'yes'"),
    "lengths": ({"use_dynamic_shifting": True, "base_image_seq_len": 4096}, "the second above the first"),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 1.0}, "shift_terminal 1.0"),
    "terminal alone": ({"shift_terminal": 0.1}, "shift_terminal and a fixed shift"),
    "dynamic solver": (
        {"_class_name": SOLVER, "use_flow_sigmas": True, "use_dynamic_shifting": True},
        "use_dynamic_shifting, expected a fixed flow_shift",
    ),
    "final": ({"_class_name": SOLVER, "use_flow_sigmas": True, "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_sampler_follows_is_refused_in_a_sentence(case: str) -> None:
    config, sentence = REFUSED[case]
    with pytest.raises(Unfit, match=sentence):
        read_flow({"_class_name": EULER, **config})


def test_what_is_said_of_a_solver_that_is_replaced_changes_nothing() -> None:
    neutral = {"solver_order": 3, "beta_start": 0.1, "lower_order_final": False, "trained_betas": None}
    config = {"_class_name": SOLVER, "use_flow_sigmas": True, "flow_shift": 3.0, **neutral}
    assert read_flow(config) == FlowSchedule(shift=3.0, grid="solver")

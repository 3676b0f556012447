"""The samplers as tables, against diffusers' own schedulers, and each row against itself alone."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from diffaug_datasets.numerics.multistep import Multistep, combinations
from diffaug_datasets.numerics.schedule import Schedule, sampler_timesteps

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "dpm": lambda: DPMSolverMultistepScheduler(**BETAS),
    "plms": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
}
SCHEDULE = Schedule.from_betas("scaled_linear", 0.00085, 0.012)
NOISE = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def said(x: torch.Tensor, t: float) -> torch.Tensor:
    return torch.tanh(1.3 * x + t / 1000)


def ours(sampler: Any, n: int, xt: torch.Tensor, starts: list[int]) -> torch.Tensor:
    labels = sampler_timesteps(SCHEDULE, sampler, n)
    return Multistep(sampler, SCHEDULE, labels, starts, None, xt.device).sample(lambda x, t, _: said(x, t), xt)


@pytest.mark.parametrize("n", [5, 14, 25])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_it_is_diffusers_scheduler(sampler: str, n: int) -> None:
    scheduler = SCHEDULERS[sampler]()
    scheduler.set_timesteps(n)
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(said(x, float(t)), t, x).prev_sample
    assert torch.allclose(ours(sampler, n, NOISE, [0] * 4), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_a_row_that_starts_later_is_what_it_is_alone(sampler: str) -> None:
    starts = [0, 1, 3, 6]
    together = ours(sampler, 10, NOISE, starts)
    for j, start in enumerate(starts):
        assert torch.allclose(together[j], ours(sampler, 10, NOISE[j : j + 1], [start])[0], rtol=1e-5, atol=1e-5)


def test_a_row_that_waits_is_untouched_to_the_bit() -> None:
    terms = combinations("plms", SCHEDULE, tuple(sampler_timesteps(SCHEDULE, "plms", 4)), 3)
    assert terms[:3] == ({"state": 1.0},) * 3


def test_a_start_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="give an index in"):
        combinations("ddim", SCHEDULE, (500.0, 1.0), 2)

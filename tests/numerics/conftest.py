"""Fixtures of the numerics tests: shapes and dtypes checked at run time, and diffusers as the reference.

Nothing here but the `sd15` fixture knows the code under test; the reference side is torch and diffusers alone.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import install_import_hook
from torch import Tensor

# The tower lets an int stand for a float, as mypy does: callers may write strength=1.
install_import_hook("diffaug_datasets.numerics", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

SD15 = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = SD15 | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

ReferenceEps = Callable[[Tensor, int], Tensor]


def run_ddim(eps: ReferenceEps, xt: Tensor, n: int, start: int = 0, **changes: object) -> Tensor:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**DDIM | changes)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps[start:]:
        xt = scheduler.step(eps(xt, int(t)), t, xt).prev_sample
    return xt


def run_ddim_inverse(eps: ReferenceEps, x0: Tensor, n: int, **changes: object) -> Tensor:
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(**DDIM | changes)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        x0 = scheduler.step(eps(x0, int(t)), t, x0).prev_sample
    return x0


def run_dpm(eps: ReferenceEps, xt: Tensor, n: int, start: int = 0, **changes: object) -> Tensor:
    """As diffusers' img2img pipelines drive it: the later labels, and the begin index set to the first of them."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SD15 | changes)
    scheduler.set_timesteps(n)
    scheduler.set_begin_index(start * scheduler.order)
    for t in scheduler.timesteps[start * scheduler.order :]:
        xt = scheduler.step(eps(xt, int(t)), t, xt, return_dict=False)[0]
    return xt


def run_plms(eps: ReferenceEps, xt: Tensor, n: int, start: int = 0) -> Tensor:
    """As diffusers' img2img pipelines drive it: the later labels of the list, from the scheduler's first step on."""
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(**SD15 | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1})
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps[start:]:
        xt = scheduler.step(eps(xt, int(t)), t, xt).prev_sample
    return xt


def list_labels(name: str, n: int) -> tuple[int, ...]:
    import diffusers

    known = {"DPMSolverMultistepScheduler": SD15, "PNDMScheduler": SD15 | {"skip_prk_steps": True, "steps_offset": 1}}
    scheduler = getattr(diffusers, name)(**known.get(name, DDIM))
    scheduler.set_timesteps(n)
    return tuple(scheduler.timesteps.tolist())


def alphas_cumprod(kind: str, beta_start: float, beta_end: float) -> Tensor:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule=kind, beta_start=beta_start, beta_end=beta_end).alphas_cumprod


def noised(name: str, x0: Tensor, eps: Tensor, labels: tuple[int, ...]) -> Tensor:
    import diffusers

    scheduler = getattr(diffusers, name)(**(SD15 if name.startswith("DPM") else DDIM))
    scheduler.set_timesteps(25)
    return scheduler.add_noise(x0, eps, torch.tensor(labels))


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """diffusers' own schedulers, driven step by step."""
    return SimpleNamespace(
        ddim=run_ddim,
        ddim_inverse=run_ddim_inverse,
        dpm=run_dpm,
        plms=run_plms,
        labels=list_labels,
        alphas_cumprod=alphas_cumprod,
        add_noise=noised,
    )


@pytest.fixture(scope="session")
def toy_eps() -> ReferenceEps:
    """A nonlinear eps of additions, multiplications and divisions only, so that its bits ignore a row's position."""

    def eps(xt: Tensor, t: int) -> Tensor:
        return (0.4 + t / 2000) * xt + xt / (1 + xt * xt) - t / 5000

    return eps


@pytest.fixture(scope="session")
def latents() -> Callable[..., Tensor]:
    """Standard normal latents of a given shape and seed."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture(scope="session")
def sd15():  # type: ignore[no-untyped-def]  # imported late, so that the hook above sees the module
    """The schedule of Stable Diffusion 1.5, by the code under test."""
    from diffaug_datasets.numerics.schedule import Schedule

    return Schedule.from_betas("scaled_linear", 0.00085, 0.012)

"""Noise levels: alpha_bar by timestep label, the labels that a sampler visits, and from a network's output to eps.

A `Process` is what samplers need of a schedule: the variance-preserving `Schedule` here, or a `FlowSchedule`. What the
network predicts may be eps, v, x0 or a flow (`levels`), and guidance combines two predictions. Numbers per row meet a
batch of latents in the dtype that `widened` and `per_row` give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, Shaped
from torch import Tensor

from diffaug_datasets.numerics.flow import FlowSchedule, FlowTimeline
from diffaug_datasets.numerics.levels import Level, Prediction, of_alpha_bar
from diffaug_datasets.numerics.timesteps import Spacing, Timeline, ddim_labels, dpm_labels, plms_labels


def widened(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in the dtype that steps compute in: float64 stays, everything narrower becomes float32.

    A step is a difference of two nearly equal multiples; in half precision that difference is mostly rounding.
    """
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def per_row(
    values: Sequence[float] | Tensor, like: Float[Tensor, "b ..."], dtype: torch.dtype | None = None
) -> Shaped[Tensor, "b ..."]:
    """One value per row as [b 1 1 ...], to broadcast over `like` [b ...], in its dtype unless one is named.

    Raises:
        ValueError: there are not exactly b values.
    """
    column = torch.as_tensor(values, dtype=dtype or like.dtype, device=like.device)
    if column.shape != like.shape[:1]:
        raise ValueError(f"got values of shape {tuple(column.shape)}; give one for each of {like.shape[0]} rows")
    return column.reshape(-1, *[1] * (like.ndim - 1))


@runtime_checkable
class Process(Protocol):
    """What a sampler needs of a schedule."""

    @property
    def num_train_timesteps(self) -> int:
        """T."""

    @property
    def prediction(self) -> Prediction:
        """What a sampler's network says of a state."""

    @property
    def end(self) -> Level:
        """Where sampling ends and inversion begins."""

    @property
    def lowest_label(self) -> float:
        """The label of a state at `end`."""

    @property
    def is_noise_scaled(self) -> bool:
        """Whether sampling starts from s eps rather than eps."""

    def pair(self, t: float) -> Level:
        """The level at label t."""


# eq=False: comparing tensors gives no single truth value, so a generated __eq__ would raise; identity it is.
@dataclass(frozen=True, eq=False)
class Schedule:
    """The variance-preserving forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).

    Raises:
        ValueError: alpha_bar is not a CPU float64 vector that falls strictly inside (0, 1); only the last may be 0, and
            that not where eps is predicted.
    """

    alpha_bar: Float64[Tensor, " T"]
    """Cumulative product of alpha by timestep label 0..T-1; float64, on the CPU, in (0, 1), falling.

    The last one is 0 where the betas were rescaled to zero terminal SNR."""
    steps_offset: int = 1
    """Added to every 'leading' label; 1 for Stable Diffusion 1.x."""
    set_alpha_to_one: bool = False
    """Whether the level below the last label is 1.0 rather than alpha_bar[0]; False for Stable Diffusion 1.x."""
    spacing: Spacing | None = None
    """How labels are laid out; None = as each solver has it: 'leading' for DDIM and PLMS, 'linspace' for DPM."""
    prediction: Prediction = "epsilon"
    """What a sampler's network says of a state."""
    is_noise_scaled: bool = False
    """Whether sampling starts from s eps rather than eps, as diffusers' Euler schedulers do off 'leading' labels."""
    original_steps: int | None = None
    """Steps of the sampler that a consistency model was distilled from; None = it is none."""
    timestep_scaling: float = 10.0
    """By which a consistency model's labels are multiplied in its boundary condition."""

    def __post_init__(self) -> None:
        levels = self.alpha_bar
        if levels.ndim != 1 or levels.dtype != torch.float64 or levels.device.type != "cpu":
            got = f"{levels.dtype} {tuple(levels.shape)} on {levels.device}"
            raise ValueError(f"got alpha_bar as {got}; give a float64 vector on the CPU")
        has_signal = bool((levels[:-1] > 0).all()) and float(levels[-1]) >= 0
        if not (has_signal and bool((levels < 1).all() and (levels.diff() < 0).all())):
            raise ValueError("alpha_bar must fall strictly and lie in (0, 1); check the betas it was built from")
        if float(levels[-1]) == 0 and self.prediction == "epsilon":
            raise ValueError("alpha_bar must not end at 0 where eps is predicted: there it says nothing of the image")

    @classmethod
    def from_betas(
        cls,
        kind: str,
        beta_start: float,
        beta_end: float,
        num_train_timesteps: int = 1000,
        *,
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        spacing: Spacing | None = None,
        prediction: Prediction = "epsilon",
        is_zero_snr: bool = False,
    ) -> "Schedule":
        """The schedule of a beta rule: 'linear', 'scaled_linear' or 'squaredcos_cap_v2' (which ignores start and end).

        Follows diffusers' `beta_schedule` for the betas, in float32 as there; the product runs in float64, so alpha_bar
        rounds to diffusers' float32 `alphas_cumprod`. `is_zero_snr`: see `without_terminal_signal`.

        Raises:
            ValueError: the kind is unknown, or the betas give no falling alpha_bar in (0, 1).
        """
        alphas = 1.0 - _betas(kind, beta_start, beta_end, num_train_timesteps)
        if is_zero_snr:
            alphas = without_terminal_signal(alphas)
        levels = torch.cumprod(alphas.double(), dim=0)
        return cls(levels, steps_offset, set_alpha_to_one, spacing, prediction)

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of labels."""
        return len(self.alpha_bar)

    @property
    def final_alpha_bar(self) -> float:
        """The level below the lowest label: where DDIM sampling ends and DDIM inversion begins."""
        return 1.0 if self.set_alpha_to_one else self.level(0)

    @property
    def end(self) -> Level:
        """The same as a pair."""
        return of_alpha_bar(self.final_alpha_bar)

    @property
    def lowest_label(self) -> float:
        """The label of a state at `end`, as near as there is one."""
        return 0

    def pair(self, t: float) -> Level:
        """(sqrt(alpha_bar), sqrt(1 - alpha_bar)) at label t, a whole number. Raises ValueError as `level`."""
        if t != int(t):
            raise ValueError(f"got timestep {t}; labels of this schedule are whole numbers")
        return of_alpha_bar(self.level(int(t)))

    def level(self, t: int) -> float:
        """alpha_bar at label t.

        Raises:
            ValueError: t lies outside 0..T-1 (a negative index would silently wrap to the noisy end).
        """
        if not 0 <= t < self.num_train_timesteps:
            raise ValueError(f"got timestep {t}; labels run from 0 to {self.num_train_timesteps - 1}")
        return float(self.alpha_bar[t])


def without_terminal_signal(alphas: Float32[Tensor, " T"]) -> Float32[Tensor, " T"]:
    """1 - beta by label, rescaled so that their product ends at 0: sqrt(alpha_bar) is shifted by its last value and
    stretched to its first.

    Implements algorithm 1 of Lin et al. 2023 (arXiv 2305.08891), in float32 as diffusers' `rescale_zero_terminal_snr`.
    """
    roots = alphas.cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    squares = ((roots - last) * (first / (first - last))) ** 2
    return 1.0 - (1.0 - torch.cat([squares[:1], squares[1:] / squares[:-1]]))


def _betas(kind: str, beta_start: float, beta_end: float, n: int) -> Float32[Tensor, " n"]:
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, n, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":
        return _cosine_betas(n)
    raise ValueError(f"got beta schedule {kind!r}; use 'linear', 'scaled_linear' or 'squaredcos_cap_v2'")


def _cosine_betas(n: int, shift: float = 0.008, largest: float = 0.999) -> Float32[Tensor, " n"]:
    """Implements Eq. 17 of Nichol & Dhariwal 2021 (arXiv 2102.09672) with their cap on beta."""
    signal = [math.cos((i / n + shift) / (1 + shift) * math.pi / 2) ** 2 for i in range(n + 1)]
    betas = [min(1 - after / before, largest) for before, after in pairwise(signal)]
    return torch.tensor(betas, dtype=torch.float32)


def sampler_timesteps(process: Process, sampler: str, n: int) -> tuple[float, ...]:
    """The n falling labels of a sampler ('plms' has n + 1) on a process of either kind.

    Raises:
        ValueError: the process cannot be sampled in so many steps, or not by this sampler.
    """
    return timeline_of(process).labels(sampler, n)


def timeline_of(process: Process) -> Timeline | FlowTimeline:
    """The labels of a process, as a plan knows them."""
    if isinstance(process, FlowSchedule):
        return FlowTimeline(process)
    if not isinstance(process, Schedule):
        raise TypeError(f"got a process of {type(process)}, expected a Schedule or a FlowSchedule")
    steps, offset = process.num_train_timesteps, process.steps_offset
    return Timeline(steps, offset, process.spacing, process.original_steps)


def ddim_timesteps(schedule: Schedule, n: int) -> tuple[int, ...]:
    """The n falling labels of DDIM sampling on this schedule; see `timesteps.ddim_labels`."""
    return ddim_labels(n, schedule.num_train_timesteps, schedule.steps_offset, schedule.spacing or "leading")


def ddim_inverse_timesteps(schedule: Schedule, n: int) -> tuple[int, ...]:
    """The n rising labels of DDIM inversion on this schedule: the labels of sampling upwards.

    Follows diffusers' `DDIMInverseScheduler`, which has no 'linspace' spacing.
    """
    return ddim_timesteps(schedule, n)[::-1]


def dpm_timesteps(schedule: Schedule, n: int) -> tuple[int, ...]:
    """The n falling labels of DPM-Solver++ on this schedule; see `timesteps.dpm_labels`."""
    return dpm_labels(n, schedule.num_train_timesteps, schedule.steps_offset, schedule.spacing or "linspace")


def plms_timesteps(schedule: Schedule, n: int) -> tuple[int, ...]:
    """The n + 1 falling labels of PLMS on this schedule; see `timesteps.plms_labels`."""
    return plms_labels(n, schedule.num_train_timesteps, schedule.steps_offset, schedule.spacing or "leading")


def add_noise(
    schedule: Process, x0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], t: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """A draw of q(x_t | x_0) = a x0 + s eps, each row at its own label t.

    a = sqrt(alpha_bar_t), s = sqrt(1 - alpha_bar_t) on a variance-preserving schedule, Eq. 4 of Ho et al. 2020 (arXiv
    2006.11239); a = 1 - s on a flow. Returns x0's dtype.

    Raises:
        ValueError: there is not one label per row, or a label lies outside 0..T-1.
    """
    levels = [schedule.pair(label) for label in t]
    clean = widened(x0)
    signal, noise = (per_row([level[i] for level in levels], clean) for i in (0, 1))
    return (signal * clean + noise * widened(eps)).to(x0.dtype)


def guided(
    eps_uncond: Float[Tensor, "b c h w"], eps_cond: Float[Tensor, "b c h w"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance, eps_uncond + w (eps_cond - eps_uncond), each row with its own scale w >= 0.

    Follows diffusers' convention, in which w = 1 means no guidance and w = 0 the unconditional prediction; Eq. 6 of
    Ho & Salimans (arXiv 2207.12598) writes 1 + w for this w. Departs from diffusers' pipelines for w < 1, which they
    take as 1. Returns eps_cond's dtype.

    Raises:
        ValueError: there is not one scale per row.
    """
    uncond, cond = widened(eps_uncond), widened(eps_cond)
    w = per_row(scale, cond)
    # w = 1 gives eps_cond to the bit, so that a caller may leave out the unconditional pass for such rows.
    return torch.where(w == 1, cond, uncond + w * (cond - uncond)).to(eps_cond.dtype)


def eps_from_v(
    v: Float[Tensor, "b c h w"], xt: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """eps of a v-prediction, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0, at level alpha_bar_t in [0, 1].

    Implements the v of Salimans & Ho 2022 (arXiv 2202.00512), solved for eps:
    eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t. Returns v's dtype.
    """
    eps = math.sqrt(alpha_bar_t) * widened(v) + math.sqrt(1 - alpha_bar_t) * widened(xt)
    return eps.to(v.dtype)


def eps_from_x0(
    x0: Float[Tensor, "b c h w"], xt: Float[Tensor, "b c h w"], alpha_bar_t: float
) -> Float[Tensor, "b c h w"]:
    """eps of a predicted x0 (diffusers' prediction type 'sample') at level alpha_bar_t in [0, 1).

    Implements q(x_t | x_0) solved for eps. Returns x0's dtype.

    Raises:
        ValueError: alpha_bar_t is 1, where x_t holds no noise to recover.
    """
    if alpha_bar_t >= 1:
        raise ValueError(f"got alpha_bar {alpha_bar_t}; eps is undefined without noise, give a level below 1")
    eps = (widened(xt) - math.sqrt(alpha_bar_t) * widened(x0)) / math.sqrt(1 - alpha_bar_t)
    return eps.to(x0.dtype)

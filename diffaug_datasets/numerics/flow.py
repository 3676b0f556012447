"""Rectified flow: x = (1 - sigma) x0 + sigma eps, and the falling sigmas that a sampler visits; without torch.

A label is T sigma, which is what networks of this kind are told of time, and need not be whole. Follows diffusers'
`FlowMatchEulerDiscreteScheduler` and, in which sigmas are asked for before they are shifted, its pipelines: those of
Stable Diffusion 3 let the scheduler choose, those of FLUX ask for n even ones from 1 to 1 / n. The grid 'solver' is
that of its `DPMSolverMultistepScheduler` with use_flow_sigmas, which begins just below 1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffaug_datasets.numerics.levels import CLEAN, Level, Prediction, of_sigma

Grid = Literal["scheduler", "even", "solver"]

SAMPLERS = ("euler", "dpm", "ddim")
"""Those that go along a flow; on it 'euler' and 'ddim' are one."""


def sigma_of_ratio(ratio: float) -> float:
    """The sigma at which a flow has the signal-to-noise ratio that Stable Diffusion 1.x has at label int(1000 r).

    Its betas are 1000 squares of even numbers from sqrt(0.00085) to sqrt(0.012). 0.5, 0.6, 0.7, 0.8, 0.9 give 0.618,
    0.696, 0.769, 0.836, 0.893.
    """
    roots = np.linspace(0.00085**0.5, 0.012**0.5, 1000)[: int(1000 * ratio) + 1]
    kept = float(np.prod(1 - roots**2))
    return 1 / (1 + math.sqrt(kept / (1 - kept)))


@dataclass(frozen=True)
class DynamicShift:
    """A shift that grows with the number of tokens of an image, as in FLUX.1: mu is linear between two points."""

    base_tokens: int = 256
    most_tokens: int = 4096
    base: float = 0.5
    most: float = 1.15
    kind: Literal["exponential", "linear"] = "exponential"
    terminal: float | None = None
    """The sigma at which stretched schedules end before 0; None = not stretched."""

    def mu(self, tokens: int, n: int = 0) -> float:  # noqa: ARG002 (the number of steps counts in FLUX.2 alone)
        """The shift's parameter for an image of so many tokens, sampled in n steps."""
        slope = (self.most - self.base) / (self.most_tokens - self.base_tokens)
        return tokens * slope + self.base - slope * self.base_tokens

    def shifted(self, sigma: float, tokens: int, n: int = 0) -> float:
        """Sigma in (0, 1], moved towards noise."""
        mu = self.mu(tokens, n)
        at = math.exp(mu) if self.kind == "exponential" else mu
        return at / (at + (1 / sigma - 1))


@dataclass(frozen=True)
class FittedShift(DynamicShift):
    """A shift that depends on the number of steps too, as in FLUX.2: mu was fitted by a line in the number of tokens at
    10 steps and at 200, and lies between both; from 4301 tokens on the second holds for any number of steps.

    The numbers are those of `compute_empirical_mu` in diffusers' FLUX.2 pipelines.
    """

    def mu(self, tokens: int, n: int = 0) -> float:
        """The shift's parameter for an image of so many tokens, sampled in n steps."""
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return at_200
        at_10 = 8.73809524e-05 * tokens + 1.89833333
        return at_200 + (at_200 - at_10) / 190 * (n - 200)


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a rectified flow; `num_train_timesteps` is T, `tokens` the length of an image's sequence.

    Raises:
        ValueError: the shift is not above 0.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    dynamic: DynamicShift | None = None
    grid: Grid = "scheduler"
    tokens: int = 0
    prediction: Prediction = "flow_prediction"

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"got shift {self.shift}; give a number above 0")

    @property
    def is_noise_scaled(self) -> bool:
        """Whether sampling starts from s eps rather than eps; it starts from eps."""
        return False

    @property
    def end(self) -> Level:
        """Where sampling ends and inversion begins: no noise."""
        return CLEAN

    @property
    def lowest_label(self) -> float:
        """The label of a state at `end`."""
        return 0.0

    def pair(self, t: float) -> Level:
        """The level at label t = T sigma.

        Raises:
            ValueError: t lies outside 0..T.
        """
        if not 0 <= t <= self.num_train_timesteps:
            raise ValueError(f"got timestep {t}; labels of a flow run from 0 to {self.num_train_timesteps}")
        return of_sigma(t / self.num_train_timesteps)

    def sigmas(self, n: int) -> tuple[float, ...]:
        """The n falling sigmas that steps begin at, without the 0 where the last one ends.

        Raises:
            ValueError: n is outside 1..T.
        """
        if not 1 <= n <= self.num_train_timesteps:
            raise ValueError(f"got {n} inference steps; give 1 to {self.num_train_timesteps}")
        shifted = [self._shifted(float(sigma), n) for sigma in self._asked(n)]
        terminal = self.dynamic.terminal if self.dynamic else None
        if terminal is None or n == 1:  # one step begins at pure noise, which no stretch moves
            return tuple(shifted)
        stretch = (1 - shifted[-1]) / (1 - terminal)
        return tuple(1 - (1 - sigma) / stretch for sigma in shifted)

    def labels(self, n: int) -> tuple[float, ...]:
        """The n falling labels; see `sigmas`."""
        return tuple(self.num_train_timesteps * sigma for sigma in self.sigmas(n))

    def _asked(self, n: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """The n sigmas before they are shifted."""
        least = 1 / self.num_train_timesteps
        if self.grid == "solver":
            return 1.0 - np.linspace(1.0, least, n + 1)[:0:-1]
        if self.grid == "even":
            return np.linspace(1.0, 1 / n, n)
        # The sigma of the first training step is shifted by diffusers when the scheduler is made and again when used.
        return np.linspace(1.0, least if self.dynamic else self._shifted(least, n), n)

    def _shifted(self, sigma: float, n: int) -> float:
        if self.dynamic:
            return self.dynamic.shifted(sigma, self.tokens, n)
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


@dataclass(frozen=True)
class FlowTimeline:
    """The labels of a flow, as a plan knows them (`timesteps.Labels`)."""

    schedule: FlowSchedule

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.schedule.num_train_timesteps

    def labels(self, sampler: str, n: int) -> tuple[float, ...]:
        """The n falling labels of any sampler of flows; 'ddim', of methods that name no other, means Euler's method.

        Raises:
            ValueError: the sampler needs evenly spaced labels, or n is outside 1..T.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"{sampler} is no sampler of a flow; use {' or '.join(SAMPLERS)}")
        return self.schedule.labels(n)

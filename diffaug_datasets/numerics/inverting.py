"""From data to noise and back, without guidance or noise of its own: four ways, three of which come back better.

`ddim` evaluates the network on the state before a step with the label behind it, so it is exact to first order only.
`midpoint` takes half a step first and is exact to second order, at twice the calls. `bdia` and `edict` are exact in
algebra whatever the network says, because their state is a pair of latents [2 b c h w] and each half is moved by what
the network says of the other; they are carried in float64, and the network sees the latents' own dtype.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.inverters import Inverter
from diffaug_datasets.numerics.levels import Level, Prediction, data_weights, noise_weights, step_weights
from diffaug_datasets.numerics.sampling import Network, step
from diffaug_datasets.numerics.schedule import Process, Schedule, widened

Solver = Literal["euler", "midpoint"]

MIXING = 0.93
"""p of EDICT, as its authors take it."""


def ddim_invert(
    network: Network,
    x0: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[float],
    solver: Solver = "euler",
) -> Float[Tensor, "b c h w"]:
    """Latents at the level of the last label, from x0 along rising labels.

    `euler`: step i takes the state from the level of the label before (the process's end before the first) to
    timesteps[i], with the network asked at timesteps[i]; follows diffusers' `DDIMInverseScheduler` and implements Eq. 4
    of Diff-II, corrected: x_to = sqrt(a_to / a_from) (x_from - sqrt(1 - a_from) eps) + sqrt(1 - a_to) eps, where the
    paper's v1 prints the factor as sqrt(a_t) / sqrt(a_t - 1). Sampling returns to x0 only if both lists hold the same
    labels and the network ignores the state. `midpoint`: see `midpoint_step`.

    Raises:
        ValueError: labels do not rise.
    """
    labels, levels = _rising(process, timesteps)
    state = widened(x0)
    for i in range(len(timesteps)):
        if solver == "midpoint":
            state = midpoint_step(network, state.to(x0.dtype), i, process, labels[i : i + 2], levels[i : i + 2])
        else:
            said = network(state.to(x0.dtype), timesteps[i], i)
            state = step(process.prediction, state, said, levels[i], levels[i + 1])
    return state.to(x0.dtype)


def midpoint_sample(
    network: Network, xt: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """Latents at the process's end, from the level of the first label along falling ones, by `midpoint_step`.

    Raises:
        ValueError: labels do not fall.
    """
    labels, levels = _rising(process, timesteps[::-1])
    labels, levels = labels[::-1], levels[::-1]
    state = widened(xt)
    for i in range(len(timesteps)):
        state = midpoint_step(network, state.to(xt.dtype), i, process, labels[i : i + 2], levels[i : i + 2])
    return state.to(xt.dtype)


def midpoint_step(
    network: Network,
    xt: Float[Tensor, "b c h w"],
    i: int,
    process: Process,
    labels: Sequence[float],
    levels: Sequence[Level],
) -> Float[Tensor, "b c h w"]:
    """Step i from the first label and level to the second, either way: half a step, then the whole one with what the
    network says in the middle. Two network calls; local error of third order. Returns the state, float32 or float64.

    On a variance-preserving schedule the middle is the whole label nearest to it, below where there are two.
    """
    (t, to), (level, beyond), kind = labels, levels, process.prediction
    middle = (t + to) / 2
    middle = int(middle) if isinstance(process, Schedule) else middle
    between, state = process.pair(middle), widened(xt)
    half = step(kind, state, network(xt, t, i), level, between)
    said = widened(network(half.to(xt.dtype), middle, i))
    if kind == "v_prediction":  # x0 and eps of the middle, said as v at the first level
        (x_state, x_said), (e_state, e_said) = data_weights(kind, between), noise_weights(kind, between)
        x0, eps = x_state * half + x_said * said, e_state * half + e_said * said
        said = level.signal * eps - level.noise * x0
    return step(kind, state, said, level, beyond)


def bdia_invert(
    network: Network, x0: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "2 b c h w"]:
    """The latents at the last two labels, the noisier one first, along rising labels; one call per step.

    Implements BDIA-DDIM of Zhang et al. 2023 (arXiv 2307.10829) with gamma = 1, solved for the noisier state:
    z_(i+1) = up(z_i) + z_(i-1) - down(z_i), where `up` and `down` are the DDIM steps from z_i to its neighbours with
    what the network says of z_i at its own label. The first step is DDIM inversion, whose error does not matter: the
    way back begins with both states.

    Raises:
        ValueError: labels do not rise, or there are fewer than two.
    """
    _, levels = _rising(process, timesteps, least=2)
    kind = process.prediction
    before = x0.double()
    now = step(kind, before, network(x0, timesteps[0], 0).double(), levels[0], levels[1])
    for i in range(1, len(timesteps)):
        said = network(now.to(x0.dtype), timesteps[i - 1], i).double()
        down, up = (step(kind, now, said, levels[i], levels[to]) for to in (i - 1, i + 1))
        before, now = now, up + before - down
    return torch.stack([now, before]).to(x0.dtype)


def bdia_sample(
    network: Network, pair: Float[Tensor, "2 b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """Latents at the process's end, from those at the first two of falling labels; one call per step but the first.

    Implements BDIA-DDIM with gamma = 1, z_(i-1) = down(z_i) + z_(i+1) - up(z_i): the inverse of `bdia_invert`.

    Raises:
        ValueError: labels do not fall, or there are fewer than two.
    """
    _, levels = _rising(process, timesteps[::-1], least=2)
    kind, n = process.prediction, len(timesteps)
    now: Tensor
    beyond, now = pair.double()
    for i in range(1, n):
        at = n - i  # of `levels`, which rise
        said = network(now.to(pair.dtype), timesteps[i], i).double()
        down, up = (step(kind, now, said, levels[at], levels[to]) for to in (at - 1, at + 1))
        beyond, now = now, down + beyond - up
    return now.to(pair.dtype)


def edict_invert(
    network: Network, x0: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "2 b c h w"]:
    """Both latents at the last label, along rising labels; two calls per step.

    Implements Eq. 15 of EDICT, Wallace et al. 2022 (arXiv 2211.12446), with p = 0.93: the mixing is undone, then each
    latent is moved up by what the network says of the other. Which of the two goes first alternates from step to step,
    as there.

    Raises:
        ValueError: labels do not rise.
    """
    _, levels = _rising(process, timesteps)
    kind, n = process.prediction, len(timesteps)
    x = y = x0.double()
    for i, t in enumerate(timesteps):
        x, y = (y, x) if (n - i) % 2 else (x, y)
        y = (y - (1 - MIXING) * x) / MIXING
        x = (x - (1 - MIXING) * y) / MIXING
        y = _moved_back(kind, y, network(x.to(x0.dtype), t, i), levels[i + 1], levels[i])
        x = _moved_back(kind, x, network(y.to(x0.dtype), t, i), levels[i + 1], levels[i])
        x, y = (y, x) if (n - i) % 2 else (x, y)
    return torch.stack([x, y]).to(x0.dtype)


def edict_sample(
    network: Network, pair: Float[Tensor, "2 b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """The first of both latents at the process's end, from both at the first of falling labels; two calls per step.

    Implements Eq. 14 of EDICT; the inverse of `edict_invert`. Without guidance both latents end alike.

    Raises:
        ValueError: labels do not fall.
    """
    _, levels = _rising(process, timesteps[::-1])
    kind, n = process.prediction, len(timesteps)
    x: Tensor
    x, y = pair.double()
    for i, t in enumerate(timesteps):
        x, y = (y, x) if (i + 1) % 2 else (x, y)
        at = n - i
        x = step(kind, x, network(y.to(pair.dtype), t, i).double(), levels[at], levels[at - 1])
        y = step(kind, y, network(x.to(pair.dtype), t, i).double(), levels[at], levels[at - 1])
        x = MIXING * x + (1 - MIXING) * y
        y = MIXING * y + (1 - MIXING) * x
        x, y = (y, x) if (i + 1) % 2 else (x, y)
    return x.to(pair.dtype)


def invert(
    inverter: Inverter, network: Network, x0: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[float]
) -> Float[Tensor, "k b c h w"]:
    """The latents that x0 comes from, along rising labels: one per row, or a pair where the inverter has one."""
    if inverter == "bdia":
        return bdia_invert(network, x0, process, timesteps)
    if inverter == "edict":
        return edict_invert(network, x0, process, timesteps)
    return ddim_invert(network, x0, process, timesteps, "midpoint" if inverter == "midpoint" else "euler")[None]


def _moved_back(kind: Prediction, state: Tensor, said: Tensor, level: Level, to: Level) -> Tensor:
    """The state at `level` that the step from there to `to`, with the same prediction, brings to `state`."""
    weights = step_weights(kind, level, to)
    if weights.state == 0:
        raise ValueError("a step that forgets its state cannot be undone; use bdia or ddim here")
    return (state - weights.said * said.double()) / weights.state


def _rising(process: Process, timesteps: Sequence[float], least: int = 1) -> tuple[list[float], list[Level]]:
    """Labels and levels before step 0 (the process's end) and after step 0, 1, ..., n-1."""
    if len(timesteps) < least or any(t >= after for t, after in pairwise(timesteps)):
        wanted = f"{least} or more labels that rise" if least > 1 else "labels that rise"
        raise ValueError(f"got timesteps {tuple(timesteps)}; inversion needs {wanted}")
    return [process.lowest_label, *timesteps], [process.end, *map(process.pair, timesteps)]

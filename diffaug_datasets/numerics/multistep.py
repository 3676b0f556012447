"""The samplers of `sampling` as one table of numbers: few operations a step, none of which waits for a device.

A step of DDIM, DPM-Solver++(2M) or PLMS is a linear combination of the state, the state before and what was said last
(eps, v, or x0 for DPM): x' = c x + c_before x_before + sum_k d_k y_k. The combinations follow from the labels and from
where each row starts, so they are written down before sampling begins: as plain numbers where all rows share them, as
columns [b 1 1 1] on the device where they do not. Sums are taken in another order than `sampling` does: float32
rounding apart. Sizes: b rows, n steps, latents [c h w].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.numerics.levels import Level, data_weights, second_order_weight, step_weights
from diffaug_datasets.numerics.sampling import (
    LEAST_FOR_SECOND_ORDER,
    LEAST_SIGNAL,
    WEIGHTS,
    Final,
    Network,
    end_of,
    falling_levels,
)
from diffaug_datasets.numerics.schedule import Process, widened

STATE, BEFORE = "state", "before"
Term = str | int
"""`state`, `before` (the state one step earlier), or k: what was said k steps ago, 0 = just now."""
Terms = dict[Term, float]
Factor = float | Tensor
KNOWN = 256  # schedules and starts that are remembered
KEPT = 5  # PLMS looks at four predictions, one of the last five being no part of the series


@dataclass(frozen=True)
class Step:
    """One step: what x0 is made of where the solver keeps x0 (state, said), and factors of the new state."""

    label: float
    data: tuple[float, float] | None
    factors: tuple[tuple[Term, Factor], ...]


@lru_cache(maxsize=KNOWN)
def combinations(
    sampler: str, process: Process, labels: tuple[float, ...], start: int, final: Final | None = None
) -> tuple[Terms, ...]:
    """The terms of every step for a row that begins at step `start`: {state: 1} before it. They are remembered.

    Raises:
        ValueError: as the samplers of `sampling`.
    """
    if not 0 <= start < len(labels):
        raise ValueError(f"got start step {start}; give an index in 0..{len(labels) - 1}")
    rules = {"ddim": _ddim, "dpm": _dpm, "plms": _plms}
    waiting: list[Terms] = [{STATE: 1.0}] * start
    return (*waiting, *rules[sampler](process, labels, start, final))


def _ddim(process: Process, labels: Sequence[float], start: int, final: Final | None) -> list[Terms]:
    levels = falling_levels(process, labels, end_of(process, final))
    weights = [step_weights(process.prediction, levels[i], levels[i + 1]) for i in range(start, len(labels))]
    return [{STATE: w.state, 0: w.said} for w in weights]


def _dpm_levels(process: Process, labels: Sequence[float], final: Final | None) -> list[Level]:
    """As `sampling.dpm_sample` has them."""
    levels = falling_levels(process, labels, end_of(process, final or "zero"))
    if levels[0].signal == 0 and process.prediction != "flow_prediction":
        levels[0] = LEAST_SIGNAL
    return levels


def _dpm(process: Process, labels: Sequence[float], start: int, final: Final | None) -> list[Terms]:
    levels = _dpm_levels(process, labels, final)
    last_of_second_order = len(labels) - (1 if len(labels) >= LEAST_FOR_SECOND_ORDER else 2)
    terms: list[Terms] = []
    for i in range(start, len(labels)):
        now, to = levels[i], levels[i + 1]
        shrink = to.noise / now.noise
        gain = to.signal - shrink * now.signal
        weight = 0.0
        if start < i <= last_of_second_order and to.noise > 0:
            weight = second_order_weight(levels[i - 1], now, to)
        terms.append({STATE: shrink, 0: gain * (1 + weight), 1: -gain * weight})
    return terms


def _plms(process: Process, labels: Sequence[float], start: int, final: Final | None) -> list[Terms]:
    if process.prediction != "epsilon":
        raise ValueError(f"got a network that says {process.prediction}; PLMS extrapolates eps, use ddim or dpm")
    end, gap = end_of(process, final), process.num_train_timesteps // (len(labels) - 1)
    terms: list[Terms] = []
    for i in range(start, len(labels)):
        again = i == start + 1
        t = labels[i] + (gap if again else 0)
        weights = step_weights("epsilon", process.pair(t), process.pair(t - gap) if t >= gap else end)
        if again:
            shares = {0: 0.5, 1: 0.5}
        else:
            kept = [k for k in range(i, start - 1, -1) if k != start + 1][:4]
            shares = {i - k: w for k, w in zip(kept, WEIGHTS[len(kept) - 1], strict=True)}
        terms.append({BEFORE if again else STATE: weights.state, **{k: weights.said * w for k, w in shares.items()}})
    return terms


class Multistep:
    """A batch's steps, ready on its device."""

    def __init__(
        self,
        sampler: str,
        process: Process,
        labels: Sequence[float],
        start: Sequence[int],
        final: Final | None,
        device: torch.device,
    ) -> None:
        """Raises ValueError as `combinations`."""
        given: tuple[Any, ...] = (sampler, process, tuple(labels))
        by_start = {first: combinations(*given, first, final) for first in set(start)}
        rows = [by_start[first] for first in start]
        self.first, self.labels = min(start), tuple(labels)
        columns: list[list[float]] = []
        plans: list[list[tuple[Term, float | int]]] = []  # a number that all rows share, or the place of a column
        for i in range(self.first, len(labels)):
            names = dict.fromkeys(name for row in rows for name, factor in row[i].items() if factor)
            plan: list[tuple[Term, float | int]] = []
            for name in names:
                values = [row[i].get(name, 0.0) for row in rows]
                if len(set(values)) == 1:
                    plan.append((name, float(values[0])))
                else:
                    plan.append((name, len(columns)))
                    columns.append(values)
            plans.append(plan)
        shared = torch.tensor(columns or [[0.0] * len(start)], dtype=torch.float32)
        there = shared.to(device)[:, :, None, None, None].unbind()
        data = _kept_data(*given, final)[self.first :]
        self.steps = tuple(
            Step(label, kept, tuple((name, there[f] if isinstance(f, int) else f) for name, f in plan))
            for label, kept, plan in zip(labels[self.first :], data, plans, strict=True)
        )

    def sample(self, network: Network, xt: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents at the last level; a row whose start is later is left untouched until then. Returns xt's dtype."""
        state = before = widened(xt)
        said: list[Tensor] = []
        for j, step in enumerate(self.steps):
            heard = widened(network(state.to(xt.dtype), step.label, self.first + j))
            if step.data:
                heard = torch.add(state * step.data[0], heard, alpha=step.data[1])
            said = [heard, *said[: KEPT - 1]]
            state, before = _combined(step.factors, state, before, said), state
        return state.to(xt.dtype)


@lru_cache(maxsize=KNOWN)
def _kept_data(
    sampler: str, process: Process, labels: tuple[float, ...], final: Final | None
) -> list[tuple[float, float] | None]:
    """By step the weights of state and prediction in x0, where the solver keeps x0."""
    if sampler != "dpm":
        return [None] * len(labels)
    weights = [data_weights(process.prediction, level) for level in _dpm_levels(process, labels, final)[:-1]]
    return [(w.state, w.said) for w in weights]


def _combined(factors: Sequence[tuple[Term, Factor]], state: Tensor, before: Tensor, said: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for name, factor in factors:
        term = said[name] if isinstance(name, int) else state if name == STATE else before
        if total is None:
            total = term * factor
        elif isinstance(factor, float):
            total = torch.add(total, term, alpha=factor)
        else:
            total = torch.addcmul(total, term, factor)
    return state if total is None else total

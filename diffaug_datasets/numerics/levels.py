"""Levels of noise as pairs, x = a x0 + s eps, and the one rule that goes from one level to another.

A network says eps, v, x0 or the velocity of a flow. Together with the state each of these gives (x0, eps), and the
state at another level is a' x0 + s' eps. On a variance-preserving schedule (a^2 + s^2 = 1) that is DDIM, on a rectified
flow (a = 1 - s) it is Euler's method, and either way it goes up as well as down. No torch is needed here.
"""

import math
from typing import Literal, NamedTuple

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
"""What a network says of x = a x0 + s eps, as diffusers calls it: eps, v = a eps - s x0, x0, or u = eps - x0."""

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")


class Level(NamedTuple):
    """The level of x = signal x0 + noise eps; both in [0, 1], not both 0."""

    signal: float
    noise: float

    @property
    def log_ratio(self) -> float:
        """log(signal / noise), lambda in the DPM-Solver papers; infinite where either is 0."""
        if self.signal == 0 or self.noise == 0:
            return math.inf if self.noise == 0 else -math.inf
        return math.log(self.signal) - math.log(self.noise)


CLEAN = Level(1.0, 0.0)


class Weights(NamedTuple):
    """A linear combination of a state and what a network said of it."""

    state: float
    said: float


def of_alpha_bar(alpha_bar: float) -> Level:
    """The level of a variance-preserving process at alpha_bar in [0, 1]."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def of_sigma(sigma: float) -> Level:
    """The level of a rectified flow at sigma in [0, 1]: x = (1 - sigma) x0 + sigma eps."""
    return Level(1 - sigma, sigma)


def data_weights(kind: Prediction, level: Level) -> Weights:
    """x0 as a combination of the state at a level and what the network said of it.

    Raises:
        ValueError: eps was said of a state without signal, which says nothing of x0.
    """
    a, s = level
    if kind == "epsilon":
        if a == 0:
            raise ValueError("a state without signal was predicted as eps, which does not give x0; predict v or x0")
        return Weights(1 / a, -s / a)
    if kind == "v_prediction":
        return Weights(a / (a * a + s * s), -s / (a * a + s * s))
    if kind == "flow_prediction":
        return Weights(1 / (a + s), -s / (a + s))
    return Weights(0.0, 1.0)


def noise_weights(kind: Prediction, level: Level) -> Weights:
    """eps as a combination of the state at a level and what the network said of it.

    Raises:
        ValueError: x0 was said of a state without noise, which says nothing of eps.
    """
    a, s = level
    if kind == "sample":
        if s == 0:
            raise ValueError("a state without noise was predicted as x0, which does not give eps; start at a noisy one")
        return Weights(1 / s, -a / s)
    if kind == "v_prediction":
        return Weights(s / (a * a + s * s), a / (a * a + s * s))
    if kind == "flow_prediction":
        return Weights(1 / (a + s), a / (a + s))
    return Weights(0.0, 1.0)


def step_weights(kind: Prediction, level: Level, to: Level) -> Weights:
    """The state at the level `to` as a combination of the state at `level` and what the network said of it.

    x' = a' x0 + s' eps, gathered into one multiple of the state and one of the prediction, so that what cancels cancels
    in float64. Implements Eq. 12 of Song et al. (arXiv 2010.02502) with sigma = 0; on a rectified flow it is Euler's
    method, x + (s' - s) u (arXiv 2209.03003).

    Raises:
        ValueError: eps was said of a state without signal, or x0 of a state without noise that has to become noisier.
    """
    (a, s), (a_to, s_to) = level, to
    if kind == "epsilon":
        if a == 0:
            data_weights(kind, level)
        ratio = a_to / a
        return Weights(ratio, s_to - ratio * s)
    if kind == "sample":
        if s_to == 0:
            return Weights(0.0, a_to)
        if s == 0:
            noise_weights(kind, level)
        shrink = s_to / s
        return Weights(shrink, a_to - shrink * a)
    total = a * a + s * s if kind == "v_prediction" else a + s
    if kind == "v_prediction":
        return Weights((a_to * a + s_to * s) / total, (s_to * a - a_to * s) / total)
    return Weights((a_to + s_to) / total, (s_to * a - a_to * s) / total)


def second_order_weight(last: Level, now: Level, to: Level) -> float:
    """How far DPM-Solver++(2M) extrapolates x0: h / (2 h_last), of the step and of the one before, in log(a / s).

    0, that is first order, where a step begins without signal or ends without noise: there h or h_last is infinite.

    Raises:
        ValueError: the first two levels are one.
    """
    if last.signal == 0 or now.signal == 0 or to.noise == 0:
        return 0.0
    h_last = now.log_ratio - last.log_ratio
    if h_last == 0:
        raise ValueError("two equal levels follow each other; a second-order step needs two that differ")
    return (to.log_ratio - now.log_ratio) / (2 * h_last)

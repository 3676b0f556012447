"""Diff-II's circle through two inverted latents (Eq. 5 to 7), and what to do where two latents span no circle.

All work is in float64 and goes back to the inputs' dtype at the end: near sin(alpha) = 0 the two coefficients are large
and nearly cancel, and in half precision a cosine may round above 1. Tensors of any one shape count as flat vectors.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Arc = Literal["full", "short", "long"]
Norm = Literal["paper", "geodesic"]


def angle(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """The angle between two latents in radians, in [0, pi]; the same on every device, since it is computed on the CPU.

    Implements alpha of Eq. 5 of Diff-II, with the cosine held inside [-1, 1].

    Raises:
        ValueError: a latent is zero or not finite.
    """
    left, right = _flat(a.cpu()), _flat(b.cpu())
    product = float(torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right))
    if not 0 < product < math.inf:
        raise ValueError(f"got latents whose norms multiply to {product}; an angle needs two finite, non-zero latents")
    return math.acos(max(-1.0, min(1.0, float(left @ right) / product)))


def is_degenerate(alpha: float, eps: float = 1e-4) -> Literal["ok", "coincident", "antipodal"]:
    """Whether two latents at angle alpha in [0, pi] span a circle: not where sin(alpha) < eps."""
    if math.sin(alpha) >= eps:
        return "ok"
    return "coincident" if alpha < math.pi / 2 else "antipodal"


def circle(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], phi: float, norm: Norm = "paper"
) -> Float[Tensor, "*shape"]:
    """The point of the circle through a and b at angle phi from a, measured away from b; phi in [0, 2 pi], radians.

    Implements Eq. 7 of Diff-II with phi = lambda alpha: Z = sin(alpha + phi) / sin(alpha) a - sin(phi) / sin(alpha) b.
    phi = 0 gives a and phi = 2 pi - alpha gives b; phi = 2 pi - lambda alpha is Eq. 5, phi = lambda alpha is Eq. 6. The
    norm is constant only if a and b have one norm; otherwise the circle is an ellipse, as in the paper. Departs from it
    where `norm` is 'geodesic': directions turn, and the norm goes evenly from a's to b's along either arc.

    Raises:
        ValueError: a latent is zero or not finite, or the two are (anti)parallel.
    """
    alpha = angle(a, b)
    if (verdict := is_degenerate(alpha)) != "ok":
        raise ValueError(f"got {verdict} latents (angle {alpha:.3g} rad); use lerp or draw another pair")
    of_a, of_b = math.sin(alpha + phi) / math.sin(alpha), math.sin(phi) / math.sin(alpha)
    if norm == "geodesic":
        length_a, length_b = _length(a), _length(b)
        length = length_a + _share_of_b(phi, alpha) * (length_b - length_a)
        of_a, of_b = of_a * length / length_a, of_b * length / length_b
    return (of_a * a.double() - of_b * b.double()).to(a.dtype)


def _share_of_b(phi: float, alpha: float) -> float:
    """How far from a to b a turn lies, in [0, 1], on whichever arc it is."""
    back = math.tau - phi
    return back / alpha if back < alpha else phi / (math.tau - alpha)


def turn(u: float, alpha: float, arc: Arc) -> float:
    """The angle phi of `circle` in radians for a uniform draw u in [0, 1], uniform over an arc between a and b.

    'full' is [0, 2 pi), all of Eq. 7; 'short' is [2 pi - alpha, 2 pi], the interpolations of Eq. 5; 'long' is
    [0, 2 pi - alpha], the extrapolations of Eq. 6.

    Raises:
        ValueError: u is outside [0, 1], alpha outside [0, pi], or the arc is unknown.
    """
    if not (0 <= u <= 1 and 0 <= alpha <= math.pi):
        raise ValueError(f"got u = {u}, alpha = {alpha}; give u in [0, 1] and alpha in [0, pi]")
    lengths = {"full": math.tau, "short": alpha, "long": math.tau - alpha}
    if arc not in lengths:
        raise ValueError(f"got arc {arc!r}; use one of {', '.join(lengths)}")
    return (math.tau - alpha if arc == "short" else 0.0) + u * lengths[arc]


def lerp(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], u: float) -> Float[Tensor, "*shape"]:
    """The straight line from a (u = 0) to b (u = 1), both ends exact; what is left where two latents span no circle."""
    return ((1 - u) * a.double() + u * b.double()).to(a.dtype)


def root_mean_square(a: Float[Tensor, "*shape"]) -> float:
    """The norm by the square root of the number of values: 1 for N(0, 1)."""
    return _length(a) / math.sqrt(a.numel())


def kurtosis(a: Float[Tensor, "*shape"]) -> float:
    """The fourth central moment of a latent's values by their squared variance: 3 for N(0, 1), more for heavy tails."""
    centred = _flat(a) - _flat(a).mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def noise_partner(a: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Noise from N(0, I) scaled to the norm of a: the second latent of a class that has one image.

    Departs from Diff-II, whose code fails on such a class. Returns a's dtype.

    Raises:
        ValueError: the noise is zero or not finite.
    """
    length = _length(noise)
    if not 0 < length < math.inf:
        raise ValueError(f"got noise of norm {length}; draw it from a standard normal")
    scale = _length(a) / length
    return (scale * noise.double()).to(a.dtype)


def _length(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(_flat(x)))


def _flat(x: Tensor) -> Tensor:
    return x.double().flatten()

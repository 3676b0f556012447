"""Diff-II's circle: endpoints, arcs, norms, rounding, and the pairs that span no circle."""

import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from diffaug_datasets.numerics.interpolation import angle, circle, is_degenerate, lerp, noise_partner, turn

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEEDS, ANGLES = st.integers(0, 2**31), st.floats(0.0, math.tau)
quick = settings(derandomize=True, max_examples=50, deadline=None)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed):
    return draw(seed, 2, 4, 6, 6).unbind()


def equal_norms(seed):
    a, b = pair(seed)
    return a, b * (a.norm() / b.norm())


def close(x, y, slack=1e-10):
    torch.testing.assert_close(x, y, rtol=0, atol=slack)


@quick
@given(seed=SEEDS)
def test_the_circle_starts_at_a_and_reaches_b(seed):
    a, b = pair(seed)
    assert torch.equal(circle(a, b, 0.0), a)
    close(circle(a, b, math.tau - angle(a, b)), b)


@quick
@given(seed=SEEDS, phi=ANGLES)
def test_a_full_turn_changes_nothing(seed, phi):
    a, b = pair(seed)
    close(circle(a, b, phi), circle(a, b, phi + math.tau))


@quick
@given(seed=SEEDS, phi=ANGLES)
def test_equal_norms_stay(seed, phi):
    a, b = equal_norms(seed)
    assert circle(a, b, phi).norm().item() == pytest.approx(a.norm().item(), rel=1e-10)


@quick
@given(seed=SEEDS, u=st.floats(0.0, 1.0))
def test_a_geodesic_turns_as_the_circle_and_its_norm_goes_evenly(seed, u):
    a, b = pair(seed)
    b = 3 * b
    alpha = angle(a, b)
    for phi, share in ((u * (math.tau - alpha), u), (math.tau - u * alpha, u)):  # the long arc, then the short one
        point = circle(a, b, phi, "geodesic")
        assert point.norm().item() == pytest.approx((a.norm() + share * (b.norm() - a.norm())).item(), rel=1e-9)
        unit = circle(a / a.norm(), b / b.norm(), phi)
        close(point / point.norm(), unit / unit.norm())
    close(circle(a, b, math.tau - alpha, "geodesic"), b)
    close(circle(a, b, 0.0, "geodesic"), a)


@quick
@given(seed=SEEDS, phi=ANGLES)
def test_with_equal_norms_the_geodesic_is_the_circle(seed, phi):
    a, b = equal_norms(seed)
    close(circle(a, b, phi, "geodesic"), circle(a, b, phi))


@quick
@given(seed=SEEDS, phi=st.floats(0.0, math.pi))
def test_phi_is_the_angle_from_a_measured_away_from_b(seed, phi):
    a, b = equal_norms(seed)
    z = circle(a, b, phi)
    assert angle(a, z) == pytest.approx(phi, abs=1e-6)
    away = angle(a, b) + phi
    assert angle(b, z) == pytest.approx(min(away, math.tau - away), abs=1e-6)


@quick
@given(seed=SEEDS, lam=st.floats(0.0, 1.0))
def test_the_short_arc_is_eq_5(seed, lam):
    a, b = pair(seed)
    alpha = angle(a, b)
    slerp = (math.sin((1 - lam) * alpha) * a + math.sin(lam * alpha) * b) / math.sin(alpha)
    close(circle(a, b, math.tau - lam * alpha), slerp)


def test_the_midpoint_vector_of_the_specification():
    a, b = pair(3)
    alpha = angle(a, b)
    lam = math.tau / alpha - 0.5
    close(circle(a, b, lam * alpha), math.sin(alpha / 2) / math.sin(alpha) * (a + b))


def test_half_a_turn_is_minus_a():
    a, b = pair(4)
    close(circle(a, b, math.pi), -a)


@quick
@given(seed=SEEDS, phi=ANGLES, share=st.floats(0.3, 0.95))
def test_a_negative_cosine_needs_no_special_case(seed, phi, share):
    a, b = pair(seed)
    b = b - (share + 1) * (a.flatten() @ b.flatten() / a.norm() ** 2) * a - 0.5 * share * a
    assert angle(a, b) > math.pi / 2
    assert circle(a, b, phi).isfinite().all()
    close(circle(a, b, math.tau - angle(a, b)), b)


@quick
@given(seed=SEEDS, phi=ANGLES, scale=st.floats(0.2, 5.0))
def test_unequal_norms_stay_between_the_axes_of_the_ellipse(seed, phi, scale):
    a, b = equal_norms(seed)
    alpha = angle(a, b)
    largest = a.norm().item() * (1 + scale) / math.sin(alpha)
    assert circle(a, scale * b, phi).norm().item() <= largest


def test_half_cosines_above_one_by_rounding():
    """One 16384-dim half vector against itself: in half arithmetic its cosine exceeds 1 and acos is not a number."""
    a = draw(0, 16384).half()
    norm = torch.linalg.vector_norm(a)
    in_half = (a @ a) / (norm * norm)
    assert angle(a, a) == pytest.approx(0.0, abs=1e-7)
    near = (a.float() + 0.01 * draw(1, 16384).float()).half()
    assert circle(a, near, 2.0).isfinite().all()
    assert in_half.isfinite()


@quick
@given(seed=SEEDS, scale=st.floats(1e-6, 1e6))
def test_parallel_vectors_never_leave_the_domain_of_acos(seed, scale):
    a, _ = pair(seed)
    assert angle(a, scale * a) == pytest.approx(0.0, abs=1e-7)
    assert angle(a, -scale * a) == pytest.approx(math.pi, abs=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_has_the_dtype_of_the_inputs_and_rounds_once(dtype):
    a, b = (x.to(dtype) for x in pair(5))
    exact = circle(a.double(), b.double(), 2.0).to(dtype)
    z = circle(a, b, 2.0)
    assert z.dtype == dtype
    assert torch.equal(z, exact)
    assert lerp(a, b, 0.3).dtype == noise_partner(a, b).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    a, b = (x.half() for x in pair(5))
    assert angle(a.cuda(), b.cuda()) == angle(a, b)
    torch.testing.assert_close(circle(a.cuda(), b.cuda(), 2.0).cpu(), circle(a, b, 2.0))


def test_pairs_that_span_no_circle():
    a, _ = pair(6)
    assert is_degenerate(angle(a, a)) == "coincident"
    assert is_degenerate(angle(a, -2 * a)) == "antipodal"
    assert is_degenerate(9e-5) == "coincident"
    assert is_degenerate(1.1e-4) == "ok"
    assert is_degenerate(math.pi - 9e-5) == "antipodal"
    assert is_degenerate(0.01, eps=0.1) == "coincident"
    with pytest.raises(ValueError, match=r"got coincident latents .* use lerp or draw another pair"):
        circle(a, a, 1.0)
    with pytest.raises(ValueError, match="got antipodal latents"):
        circle(a, -a, 1.0)


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_latents_without_a_direction_are_refused(wrong):
    a, _ = pair(7)
    with pytest.raises(ValueError, match="an angle needs two finite, non-zero latents"):
        angle(a, torch.full_like(a, wrong))
    with pytest.raises(ValueError, match="draw it from a standard normal"):
        noise_partner(a, torch.full_like(a, wrong))


def turned(a, b, z):
    """phi recovered from the geometry: the angle of z in the plane of a and of the direction away from b."""
    a, b, z = a.flatten(), b.flatten(), z.flatten()
    along = a / a.norm()
    away = (b @ along) * along - b
    return math.atan2(float(z @ away / away.norm()), float(z @ along)) % math.tau


@pytest.mark.parametrize("arc", ["full", "short", "long"])
def test_uniform_draws_give_uniform_points_of_the_arc(arc):
    a, b = equal_norms(8)
    alpha = angle(a, b)
    low, length = {
        "full": (0.0, math.tau),
        "short": (math.tau - alpha, alpha),
        "long": (0.0, math.tau - alpha),
    }[arc]
    draws = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    phis = [turned(a, b, circle(a, b, turn(u, alpha, arc))) for u in draws]
    assert kstest(phis, "uniform", args=(low, length)).pvalue > 0.01
    assert kstest(phis, "uniform", args=(0.0, 1.3 * math.tau)).pvalue < 1e-6


def test_arcs_meet_at_b_and_share_the_circle_by_their_length():
    alpha = 1.5
    assert turn(0.0, alpha, "short") == turn(1.0, alpha, "long") == math.tau - alpha
    assert turn(1.0, alpha, "short") == turn(1.0, alpha, "full") == math.tau
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(2)).tolist()
    short = sum(turn(u, alpha, "full") >= math.tau - alpha for u in draws) / len(draws)
    assert short == pytest.approx(alpha / math.tau, abs=0.01)


def test_turns_outside_their_ranges_are_refused():
    with pytest.raises(ValueError, match=r"give u in \[0, 1\] and alpha in \[0, pi\]"):
        turn(1.2, 1.0, "full")
    with pytest.raises(ValueError, match=r"give u in \[0, 1\] and alpha in \[0, pi\]"):
        turn(0.2, 4.0, "full")
    # Past the run-time type check, which refuses it first: callers outside the tests have none.
    with pytest.raises(ValueError, match="got arc 'half'; use one of full, short, long"):
        unwrap(turn)(0.2, 1.0, "half")


def test_the_straight_line_has_exact_ends():
    a, b = pair(9)
    assert torch.equal(lerp(a, b, 0.0), a)
    assert torch.equal(lerp(a, b, 1.0), b)
    close(lerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_a_noise_partner_has_the_norm_of_the_image_and_the_direction_of_the_noise():
    a, noise = pair(10)
    partner = noise_partner(3 * a, noise)
    assert partner.norm().item() == pytest.approx(3 * a.norm().item(), rel=1e-12)
    assert angle(partner, noise) == pytest.approx(0.0, abs=1e-7)

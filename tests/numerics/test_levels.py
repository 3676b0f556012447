"""One rule for every prediction on every kind of schedule, against diffusers' schedulers and closed forms."""

import math
from itertools import pairwise, product

import pytest
import torch

from diffaug_datasets.numerics import sampling
from diffaug_datasets.numerics.flow import DynamicShift, FlowSchedule
from diffaug_datasets.numerics.inverting import ddim_invert, midpoint_sample
from diffaug_datasets.numerics.levels import (
    PREDICTIONS,
    Level,
    data_weights,
    noise_weights,
    of_alpha_bar,
    of_sigma,
    step_weights,
)
from diffaug_datasets.numerics.schedule import Schedule, ddim_timesteps, sampler_timesteps

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SPACINGS = ("leading", "linspace", "trailing")
TOLERANCE = 1e-5
FLOWS = {
    "plain": ({}, FlowSchedule(), None),
    "shift 3": ({"shift": 3.0}, FlowSchedule(shift=3.0), None),
    "dynamic": (
        {"use_dynamic_shifting": True},
        FlowSchedule(dynamic=DynamicShift(), tokens=1024),
        0.63,  # (1.15 - 0.5) / (4096 - 256) * (1024 - 256) + 0.5
    ),
    "dynamic linear": (
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        FlowSchedule(dynamic=DynamicShift(kind="linear"), tokens=4096),
        1.15,
    ),
    "stretched": (
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        FlowSchedule(dynamic=DynamicShift(terminal=0.02), tokens=256),
        0.5,
    ),
}


def network(x, t):
    """A smooth nonlinear answer, of additions, multiplications and divisions only."""
    return (0.3 + float(t) / 2500) * x + 0.5 * x / (1 + x * x) - float(t) / 5000


def ours(x, t, _step):
    return network(x, t)


def gap(found, expected):
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


def run(scheduler, n, x, start=0, **timesteps):
    """As diffusers' pipelines drive it, in the scheduler's own space."""
    scheduler.set_timesteps(n, **timesteps)
    scheduler.set_begin_index(start) if hasattr(scheduler, "set_begin_index") else None
    for t in scheduler.timesteps[start:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x, return_dict=False)[0]
    return x


def schedule_of(kind, spacing, *, zero_snr=False):
    return Schedule.from_betas("scaled_linear", 0.00085, 0.012, spacing=spacing, prediction=kind, is_zero_snr=zero_snr)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("level", [of_alpha_bar(0.3), of_sigma(0.4)])
def test_a_prediction_gives_the_data_and_noise_that_it_was_made_of(kind, level):
    x0, eps, (a, s), to = 1.7, -0.6, level, Level(0.9, 0.2)
    x = a * x0 + s * eps
    said = {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0, "flow_prediction": eps - x0}[kind]
    for weights, expected in (
        (data_weights(kind, level), x0),
        (noise_weights(kind, level), eps),
        (step_weights(kind, level, to), 0.9 * x0 + 0.2 * eps),
    ):
        assert weights.state * x + weights.said * said == pytest.approx(expected, abs=1e-14)


def test_what_cannot_be_told_is_refused():
    for weights in (data_weights, lambda kind, level: step_weights(kind, level, Level(0.5, 0.5))):
        with pytest.raises(ValueError, match="without signal was predicted as eps"):
            weights("epsilon", Level(0.0, 1.0))
    for weights in (noise_weights, lambda kind, level: step_weights(kind, level, Level(0.5, 0.5))):
        with pytest.raises(ValueError, match="without noise was predicted as x0"):
            weights("sample", Level(1.0, 0.0))
    assert step_weights("sample", Level(1.0, 0.0), Level(0.7, 0.0)) == (0, 0.7)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("kind", "zero_snr"),
    # eps says nothing of the image at zero SNR, which `data_weights` refuses
    [("epsilon", False), *product(["v_prediction", "sample"], [False, True])],
)
def test_ddim_and_dpm_on_variance_preserving_schedules(latents, kind, spacing, zero_snr):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    schedule = schedule_of(kind, spacing, zero_snr=zero_snr)
    changes = {"prediction_type": kind, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr}
    x, n = latents(2, 4, 8, 8), 20  # 20 divides 1000: DDIM of diffusers steps by T // n
    for start in (0, 9):
        begins = [start] * 2
        if spacing != "linspace":  # whose labels are not T // n apart
            theirs = run(DDIMScheduler(**DDIM | changes), n, x, start)
            found = sampling.ddim_sample(ours, x, schedule, sampler_timesteps(schedule, "ddim", n), begins)
            assert gap(found, theirs) < TOLERANCE
        for final, name in (("zero", "zero"), ("alpha_bar_0", "sigma_min")):
            # 'epsilon' in place of v or x0 is diffusers' guard against a first sigma without end, not another rule.
            scheduler = DPMSolverMultistepScheduler(**SD | changes, steps_offset=1, final_sigmas_type=name)
            theirs = run(scheduler, n, x, start)
            found = sampling.dpm_sample(ours, x, schedule, sampler_timesteps(schedule, "dpm", n), begins, final)
            assert gap(found, theirs) < 3 * TOLERANCE, (final, start)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_says_it_of_the_level_before(latents, kind, spacing):
    from diffusers import DDIMInverseScheduler

    x = latents(2, 4, 8, 8)
    theirs = run(DDIMInverseScheduler(**DDIM, prediction_type=kind, timestep_spacing=spacing), 20, x)
    schedule = schedule_of(kind, spacing)
    found = ddim_invert(ours, x, schedule, sampler_timesteps(schedule, "ddim", 20)[::-1])
    assert gap(found, theirs) < TOLERANCE


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("n", [1, 4, 20])
def test_euler_of_diffusers_is_the_same_rule_in_another_space(latents, kind, spacing, n):
    """Its state is x0 + sigma eps, so x sqrt(1 + sigma^2)."""
    from diffusers import EulerDiscreteScheduler

    x = latents(2, 4, 8, 8)
    scheduler = EulerDiscreteScheduler(**SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(n)
    theirs = run(scheduler, n, x * (1 + float(scheduler.sigmas[0]) ** 2) ** 0.5)
    schedule = schedule_of(kind, spacing)
    labels = sampler_timesteps(schedule, "ddim", n)
    assert tuple(scheduler.timesteps.tolist()) == labels
    # A v-prediction at alpha_bar 0.0047 multiplies the rounding of their sigma by 14.
    assert gap(sampling.ddim_sample(ours, x, schedule, labels, [0, 0], "zero"), theirs) < 3 * TOLERANCE


@pytest.mark.parametrize(("name", "n"), [one for one in product(FLOWS, [1, 4, 28]) if one != ("stretched", 1)])
def test_euler_on_flows(latents, name, n):
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings, flow, mu = FLOWS[name]
    x, timesteps = latents(2, 4, 8, 8), {} if mu is None else {"mu": mu}
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    labels = flow.labels(n)
    for start in {0, n // 3}:
        theirs = run(scheduler, n, x, start, **timesteps)
        assert scheduler.timesteps.tolist() == pytest.approx(labels, rel=1e-6)
        found = sampling.ddim_sample(ours, x, flow, labels, [start] * 2)
        assert gap(found, theirs) < TOLERANCE


def test_even_sigmas_are_those_that_the_pipelines_of_flux_ask_for(latents):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = FlowSchedule(dynamic=DynamicShift(), tokens=1024, grid="even")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 12, 12), mu=flow.dynamic.mu(1024))
    assert scheduler.timesteps.tolist() == pytest.approx(flow.labels(12), rel=1e-6)


def test_dpm_on_a_flow(latents):
    """diffusers keeps its flow sigmas below 1, so the solver is given its labels; the first of ours is exactly 1."""
    from diffusers import DPMSolverMultistepScheduler

    x = latents(2, 4, 8, 8, dtype=torch.float64)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(20)
    labels = [1000 * float(sigma) for sigma in scheduler.sigmas[:-1]]
    state = x
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.step(network(state, labels[i]), t, state, return_dict=False)[0]
    assert gap(sampling.dpm_sample(ours, x, FlowSchedule(), labels, [0, 0]), state) < TOLERANCE
    flow = FlowSchedule(shift=3.0)
    assert flow.labels(20)[0] == 1000
    assert bool(sampling.dpm_sample(ours, x, flow, flow.labels(20), [0, 0]).isfinite().all())


def test_noise_on_a_flow(latents):
    from diffusers import FlowMatchEulerDiscreteScheduler

    from diffaug_datasets.numerics.schedule import add_noise

    x0, eps, flow = latents(2, 4, 8, 8), latents(2, 4, 8, 8, seed=1), FlowSchedule(shift=3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    theirs = scheduler.scale_noise(x0, scheduler.timesteps[[3, 7]], eps)
    labels = flow.labels(10)
    torch.testing.assert_close(add_noise(flow, x0, eps, [labels[3], labels[7]]), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sample", [sampling.ddim_sample, sampling.dpm_sample])
@pytest.mark.parametrize("flow", [FlowSchedule(shift=3.0), schedule_of("v_prediction", "trailing", zero_snr=True)])
def test_rows_that_start_later_are_what_they_are_alone(latents, sample, flow):
    x, labels = latents(3, 4, 8, 8), sampler_timesteps(flow, "ddim", 10)
    together = sample(ours, x, flow, labels, [0, 4, 9])
    alone = [sample(ours, x[i : i + 1], flow, labels, [s]) for i, s in enumerate([0, 4, 9])]
    assert torch.equal(together, torch.cat(alone))


MEAN, SPREAD = 0.7, 0.4


def flow_of_gaussian(x, t, _step=0):
    """E[eps - x0 | x] of data from N(MEAN, SPREAD^2) at sigma = t / 1000."""
    s = t / 1000
    variance = (1 - s) ** 2 * SPREAD**2 + s * s
    score = (x - (1 - s) * MEAN) / variance
    return s * score - (MEAN + (1 - s) * SPREAD**2 * score)


def carried(x, start, end):
    """Where the flow takes x: its standard score within the marginal never changes."""
    first, last = (math.hypot((1 - s) * SPREAD, s) for s in (start, end))
    return (1 - end) * MEAN + last * (x - (1 - start) * MEAN) / first


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
@pytest.mark.parametrize("upwards", [False, True])
def test_orders_on_a_flow(latents, solver, order, upwards):
    """Against the closed form, both ways; as labels rise, Euler asks at the label behind the step."""
    x, flow, errors = latents(1, 1, 4, 4, dtype=torch.float64), FlowSchedule(), []
    for n in (20, 40, 80, 160):
        falling = tuple(1000 * (1 - i / n) for i in range(n))
        if upwards:
            found, exact = ddim_invert(flow_of_gaussian, x, flow, falling[::-1], solver), carried(x, 0, 1)
        elif solver == "midpoint":
            found, exact = midpoint_sample(flow_of_gaussian, x, flow, falling), carried(x, 1, 0)
        else:
            found, exact = sampling.ddim_sample(flow_of_gaussian, x, flow, falling, [0]), carried(x, 1, 0)
        errors.append(float((found - exact).abs().max()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # The field of this data is linear in x, on which the midpoint rule happens to be one order better.
    assert orders[-2:] == pytest.approx([order + (solver == "midpoint")] * 2, abs=0.2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_midpoint_is_of_second_order_on_variance_preserving_schedules(latents, kind):
    x0 = latents(1, 1, 4, 4, dtype=torch.float64)
    schedule, errors = Schedule(torch.linspace(0.95, 0.02, 961, dtype=torch.float64), prediction=kind), []

    def said(x, t, _step):
        a, s = schedule.pair(t)
        score = (x - a * MEAN) / (a * a * SPREAD**2 + s * s)
        eps, data = s * score, MEAN + a * SPREAD**2 * score
        return eps if kind == "epsilon" else a * eps - s * data

    for n in (20, 40, 80, 160):
        labels = tuple(range(960 // n, 961, 960 // n))
        up = ddim_invert(said, x0, schedule, labels, "midpoint")
        (a, s), (b, r) = schedule.end, schedule.pair(960)
        exact = b * MEAN + math.hypot(b * SPREAD, r) * (x0 - a * MEAN) / math.hypot(a * SPREAD, s)
        errors.append(float((up - exact).abs().max()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-2:] == pytest.approx([2] * 2, abs=0.25)


def test_what_a_flow_is_not_asked_for():
    flow = FlowSchedule()
    with pytest.raises(ValueError, match="use euler or dpm"):
        sampler_timesteps(flow, "plms", 10)
    with pytest.raises(ValueError, match="ends without noise"):
        sampling.end_of(flow, "alpha_bar_0")
    with pytest.raises(ValueError, match="labels of a flow run from 0 to 1000"):
        flow.pair(1001)
    for n in (0, 1001):
        with pytest.raises(ValueError, match="give 1 to 1000"):
            flow.labels(n)
    with pytest.raises(ValueError, match="give a number above 0"):
        FlowSchedule(shift=0)


def test_plms_is_for_eps_alone(latents):
    schedule = schedule_of("v_prediction", "leading")
    with pytest.raises(ValueError, match="PLMS extrapolates eps"):
        sampling.plms_sample(ours, latents(1, 4, 4, 4), schedule, sampler_timesteps(schedule, "plms", 5), [0])


def test_ddim_of_the_same_labels_by_any_prediction(latents):
    """A network that says the same in other words gives the same picture."""
    x, results = latents(1, 4, 8, 8, dtype=torch.float64), []
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule = schedule_of(kind, "leading")

        def said(x, t, _step, schedule=schedule, kind=kind):
            (a, s), eps = schedule.pair(t), network(x, t)
            x0 = (x - s * eps) / a
            return {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0}[kind]

        results.append(sampling.ddim_sample(said, x, schedule, ddim_timesteps(schedule, 25), [0]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)

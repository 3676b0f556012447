"""BDIA and EDICT come back whatever the network says; midpoint comes back far better than DDIM."""

import pytest
import torch

from diffaug_datasets.numerics import inverting
from diffaug_datasets.numerics.flow import FlowSchedule
from diffaug_datasets.numerics.inverters import calls
from diffaug_datasets.numerics.inverting import (
    bdia_invert,
    bdia_sample,
    ddim_invert,
    edict_invert,
    edict_sample,
    midpoint_sample,
)
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import Schedule, sampler_timesteps

PROCESSES = {
    "epsilon": Schedule.from_betas("scaled_linear", 0.00085, 0.012),
    "v": Schedule.from_betas("scaled_linear", 0.00085, 0.012, prediction="v_prediction"),
    "v at zero SNR": Schedule.from_betas(
        "scaled_linear", 0.00085, 0.012, spacing="trailing", prediction="v_prediction", is_zero_snr=True
    ),
    "flow": FlowSchedule(shift=3.0),
}
EXACT = {"bdia": (bdia_invert, bdia_sample), "edict": (edict_invert, edict_sample)}


@pytest.fixture
def counted(toy_eps):
    """The toy network, and how often it was asked."""
    asked = []

    def network(x, t, _step):
        asked.append(t)
        return 0.5 * toy_eps(x, t)

    return network, asked


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("inverter", EXACT)
@pytest.mark.parametrize("n", [2, 10, 25])
def test_exact_inverters_come_back(latents, counted, name, inverter, n):
    process, x0, (network, asked) = PROCESSES[name], latents(2, 4, 8, 8, dtype=torch.float64), counted
    there, back = EXACT[inverter]
    labels = sampler_timesteps(process, "ddim", n)
    pair = there(network, x0, process, labels[::-1])
    assert len(asked) == calls(inverter, n, upwards=True)
    asked.clear()
    found = back(network, pair, process, labels)
    assert len(asked) == calls(inverter, n)
    assert float((found - x0).abs().max()) < 1e-8 * float(pair.abs().max())


@pytest.mark.parametrize("inverter", EXACT)
def test_the_comparison_sees_a_fault(monkeypatch, latents, counted, inverter):
    process, x0, (network, _) = PROCESSES["epsilon"], latents(1, 4, 8, 8, dtype=torch.float64), counted
    there, back = EXACT[inverter]
    labels = sampler_timesteps(process, "ddim", 10)
    pair = there(network, x0, process, labels[::-1])
    monkeypatch.setattr(inverting, "MIXING", 0.95)
    moved = labels if inverter == "edict" else (*labels[:4], labels[4] + 1, *labels[5:])
    assert float((back(network, pair, process, moved) - x0).abs().max()) > 1e-4


def test_bdia_is_ddim_where_the_network_is_constant(latents):
    """The steps up and down then undo each other, so nothing is left of the state beyond."""
    process, x0 = PROCESSES["epsilon"], latents(1, 4, 8, 8, dtype=torch.float64)
    eps = latents(1, 4, 8, 8, seed=1, dtype=torch.float64)
    labels = sampler_timesteps(process, "ddim", 10)

    def constant(x, t, _step):
        return eps

    pair = bdia_invert(constant, x0, process, labels[::-1])
    torch.testing.assert_close(pair[0], ddim_invert(constant, x0, process, labels[::-1]), rtol=0, atol=1e-12)


def test_edict_by_hand(latents):
    """One step of the paper's Eq. 14, written out from its own coefficients."""
    process, p = PROCESSES["epsilon"], 0.93
    x, y = latents(2, 1, 4, 4, 4, dtype=torch.float64)
    a_t, a_before = float(process.alpha_bar[501]), float(process.alpha_bar[0])
    a = (a_before / a_t) ** 0.5
    b = (1 - a_before) ** 0.5 - (a_before * (1 - a_t) / a_t) ** 0.5

    def network(z, t, _step):
        return 0.2 * z * z + t / 1000

    first, second = y, x  # the first step begins with the second latent
    first_inter = a * first + b * network(second, 501, 0)
    second_inter = a * second + b * network(first_inter, 501, 0)
    first_out = p * first_inter + (1 - p) * second_inter
    second_out = p * second_inter + (1 - p) * first_out
    found = edict_sample(network, torch.stack([x, y]), process, [501])
    torch.testing.assert_close(found, second_out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_midpoint_comes_back_far_better_than_ddim(latents, name):
    process, x0 = PROCESSES[name], latents(1, 4, 8, 8, dtype=torch.float64)

    def network(x, t, _step):
        return 0.3 * x * float(t) / 1000 + 0.1 * x / (1 + x * x)

    labels = sampler_timesteps(process, "ddim", 25)
    once = ddim_sample(network, ddim_invert(network, x0, process, labels[::-1]), process, labels, [0])
    twice = midpoint_sample(network, ddim_invert(network, x0, process, labels[::-1], "midpoint"), process, labels)
    errors = [float((found - x0).norm() / x0.norm()) for found in (once, twice)]
    assert errors[1] < errors[0] / 20 and errors[0] > 1e-3, errors


def test_too_few_labels_are_refused(latents, counted):
    process, x0, (network, _) = PROCESSES["epsilon"], latents(1, 4, 8, 8), counted
    with pytest.raises(ValueError, match="2 or more labels that rise"):
        bdia_invert(network, x0, process, [1])
    with pytest.raises(ValueError, match="needs labels that rise"):
        edict_invert(network, x0, process, [41, 1])

"""PLMS equals diffusers' `PNDMScheduler` from every start, and a batch of several starts equals them one by one."""

import pytest
import torch

from diffaug_datasets.numerics import sampling
from diffaug_datasets.numerics.schedule import plms_timesteps
from diffaug_datasets.numerics.timesteps import img2img_start, plms_labels

TOLERANCE = 1e-5


@pytest.fixture
def plms_error(sd15, reference, toy_eps, latents):
    def measure(n, start):
        xt = latents(2, 4, 8, 8)
        theirs = reference.plms(toy_eps, xt, n, start)
        labels = plms_timesteps(sd15, n)
        ours = sampling.plms_sample(lambda x, t, i: toy_eps(x, t), xt, sd15, labels, [start] * 2)
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    return measure


@pytest.mark.parametrize("n", [2, 3, 10, 25, 50])
def test_labels(reference, n):
    assert plms_labels(n) == reference.labels("PNDMScheduler", n)


def test_the_labels_of_the_specification():
    assert plms_labels(50)[:4] == (981, 961, 961, 941)
    assert plms_labels(50)[-2:] == (21, 1)
    with pytest.raises(ValueError, match="PLMS needs 2 or more"):
        plms_labels(1)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("n", [4, 10, 25, 50])
def test_every_strength(plms_error, n, strength):
    assert plms_error(n, img2img_start(n, strength)) < TOLERANCE


@pytest.mark.parametrize("start", range(6))
def test_every_start_of_five_steps(plms_error, start):
    assert plms_error(5, start) < TOLERANCE


def test_a_row_never_depends_on_its_neighbours_start(sd15, toy_eps, latents):
    xt, starts, labels = latents(6, 4, 8, 8), [0, 1, 2, 5, 9, 10], plms_labels(10)
    together = sampling.plms_sample(lambda x, t, i: toy_eps(x, t), xt, sd15, labels, starts)
    alone = [
        sampling.plms_sample(lambda x, t, i: toy_eps(x, t), row[None], sd15, labels, [start])
        for row, start in zip(xt, starts, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("starts", [[0], [0, 11], [0, -1]])
def test_starts_out_of_range_are_refused(sd15, toy_eps, latents, starts):
    with pytest.raises(ValueError, match=r"one index in 0\.\.10 for each of 2 rows"):
        sampling.plms_sample(lambda x, t, i: toy_eps(x, t), latents(2, 4, 8, 8), sd15, plms_labels(10), starts)


def forget_the_second_evaluation(monkeypatch):
    monkeypatch.setattr(sampling, "_noise", lambda seen, first, i: seen[i])


def nudge_a_weight(monkeypatch):
    monkeypatch.setattr(sampling, "WEIGHTS", (*sampling.WEIGHTS[:3], (55 / 24, -59 / 24, 37.5 / 24, -9 / 24)))


def flip_the_step(monkeypatch):
    step = sampling.step
    monkeypatch.setattr(sampling, "step", lambda kind, xt, eps, level, to: step(kind, xt, -eps, level, to))


@pytest.mark.parametrize("plant", [forget_the_second_evaluation, nudge_a_weight, flip_the_step])
def test_the_comparison_sees_a_fault(monkeypatch, plms_error, plant):
    plant(monkeypatch)
    assert plms_error(25, 6) > 10 * TOLERANCE

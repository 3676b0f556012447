"""The closed form against the definition, and samplers against the exact flow."""

import torch

from diffaug_datasets.models.toy import ToyBackbone
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import add_noise, ddim_timesteps


def test_eps_is_the_conditional_mean() -> None:
    toy = ToyBackbone(mu=1.5, s=0.5, shape=(1, 200, 200))
    generator = torch.Generator().manual_seed(0)
    x0 = 1.5 + 0.5 * torch.randn(1, *toy.latent_shape, generator=generator, dtype=torch.float64)
    eps = torch.randn(1, *toy.latent_shape, generator=generator, dtype=torch.float64)
    xt = add_noise(toy.schedule, x0, eps, [500])
    found = toy.eps(xt, 500, toy.prompts([""]))
    # The mean is the best linear prediction: what is left over is uncorrelated with the state, and has mean zero.
    left = (eps - found).flatten()
    assert abs(float(left.mean())) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([left, xt.flatten()]))[0, 1])) < 0.02
    assert toy.calls == toy.rows_evaluated == 1


def test_many_steps_reach_the_exact_sample() -> None:
    toy = ToyBackbone(mu=0.7, s=0.4, shape=(1, 3, 3))
    xt = torch.randn(2, *toy.latent_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cond = toy.prompts(["", ""])

    def error(n: int) -> float:
        labels = ddim_timesteps(toy.schedule, n)
        found = ddim_sample(lambda x, t, step: toy.eps(x, t, cond), xt, toy.schedule, labels, [0, 0])
        return float((found - toy.exact_sample(xt, labels[0])).abs().max())

    assert error(500) < 0.02
    assert error(500) < error(20)


def test_conditions_move_the_mean_row_by_row() -> None:
    toy = ToyBackbone(shape=(1, 1, 1))
    eps = toy.eps(torch.zeros(3, 1, 1, 1), [500, 500, 1], toy.prompts(["", "2", "2"])).flatten()
    assert eps[0] == 0
    assert eps[1] < eps[2] < 0

"""DDIM inversion of real images, in batches of one shape, so that a latent never depends on how many are inverted."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.sampling import Eps, ddim_invert
from diffaug_datasets.numerics.schedule import ddim_inverse_timesteps


def invert(
    backbone: Backbone, images: Sequence[Float[Tensor, "3 h w"]], prompts: Sequence[str], *, steps: int, batch: int
) -> list[Float[Tensor, "c h w"]]:
    """The latent at the last label of `steps` inversion steps for every image in [-1, 1], without guidance (Eq. 4).

    One network row an image and step. A short last batch is padded by its last image; the padding is dropped.
    """
    labels = ddim_inverse_timesteps(backbone.schedule, steps)
    inverted: list[Tensor] = []
    for begin in range(0, len(images), batch):
        part = list(range(begin, min(begin + batch, len(images))))
        padded = part + [part[-1]] * (batch - len(part))
        cond = backbone.prompts([prompts[i] for i in padded])
        x0 = backbone.encode(torch.stack([images[i] for i in padded]))
        latents = ddim_invert(_network(backbone, cond), x0, backbone.schedule, labels)
        inverted += list(latents[: len(part)].cpu())
    return inverted


def _network(backbone: Backbone, cond: Tensor) -> Eps:
    return lambda xt, t, _: backbone.eps(xt, t, cond)

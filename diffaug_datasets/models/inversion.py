"""DDIM inversion of real images and back, in batches of one shape, so that no latent depends on how many there are."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.sampling import Eps, ddim_invert, ddim_sample
from diffaug_datasets.numerics.schedule import ddim_inverse_timesteps, ddim_timesteps


def invert(
    backbone: Backbone, images: Iterable[Float[Tensor, "3 h w"]], prompts: Sequence[str], *, steps: int, batch: int
) -> list[Float[Tensor, "c h w"]]:
    """The latent at the last label of `steps` inversion steps for every image in [-1, 1], without guidance (Eq. 4).

    The images, one a prompt, are taken batch by batch. One network row an image and step. A short last batch is padded
    by its last image; the padding is dropped.
    """
    labels = ddim_inverse_timesteps(backbone.schedule, steps)
    inverted: list[Tensor] = []
    pairs = zip(images, prompts, strict=True)
    while part := list(islice(pairs, batch)):
        padded = part + [part[-1]] * (batch - len(part))
        cond = backbone.prompts([prompt for _, prompt in padded])
        x0 = backbone.encode(torch.stack([image for image, _ in padded]))
        latents = ddim_invert(_network(backbone, cond), x0, backbone.schedule, labels)
        inverted += list(latents[: len(part)].cpu())
    return inverted


def restored(
    backbone: Backbone, latents: Sequence[Float[Tensor, "c h w"]], prompts: Sequence[str], *, steps: int, batch: int
) -> list[Float[Tensor, "3 h w"]]:
    """Images in [0, 1], on the CPU, that inverted latents give back: DDIM over `steps` steps, without guidance."""
    labels = ddim_timesteps(backbone.schedule, steps)
    images: list[Tensor] = []
    for begin in range(0, len(latents), batch):
        part = list(range(begin, min(begin + batch, len(latents))))
        padded = part + [part[-1]] * (batch - len(part))
        cond = backbone.prompts([prompts[i] for i in padded])
        xt = torch.stack([latents[i] for i in padded]).to(backbone.device)
        clean = ddim_sample(_network(backbone, cond), xt, backbone.schedule, labels, [0] * batch)
        images += list(backbone.decode_float(clean)[: len(part)].cpu())
    return images


def psnr(image: Float[Tensor, "3 h w"], other: Float[Tensor, "3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; 100 at most, so that equal images have a number."""
    error = float((image.double() - other.double()).square().mean())
    return -10 * math.log10(max(error, 1e-10))


def _network(backbone: Backbone, cond: Tensor) -> Eps:
    return lambda xt, t, _: backbone.eps(xt, t, cond)

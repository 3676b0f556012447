"""InstructPix2Pix: an image edited as a text instructs (Brooks et al. 2023, arXiv 2211.09800).

The U-Net sees the image's latents beside the state: twice the channels. Guidance has two scales, away from no text and
away from no image (equation 3 of the paper):
eps = e(0, 0) + s_I (e(image, 0) - e(0, 0)) + s_T (e(image, text) - e(image, 0)).
Follows diffusers' `StableDiffusionInstructPix2PixPipeline`: the image's latents are the posterior's mode, not scaled.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.ancestral import EpsAt, euler_ancestral_sample


def instructed(
    model: DiffusionModel,
    images: Float[Tensor, "b 3 H W"],
    prompts: Sequence[str],
    negative: Sequence[str],
    scale: Sequence[float],
    image_scale: float,
    n: int,
    seeds: Sequence[int],
) -> Float[Tensor, "b 3 H W"]:
    """Images in [-1, 1], edited: float32 in [0, 1]; row j's noise follows from seeds[j] alone."""
    backbone = cast(Backbone, model)  # that of a plan which was refused had it no editing U-Net
    seen = backbone.image_latents(images)
    eps = edit_network(backbone, seen, prompts, negative, torch.tensor(list(scale)), image_scale)
    streams = [Generator("cpu").manual_seed(seed) for seed in seeds]
    return backbone.decode_float(euler_ancestral_sample(eps, backbone.vp_schedule, n, streams, backbone.latent_shape))


def edit_network(
    backbone: Backbone,
    seen: Float[Tensor, "b c h w"],
    prompts: Sequence[str],
    negative: Sequence[str],
    scale: Float[Tensor, " b"],
    image_scale: float,
) -> EpsAt:
    """The guided noise prediction: one network call of 3 b rows a step, of b rows where both scales are 1.

    A row without guidance always gets its value from a call of b rows, whatever stands beside it.
    """
    cond, uncond = backbone.prompts(prompts), backbone.prompts(negative, negative=True)
    scale = scale.to(backbone.device, torch.float32)
    plain = (scale == 1) & (image_scale == 1)
    texts, images = torch.cat([cond, uncond, uncond]), torch.cat([seen, seen, torch.zeros_like(seen)])

    def eps(xt: Tensor, t: float) -> Tensor:
        alone = backbone.eps(xt, t, cond, seen) if bool(plain.any()) else None
        if alone is not None and bool(plain.all()):
            return alone
        full, image, nothing = backbone.eps(torch.cat([xt] * 3), t, texts, images).chunk(3)
        guided = nothing + scale[:, None, None, None] * (full - image) + image_scale * (image - nothing)
        return guided if alone is None else torch.where(plain[:, None, None, None], alone, guided)

    return eps


def edit_branches(scale: float, image_scale: float) -> int:
    """U-Net rows of one image and step."""
    return 1 if scale == image_scale == 1 else 3

"""Guided denoising of a batch whose rows differ in start step, guidance and prompts.

DDIM inversion of real images and back, in batches of one shape, so that no latent depends on how many there are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.method import Context, Generated
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.sampling import Eps, ddim_invert, ddim_sample, dpm_sample, plms_sample
from diffaug_datasets.numerics.schedule import (
    add_noise,
    ddim_inverse_timesteps,
    ddim_timesteps,
    dpm_timesteps,
    plms_timesteps,
)

Sampler = Literal["ddim", "dpm", "plms"]
LABELS = {"ddim": ddim_timesteps, "dpm": dpm_timesteps, "plms": plms_timesteps}
SAMPLERS = {"ddim": ddim_sample, "dpm": dpm_sample, "plms": plms_sample}


@dataclass(frozen=True)
class Conditions:
    """What row j is denoised towards: `first[j]` for its leading `switch[j]` steps, then `last[j]`."""

    last: Sequence[str]
    negative: Sequence[str]
    scale: Sequence[float]
    first: Sequence[str] | None = None
    switch: Sequence[int] | None = None


def guided_network(backbone: Backbone, conditions: Conditions) -> Eps:
    """The guided noise prediction of a batch: one network call a step, both guidance branches in it."""
    last, uncond = backbone.prompts(conditions.last), backbone.prompts(conditions.negative)
    first = backbone.prompts(conditions.first) if conditions.first else last
    switch = torch.tensor(list(conditions.switch or [0] * len(conditions.last)), device=last.device)
    scale = torch.tensor(list(conditions.scale), device=last.device, dtype=torch.float32)

    def eps(xt: Tensor, t: int, step: int) -> Tensor:
        cond = torch.where((step < switch)[:, None, None], first, last)
        return backbone.guided_eps(xt, t, cond, uncond, scale)

    return eps


def timesteps(backbone: Backbone, sampler: Sampler, n: int) -> tuple[int, ...]:
    """The sampler's descending timestep labels."""
    return LABELS[sampler](backbone.schedule, n)


def denoise(
    backbone: Backbone,
    xt: Float[Tensor, "b c h w"],
    conditions: Conditions,
    sampler: Sampler,
    n: int,
    start: Sequence[int],
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0; row j begins at step `start[j]` of `n`."""
    return sampled(backbone, guided_network(backbone, conditions), xt, sampler, n, start)


def sampled(
    backbone: Backbone, eps: Eps, xt: Float[Tensor, "b c h w"], sampler: Sampler, n: int, start: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0 under any noise prediction."""
    return SAMPLERS[sampler](eps, xt, backbone.schedule, timesteps(backbone, sampler, n), start)


def row_conditions(rows: Sequence[PlanRow]) -> Conditions:
    """The prompts and guidance scales that the rows were planned with."""
    return Conditions(
        last=[row.prompt or "" for row in rows],
        negative=[row.negative_prompt or "" for row in rows],
        scale=[1.0 if row.guidance_scale is None else row.guidance_scale for row in rows],
    )


class Sampling(Protocol):
    """The part of a method's `Config` that an edit reads."""

    @property
    def sampler(self) -> Sampler:
        """Which solver."""

    @property
    def num_inference_steps(self) -> int:
        """Length of the whole schedule."""

    @property
    def resize(self) -> Any:
        """How sources are fitted (`pixels.Resize`)."""


def edit(
    ctx: Context,
    rows: Sequence[PlanRow],
    conditions: Conditions,
    cfg: Sampling,
    noised_at: Sequence[int | None],
    start: Sequence[int],
) -> list[Generated]:
    """Noise every row's first source to label `noised_at[j]` (None = keep no source) and denoise it from `start[j]`."""
    backbone: Backbone = ctx.backbone
    sources = torch.stack([backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows])
    eps = ctx.noise(rows)
    noised = add_noise(backbone.schedule, backbone.encode(sources), eps, [t or 0 for t in noised_at])
    pure = torch.tensor([t is None for t in noised_at], device=eps.device)[:, None, None, None]
    xt = torch.where(pure, eps, noised)
    latents = denoise(backbone, xt, conditions, cfg.sampler, cfg.num_inference_steps, start)
    return pictures(backbone, latents)


def pictures(backbone: Backbone, latents: Float[Tensor, "b c h w"]) -> list[Generated]:
    """The decoded images [h w 3] in [0, 1], one a row."""
    return [Generated(image.permute(1, 2, 0)) for image in backbone.decode_float(latents)]


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

"""From noise or a noised image to a picture, and from a picture back to noise: the samplers, driven by a real model.

Rows of a batch may differ in start step, guidance and prompts. Inversion and its way back go in batches of one shape,
so that no latent depends on how many there are. Sizes: b rows, latents [c h w], pictures [3 H W].
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.method import Context, DiffusionModel, Final, Generated, Resize, Sampler
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.numerics.inverting import ddim_invert
from diffaug_datasets.numerics.sampling import Network, ddim_sample, dpm_sample, plms_sample
from diffaug_datasets.numerics.schedule import (
    add_noise,
    ddim_inverse_timesteps,
    ddim_timesteps,
    dpm_timesteps,
    plms_timesteps,
)

TIMESTEPS = {"ddim": ddim_timesteps, "dpm": dpm_timesteps, "plms": plms_timesteps}
SAMPLERS = {"ddim": ddim_sample, "dpm": dpm_sample, "plms": plms_sample}


@dataclass(frozen=True)
class Conditions:
    """What row j is denoised towards: `first[j]` for its leading `switch[j]` steps, then `last[j]`.

    `negative`: prompts of the unconditional branch; `scale`: of guidance, 1 = none.
    """

    last: Sequence[str]
    negative: Sequence[str]
    scale: Sequence[float]
    first: Sequence[str] | None = None
    switch: Sequence[int] | None = None


class EditSettings(Protocol):
    """The part of a method's `Config` that an edit reads."""

    @property
    def sampler(self) -> Sampler:
        """Which solver."""

    @property
    def num_inference_steps(self) -> int:
        """Length of the whole schedule."""

    @property
    def resize(self) -> Resize:
        """How sources are fitted."""

    @property
    def final(self) -> Final | None:
        """Where sampling ends."""


def row_conditions(rows: Sequence[PlanRow]) -> Conditions:
    """The prompts and guidance scales that the rows were planned with."""
    return Conditions(
        last=[row.prompt or "" for row in rows],
        negative=[row.negative_prompt or "" for row in rows],
        scale=[1.0 if row.guidance_scale is None else row.guidance_scale for row in rows],
    )


def edit(
    ctx: Context,
    rows: Sequence[PlanRow],
    conditions: Conditions,
    cfg: EditSettings,
    noised_at: Sequence[int | None],
    start: Sequence[int],
) -> list[Generated]:
    """Noise every row's first source to label `noised_at[j]` (None = keep no source) and denoise it from `start[j]`."""
    backbone = ctx.backbone
    sources = torch.stack([backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows])
    eps = ctx.noise(rows)
    noised = add_noise(backbone.schedule, backbone.encode(sources), eps, [t or 0 for t in noised_at])
    pure = torch.tensor([t is None for t in noised_at], device=eps.device)[:, None, None, None]
    xt = torch.where(pure, eps, noised)
    latents = denoise(backbone, xt, conditions, cfg.sampler, cfg.num_inference_steps, start, cfg.final)
    return pictures(backbone, latents)


def denoise(
    backbone: DiffusionModel,
    xt: Float[Tensor, "b c h w"],
    conditions: Conditions,
    sampler: Sampler,
    n: int,
    start: Sequence[int],
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0, under guidance; row j begins at step `start[j]` of `n`. `final`: where sampling ends."""
    return sampled(backbone, guided_network(backbone, conditions), xt, sampler, n, start, final)


def sampled(
    backbone: DiffusionModel,
    network: Network,
    xt: Float[Tensor, "b c h w"],
    sampler: Sampler,
    n: int,
    start: Sequence[int],
    final: Final | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0 under any prediction."""
    return SAMPLERS[sampler](network, xt, backbone.schedule, timesteps(backbone, sampler, n), start, final)


def timesteps(backbone: DiffusionModel, sampler: Sampler, n: int) -> tuple[int, ...]:
    """The sampler's `n` descending timestep labels; PLMS has one more."""
    return TIMESTEPS[sampler](backbone.schedule, n)


def guided_network(backbone: DiffusionModel, conditions: Conditions) -> Network:
    """The guided noise prediction of a batch: one network call per step, both guidance branches in it."""
    last, uncond = backbone.prompts(conditions.last), backbone.prompts(conditions.negative)
    first = backbone.prompts(conditions.first) if conditions.first else last
    switch = torch.tensor(list(conditions.switch or [0] * len(conditions.last)), device=last.device)
    scale = torch.tensor(list(conditions.scale), device=last.device, dtype=torch.float32)

    def eps(xt: Tensor, t: float, step: int) -> Tensor:
        cond = torch.where((step < switch)[:, None, None], first, last)
        return backbone.guided_eps(xt, t, cond, uncond, scale)

    return eps


def pictures(backbone: DiffusionModel, latents: Float[Tensor, "b c h w"]) -> list[Generated]:
    """The decoded images [h w 3] in [0, 1], one per row."""
    return [Generated(image.permute(1, 2, 0)) for image in backbone.decode_float(latents)]


def invert(
    backbone: DiffusionModel,
    images: Iterable[Float[Tensor, "3 H W"]],
    prompts: Sequence[str],
    *,
    steps: int,
    batch: int,
) -> list[Float[Tensor, "c h w"]]:
    """The latent of every image in [-1, 1] at the last label of `steps` DDIM inversion steps, without guidance.

    Implements Eq. 4 of Diff-II. The images, one per prompt, are taken batch by batch, and the latents lie on the CPU.
    One network row per image and step. A short last batch is padded by its last image; the padding is dropped.
    """
    labels = ddim_inverse_timesteps(backbone.schedule, steps)
    inverted: list[Tensor] = []
    pairs = zip(images, prompts, strict=True)
    while part := list(islice(pairs, batch)):
        padded = part + [part[-1]] * (batch - len(part))
        eps = _unguided_network(backbone, [prompt for _, prompt in padded])
        x0 = backbone.encode(torch.stack([image for image, _ in padded]))
        inverted += list(ddim_invert(eps, x0, backbone.schedule, labels)[: len(part)].cpu())
    return inverted


def reconstructed(
    backbone: DiffusionModel,
    latents: Sequence[Float[Tensor, "c h w"]],
    prompts: Sequence[str],
    *,
    steps: int,
    batch: int,
) -> list[Float[Tensor, "3 H W"]]:
    """Images in [0, 1], on the CPU, that inverted latents give back: DDIM over `steps` steps, without guidance."""
    labels = ddim_timesteps(backbone.schedule, steps)
    images: list[Tensor] = []
    for begin in range(0, len(latents), batch):
        part = list(range(begin, min(begin + batch, len(latents))))
        padded = part + [part[-1]] * (batch - len(part))
        eps = _unguided_network(backbone, [prompts[i] for i in padded])
        xt = torch.stack([latents[i] for i in padded]).to(backbone.device)
        clean = ddim_sample(eps, xt, backbone.schedule, labels, [0] * batch)
        images += list(backbone.decode_float(clean)[: len(part)].cpu())
    return images


def _unguided_network(backbone: DiffusionModel, prompts: Sequence[str]) -> Network:
    cond = backbone.prompts(prompts)
    return lambda xt, t, _: backbone.eps(xt, t, cond)


def psnr(image: Float[Tensor, "3 h w"], other: Float[Tensor, "3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; 100 at most, so that equal images have a number."""
    error = float((image.double() - other.double()).square().mean())
    return -10 * math.log10(max(error, 1e-10))

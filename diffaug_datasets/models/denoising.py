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
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.driving import QuickGuidance, can_drive
from diffaug_datasets.numerics import inverting
from diffaug_datasets.numerics.inverters import Inverter, is_paired
from diffaug_datasets.numerics.multistep import Multistep
from diffaug_datasets.numerics.sampling import Network, ddim_sample, dpm_sample, plms_sample
from diffaug_datasets.numerics.schedule import add_noise, sampler_timesteps
from diffaug_datasets.numerics.timesteps import Timeline

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
    noised_at: Sequence[float | None],
    start: Sequence[int],
    posterior: Float[Tensor, "b c h w"] | None = None,
) -> list[Generated]:
    """Noise every row's first source to label `noised_at[j]` (None = keep no source) and denoise it from `start[j]`.

    `posterior`: standard normal draws that choose the sources' latents; None = the posterior's mode.
    """
    backbone = ctx.backbone
    sources = torch.stack([backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows])
    eps = ctx.noise(rows)
    clean = backbone.encode(sources, posterior)
    noised = add_noise(backbone.schedule, clean, eps, [t or 0 for t in noised_at])
    pure = torch.tensor([t is None for t in noised_at], device=eps.device)[:, None, None, None]
    xt = torch.where(pure, pure_noise(backbone, eps, cfg.sampler, cfg.num_inference_steps), noised)
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
    network = guided_network(backbone, conditions, timesteps(backbone, sampler, n))
    return sampled(backbone, network, xt, sampler, n, start, final)


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
    if can_drive(backbone):
        steps = Multistep(sampler, backbone.schedule, timesteps(backbone, sampler, n), start, final, xt.device)
        return steps.sample(network, xt)
    return SAMPLERS[sampler](network, xt, backbone.schedule, timesteps(backbone, sampler, n), start, final)


def timesteps(backbone: DiffusionModel, sampler: Sampler, n: int) -> tuple[float, ...]:
    """The sampler's `n` descending timestep labels; PLMS has one more."""
    return sampler_timesteps(backbone.schedule, sampler, n)


def timeline_of(backbone: DiffusionModel) -> Timeline:
    """The labels of a loaded model's schedule."""
    schedule = backbone.schedule
    return Timeline(schedule.num_train_timesteps, schedule.steps_offset, schedule.spacing)


def pure_noise(
    backbone: DiffusionModel, noise: Float[Tensor, "b c h w"], sampler: Sampler, n: int
) -> Float[Tensor, "b c h w"]:
    """Where sampling without a source starts: the noise, scaled to the first level where the model wants that."""
    if not backbone.schedule.is_noise_scaled:
        return noise
    return backbone.schedule.pair(timesteps(backbone, sampler, n)[0]).noise * noise


def guided_network(backbone: DiffusionModel, conditions: Conditions, labels: Sequence[float] = ()) -> Network:
    """The guided noise prediction of a batch: one network call per step, both guidance branches in it.

    `labels`: all that it will be asked at, for profiles that make them ready.
    """
    last, uncond = backbone.prompts(conditions.last), backbone.prompts(conditions.negative)
    first = backbone.prompts(conditions.first) if conditions.first else last
    if isinstance(backbone, Backbone) and can_drive(backbone):
        early = first if conditions.first else None
        moments = conditions.switch or ()
        return QuickGuidance(backbone, backbone.profile, last, uncond, conditions.scale, labels, early, moments)
    switch = torch.tensor(list(conditions.switch or [0] * len(conditions.last)), device=last.device)
    scale = torch.tensor(list(conditions.scale), device=last.device, dtype=torch.float32)

    def eps(xt: Tensor, t: float, step: int) -> Tensor:
        cond = torch.where((step < switch)[:, None, None], first, last)
        return backbone.guided_eps(xt, t, cond, uncond, scale)

    return eps


def guided_between(
    backbone: DiffusionModel,
    cond: Float[Tensor, "b s d"],
    uncond: Float[Tensor, "b s d"],
    scale: Sequence[float],
    labels: Sequence[float] = (),
) -> Network:
    """The same between two conditions of every row: eps(uncond) + scale (eps(cond) - eps(uncond))."""
    if isinstance(backbone, Backbone) and can_drive(backbone):
        return QuickGuidance(backbone, backbone.profile, cond, uncond, scale, labels)
    scales = torch.tensor(list(scale))
    return lambda xt, t, _: backbone.guided_eps(xt, t, cond, uncond, scales)


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
    inverter: Inverter = "ddim",
) -> list[Float[Tensor, "..."]]:
    """What every image in [-1, 1] comes from: its latent [c h w] at the last label of `steps` steps, without guidance,
    or a pair [2 c h w] where the inverter is one of pairs (`numerics.inverting`).

    Implements Eq. 4 of Diff-II. The images, one per prompt, are taken batch by batch, and the latents lie on the CPU.
    A short last batch is padded by its last image; the padding is dropped.
    """
    labels = timesteps(backbone, "ddim", steps)[::-1]
    inverted: list[Tensor] = []
    pairs = zip(images, prompts, strict=True)
    while part := list(islice(pairs, batch)):
        padded = part + [part[-1]] * (batch - len(part))
        network = _unguided_network(backbone, [prompt for _, prompt in padded])
        x0 = backbone.encode(torch.stack([image for image, _ in padded]))
        found = inverting.invert(inverter, network, x0, backbone.schedule, labels)[:, : len(part)].cpu()
        inverted += list(found.transpose(0, 1) if is_paired(inverter) else found[0])
    return inverted


def reconstructed(
    backbone: DiffusionModel,
    latents: Sequence[Float[Tensor, "..."]],
    prompts: Sequence[str],
    *,
    steps: int,
    batch: int,
    inverter: Inverter = "ddim",
) -> list[Float[Tensor, "3 H W"]]:
    """Images in [0, 1], on the CPU, that what `invert` gave gives back over `steps` steps, without guidance."""
    images: list[Tensor] = []
    for begin in range(0, len(latents), batch):
        part = list(range(begin, min(begin + batch, len(latents))))
        padded = part + [part[-1]] * (batch - len(part))
        network = _unguided_network(backbone, [prompts[i] for i in padded])
        states = torch.stack([latents[i] for i in padded]).to(backbone.device)
        clean = from_inverted(backbone, network, states, steps, inverter)
        images += list(backbone.decode_float(clean)[: len(part)].cpu())
    return images


def from_inverted(
    backbone: DiffusionModel, network: Network, states: Float[Tensor, "b ..."], steps: int, inverter: Inverter
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0 from states at the last label of an inversion, [b c h w] or pairs [b 2 c h w], by the same
    rule that inverted them and under any prediction.
    """
    process, labels = backbone.schedule, timesteps(backbone, "ddim", steps)
    if inverter == "midpoint":
        return inverting.midpoint_sample(network, states, process, labels)
    if is_paired(inverter):
        sample = inverting.bdia_sample if inverter == "bdia" else inverting.edict_sample
        return sample(network, states.transpose(0, 1), process, labels)
    return ddim_sample(network, states, process, labels, [0] * len(states))


def _unguided_network(backbone: DiffusionModel, prompts: Sequence[str]) -> Network:
    cond = backbone.prompts(prompts)
    return lambda xt, t, _: backbone.said(xt, t, cond)


def psnr(image: Float[Tensor, "3 h w"], other: Float[Tensor, "3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; 100 at most, so that equal images have a number."""
    error = float((image.double() - other.double()).square().mean())
    return -10 * math.log10(max(error, 1e-10))

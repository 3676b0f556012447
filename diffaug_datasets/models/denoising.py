"""From noise or a noised image to a picture, and from a picture back to noise: the samplers, driven by a real model.

Rows of a batch may differ in start step, guidance and prompts. Inversion and its way back go in batches of one shape,
so that no latent depends on how many there are. Sizes: b rows, latents [c h w], pictures [3 H W].
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.family import Sampler
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.method import Context, DiffusionModel, Final, Generated, Resize
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.numerics import inverting
from diffaug_datasets.numerics import schedule as levels
from diffaug_datasets.numerics.conditions import chosen
from diffaug_datasets.numerics.few_steps import ancestral_sample, consistency_sample
from diffaug_datasets.numerics.inverters import Inverter, is_paired
from diffaug_datasets.numerics.sampling import Network, ddim_sample, dpm_sample, plms_sample
from diffaug_datasets.numerics.schedule import Schedule, add_noise, sampler_timesteps
from diffaug_datasets.numerics.timesteps import Labels

NOISY = {"lcm": consistency_sample, "ancestral": ancestral_sample}
SAMPLERS = {"ddim": ddim_sample, "dpm": dpm_sample, "plms": plms_sample, "euler": ddim_sample}


@dataclass(frozen=True)
class Conditions:
    """What row j is denoised towards: `first[j]` for its leading `switch[j]` steps, then `last[j]`.

    `negative`: prompts of the unconditional branch; `scale`: of guidance, 1 = none. `seeds`: of the noise that samplers
    of few-step models draw after a step; others need none.
    """

    last: Sequence[str]
    negative: Sequence[str]
    scale: Sequence[float]
    first: Sequence[str] | None = None
    switch: Sequence[int] | None = None
    seeds: Sequence[int] = ()


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
        seeds=[row.seed or 0 for row in rows],
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
    network = guided_network(backbone, conditions)
    return sampled(backbone, network, xt, sampler, n, start, final, conditions.seeds)


def sampled(
    backbone: DiffusionModel,
    network: Network,
    xt: Float[Tensor, "b c h w"],
    sampler: Sampler,
    n: int,
    start: Sequence[int],
    final: Final | None = None,
    seeds: Sequence[int] = (),
) -> Float[Tensor, "b c h w"]:
    """Latents at level 0 under any prediction; `seeds`: one per row, for samplers that draw noise after a step.

    Raises:
        ValueError: the sampler needs seeds, and there are none.
    """
    labels = timesteps(backbone, sampler, n)
    if sampler not in NOISY:
        return SAMPLERS[sampler](network, xt, backbone.schedule, labels, start, final)
    if len(seeds) != len(xt):
        raise ValueError(f"got {len(seeds)} seeds for {len(xt)} rows; {sampler} draws noise of each row's own")
    schedule = cast(Schedule, backbone.schedule)  # or the plan was refused
    return NOISY[sampler](network, xt, schedule, labels, start, lambda i: later_noise(backbone, seeds, i))


def later_noise(backbone: DiffusionModel, seeds: Sequence[int], step: int) -> Float[Tensor, "b c h w"]:
    """Standard normal latents that rows draw after a step, row j's from seeds[j] and the step alone."""
    streams = [torch.Generator("cpu").manual_seed(uint63(f"{seed}|after step|{step}")) for seed in seeds]
    drawn = [torch.randn(backbone.latent_shape, generator=stream) for stream in streams]
    return torch.stack(drawn).to(backbone.device)


def timesteps(backbone: DiffusionModel, sampler: Sampler, n: int) -> tuple[float, ...]:
    """The sampler's `n` descending timestep labels; PLMS has one more."""
    return sampler_timesteps(backbone.schedule, sampler, n)


def timeline_of(backbone: DiffusionModel) -> Labels:
    """The labels of a loaded model's schedule."""
    return levels.timeline_of(backbone.schedule)


def pure_noise(
    backbone: DiffusionModel, noise: Float[Tensor, "b c h w"], sampler: Sampler, n: int
) -> Float[Tensor, "b c h w"]:
    """Where sampling without a source starts: the noise, scaled to the first level where the model wants that."""
    if not backbone.schedule.is_noise_scaled:
        return noise
    return backbone.schedule.pair(timesteps(backbone, sampler, n)[0]).noise * noise


def guided_network(backbone: DiffusionModel, conditions: Conditions) -> Network:
    """The guided noise prediction of a batch: one network call per step, both guidance branches in it."""
    last, uncond = backbone.prompts(conditions.last), backbone.prompts(conditions.negative, negative=True)
    first = backbone.prompts(conditions.first) if conditions.first else last
    switch = torch.tensor(list(conditions.switch or [0] * len(conditions.last)), device=last.device)
    scale = torch.tensor(list(conditions.scale), device=last.device, dtype=torch.float32)

    def eps(xt: Tensor, t: float, step: int) -> Tensor:
        cond = chosen(step < switch, first, last)
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
    inverter: Inverter = "ddim",
) -> list[Float[Tensor, "..."]]:
    """What every image in [-1, 1] comes from: its latent [c h w] at the last label of `steps` steps, without guidance,
    or a pair [2 c h w] where the inverter is one of pairs (`numerics.inverting`).

    Implements Eq. 4 of Diff-II. The images, one per prompt, are taken batch by batch, and the latents lie on the CPU.
    A short last batch is padded by its last image; the padding is dropped.
    """
    labels = timesteps(backbone, "ddim", steps)[first_inverted(backbone, steps) :][::-1]
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
    first = first_inverted(backbone, steps)
    process, labels = backbone.schedule, timesteps(backbone, "ddim", steps)[first:]
    network = _later(network, first)
    if inverter == "midpoint":
        return inverting.midpoint_sample(network, states, process, labels)
    if is_paired(inverter):
        sample = inverting.bdia_sample if inverter == "bdia" else inverting.edict_sample
        return sample(network, states.transpose(0, 1), process, labels)
    return ddim_sample(network, states, process, labels, [0] * len(states))


def first_inverted(backbone: DiffusionModel, steps: int) -> int:
    """The step of `steps` that begins where an inversion ends: the first one, on a flow the first with any signal.

    At sigma 1 the state of a flow is noise alone, and no image has a way of its own to it.
    """
    if backbone.schedule.prediction != "flow_prediction":
        return 0
    return sum(backbone.schedule.pair(t).signal == 0 for t in timesteps(backbone, "ddim", steps))


def _later(network: Network, first: int) -> Network:
    """A network that is told the number of a step among all, of which the first few are left out."""
    return network if first == 0 else lambda xt, t, i: network(xt, t, i + first)


def _unguided_network(backbone: DiffusionModel, prompts: Sequence[str]) -> Network:
    cond = backbone.prompts(prompts)
    return lambda xt, t, _: backbone.said(xt, t, cond)


def psnr(image: Float[Tensor, "3 h w"], other: Float[Tensor, "3 h w"]) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1]; 100 at most, so that equal images have a number."""
    error = float((image.double() - other.double()).square().mean())
    return -10 * math.log10(max(error, 1e-10))

"""Diffusion Inversion: training images as learned conditions, varied and sampled (Zhou et al. 2023, arXiv 2305.15316).

1. one embedding sequence c_j per image, learned as its condition     fit `image_embeddings`, `models.concepts`
2. interpolation (1 - alpha) c_j + alpha c_k, k of the same class     `plan`, role `partner`
3. latent noise c + lambda eps                                       `generate`, the draw's `embedding_seed`
4. guided sampling from pure noise at a low resolution, where the    `models.concepts.guided_by_mean`
   unconditional branch sees the mean embedding of c_j's group
5. the picture at its source's size, with its label                  `Config.downscale`

The resolution is the recipe's `backbone.height` and `width` (the paper: 128 for CIFAR, 256 for STL-10 and Imagenette).
Follows the authors' code in the defaults, in grouping (`embeddings.by_class` is their way on MedMNIST and EuroSAT), and
in guidance: scale 2 here is w = 1 of the paper's (1 + w) eps_c - w eps_u. Their sampler is PNDM, here `plms`, which
presets name; the default is DDIM. Departs from it: a partner is never the image itself nor of another class, latents of
the posterior's mode; embeddings start within 0.1 whatever the group (theirs within 1/sqrt(images): the same for 100
images, 0.063 for 250; `embeddings.start: group`), and are shown in an order that every epoch draws anew (theirs: always
the same, `embeddings.order: fixed`), unless a preset of the authors' scripts says otherwise. Read from code and from
accounts of others: the paper's text was not at hand.

Burg et al. (arXiv 2304.10253) tune conditions of classes instead of images: the encoded class prompt as a whole
(`embeddings.start: prompt`), one per class or one per cluster of its images (`embeddings.clusters`), guided away from
the empty prompt (`unconditional: empty`). Only the names of these variants were at hand; the presets
`tuned_conditioning` and `tuned_clusters` are reconstructions, whose clusters are of latents and not of CLIP's features.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.numerics.timesteps import plms_labels
from diffaug_datasets.plugin import (
    Context,
    EmbeddingConfig,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    Later,
    PlanRow,
    PlanSpec,
    Resize,
    RowKey,
    Sampler,
    Source,
    SourceTable,
    canonical,
    fill,
    image_key,
    image_of,
    new_row,
)

if TYPE_CHECKING:
    from torch import Tensor

NAME = "diffusion_inversion"
SLUG = "diffinversion"
VERSION = 1
TITLE = "Diffusion Inversion"
PAPER = "2305.15316"
PARITY = "differs: DDIM unless a preset says PLMS (PNDM), and an image not shown in a step is not moved by it"
N_SOURCES = 2
LABEL_RULE = "source"
NEEDS = frozenset({"image_embeddings"})
PROMPT = "none, a learned condition"
START = "noise"
UNSURE = {
    "interpolation": "at second hand: the paper's range of alpha",
    "noise": "at second hand: the paper's range of lambda",
    "guidance_scale": "at second hand: the paper's w of 2 to 3; 2.0 is the authors' code",
    "embeddings.steps": "at second hand: the paper's limit of 3,000; the authors' scripts count 3,000 per image",
}


class Config(_editing.Sampling):
    """Learning, variation and sampling."""

    embeddings: EmbeddingConfig = EmbeddingConfig()
    interpolation: float = Field(default=0.1, ge=0, le=1, description="alpha, paper 0 to 0.4; 0 needs no partner")
    noise: float = Field(default=0.1, ge=0, description="lambda, paper 0 to 0.4; in units of the embedding")
    sampler: Sampler = Field(default="ddim", description="DPM-Solver++(2M), DDIM or PLMS (PNDM), the authors'")
    num_inference_steps: int = Field(default=100, ge=1, le=999)
    guidance_scale: Guidance = Field(default=2.0, description="1 + w of the paper; 1 = none")
    resize: Resize = Field(default="bicubic", description="how sources are fitted")
    unconditional: Annotated[Literal["mean", "empty"], Later()] = Field(
        default="mean",
        description="guidance leads away from the mean embedding of the group, or from the empty prompt, which needs "
        "embeddings.start: prompt",
    )
    prompt: Annotated[str, Later()] = Field(
        default="a photo of a {name} {metaclass}", description="of a class, where embeddings start at it"
    )
    downscale: bool = Field(default=True, description="store pictures at their source's size where that is smaller")

    def idle(self) -> dict[str, str]:
        """The prompt, where no embedding starts at it."""
        return {} if self.embeddings.start == "prompt" else {"prompt": "embeddings.start is not prompt"}

    @model_validator(mode="after")
    def _enough_steps(self) -> "Config":
        if self.sampler == "plms":
            plms_labels(self.num_inference_steps)
        return self

    @model_validator(mode="after")
    def _of_one_length(self) -> "Config":
        if self.unconditional == "empty" and self.embeddings.start != "prompt":
            raise ValueError(
                "unconditional: got 'empty', whose length is that of a prompt; set embeddings.start to prompt too"
            )
        return self


class Draw(BaseModel):
    """alpha: share of the partner; lam: scale of the noise on the embedding, drawn with `embedding_seed`."""

    alpha: float
    lam: float
    embedding_seed: int


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images: its images in turn, each with a partner drawn from the others."""
    rows = list(_pairs(cfg, table, spec))
    home = {image: unit.name for unit in fits(cfg, table, spec, rows) for image in unit.content["images"]}
    for row in rows:
        units = dict.fromkeys(home[image] for image in _images(row))
        yield row.model_copy(update={"adapters": tuple(units)})


def _pairs(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """The rows before they name their groups."""
    for label, images in table.by_class().items():
        distinct = list({source.id: source for source in images}.values())
        wanted = spec.count(len(images)) if distinct and spec.wants(label) else 0
        for k in range(wanted):
            yield _row(cfg, spec, RowKey(spec.seed, NAME, label, k), distinct)


def _row(cfg: Config, spec: PlanSpec, key: RowKey, images: list[Source]) -> PlanRow:
    own = images[key.k % len(images)]
    others = [source for source in images if source is not own]
    alpha = cfg.interpolation if others else 0.0
    chosen = (own, key.choice("partner", others)) if alpha else (own,)
    draw = Draw(alpha=alpha, lam=cfg.noise, embedding_seed=key.seed("embedding"))
    return new_row(
        VERSION,
        key,
        spec,
        source_ids=tuple(source.id for source in chosen),
        source_labels=tuple(source.label for source in chosen),
        num_inference_steps=cfg.num_inference_steps,
        start_step=0,
        guidance_scale=cfg.guidance_scale,
        strength=1.0,
        draw=canonical(draw.model_dump()),
        fallback="no_partner" if cfg.interpolation and not others else None,
    )


def redraw(row: PlanRow, key: RowKey, cfg: Config) -> PlanRow:
    """A later attempt has other noise, on the latent and on the embedding."""
    draw = Draw.model_validate_json(row.draw).model_copy(update={"embedding_seed": key.seed("embedding")})
    return row.model_copy(update={"draw": canonical(draw.model_dump()), "seed": key.seed("noise")})


def _images(row: PlanRow) -> list[str]:
    return [image_key(source_id, row.label) for source_id in row.source_ids]


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The embeddings of every group that holds an image of a row, one group per unit.

    Groups are cut from all real images and learned whole: what an image becomes depends on those beside it.
    """
    shared = cfg.embeddings.clusters > 0
    size = max(1, len(table)) if shared else cfg.embeddings.group
    payload = {"backbone": spec.backbone, "config": cfg.embeddings.identity(), "resize": cfg.resize, "size": spec.size}
    pools = table.by_class().values() if cfg.embeddings.by_class or shared else [table.sources]
    images = [list(dict.fromkeys(image_key(source.id, source.label) for source in pool)) for pool in pools]
    groups = [pool[i : i + size] for pool in images for i in range(0, len(pool), size)]
    used = {image for row in rows for image in _images(row)}
    wanted = [group for group in groups if not used.isdisjoint(group)]
    about = [{**payload, "images": group, **_class_prompts(cfg, table, group)} for group in wanted]
    return tuple(FitUnit.of("image_embeddings", content) for content in about)


def _class_prompts(cfg: Config, table: SourceTable, group: Sequence[str]) -> dict[str, dict[str, str]]:
    """The prompts that a group's embeddings start at, by class id."""
    if cfg.embeddings.start != "prompt":
        return {}
    labels = sorted({image_of(image)[1] for image in group})
    names, classes = table.prompt_names, table.class_names
    return {"prompts": {str(i): fill(cfg.prompt, names[i], table.metaclass, classes[i]) for i in labels}}


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """The embeddings [s d] of a group, by `image_key`."""
    prompts = {int(label): text for label, text in unit.content.get("prompts", {}).items()}
    return ctx.learn_embeddings(unit.content["images"], cfg.embeddings, resize=cfg.resize, prompts=prompts)


evaluations = _editing.evaluations


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch, each from its own condition, noise and group."""
    import torch

    from diffaug_datasets.models.concepts import guided_by_mean
    from diffaug_datasets.models.denoising import pictures, sampled

    pairs = [_condition(row, ctx) for row in rows]
    cond, mean = (torch.stack(part).to(ctx.backbone.device) for part in zip(*pairs, strict=True))
    if cfg.unconditional == "empty":
        mean = ctx.backbone.prompts([""] * len(rows))
    scale = torch.tensor([1.0 if row.guidance_scale is None else row.guidance_scale for row in rows])
    eps = guided_by_mean(ctx.backbone, cond, mean, scale)
    steps, starts = cfg.num_inference_steps, [0] * len(rows)
    seeds = [row.seed or 0 for row in rows]
    latents = sampled(ctx.backbone, eps, ctx.noise(rows), cfg.sampler, steps, starts, cfg.final, seeds)
    made = pictures(ctx.backbone, latents)
    return [_at_source_size(image, row, ctx) for image, row in zip(made, rows, strict=True)] if cfg.downscale else made


def _condition(row: PlanRow, ctx: Context) -> tuple["Tensor", "Tensor"]:
    """A row's condition [s d] and the mean embedding of its first source's group."""
    import torch

    from diffaug_datasets.models.concepts import perturbed

    draw = Draw.model_validate_json(row.draw)
    group = ctx.fit(row.adapters[0])
    known = {name: c for adapter in row.adapters for name, c in ctx.fit(adapter).items()}
    ends = [known[image] for image in _images(row)]
    noise = torch.randn(ends[0].shape, generator=torch.Generator("cpu").manual_seed(draw.embedding_seed))
    mean = torch.stack([group[name] for name in sorted(group)]).mean(0)
    return perturbed(ends[0], ends[-1], draw.alpha, noise, draw.lam), mean


def _at_source_size(image: Generated, row: PlanRow, ctx: Context) -> Generated:
    """The picture, averaged down to its source's size where that is smaller; values that are not finite stay so."""
    from torch.nn.functional import interpolate

    width, height = ctx.source(row.source_ids[0]).size
    if height >= image.pixels.shape[0] or width >= image.pixels.shape[1]:
        return image
    pixels = image.pixels.permute(2, 0, 1)[None]
    small = interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return Generated(small[0].permute(1, 2, 0))

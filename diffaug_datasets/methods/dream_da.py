"""DreamDA: a real image of the class, denoised again with noise in the U-Net's bottleneck (Fu et al. 2024).

Paper: "DreamDA: Generative data augmentation with diffusion models", arXiv 2403.12803.

1. a real image x of the class, each once before any repeats             `plan`, role `source`
2. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s                `numerics.schedule.add_noise`
3. its states, z_prev ~ q(z_prev | z_t, z_0), eta = 1 (CycleDiffusion)     `numerics.cycle.posterior_step`
4. what the prediction "" leaves of each step, r = z_prev - sqrt(ab_prev) z_0_hat - sqrt(1 - ab_prev - sigma^2) e_z
5. denoising under the class's prompt with the same rests r:
   y_prev = sqrt(ab_prev) y_0_hat + sqrt(1 - ab_prev - sigma^2) e_y + r   `numerics.cycle.cycle_sample`
6. e_y of a U-Net whose bottleneck is h + lambda xi, xi ~ N(0, I)         `models.bottleneck.BottleneckNoise`
7. the label is that of x                                                hard

Steps 3 to 5 are CycleDiffusion (Wu & De la Torre 2022, arXiv 2210.05559). The text leaves steps 3 to 6 open but for
their idea (invert, then add noise to the bottleneck in every reverse step). Follows the authors' code there:
CycleDiffusion as the inversion, 100 steps at strength 0.8, eta 1, guidance 7.5, lambda 3, new xi for every step and for
each branch of guidance, nothing added where the source is predicted. Departs from it: z_0 is the mode of the posterior,
theirs a draw (`encode: sample`, in their presets); their source is guided from the empty prompt to the empty prompt,
which changes nothing, so here it takes one prediction; their draws are the same for every image, here they are the
row's own. Prompts are those of their first list; their later run takes sentences of a language model, which `prompts`
can hold.

Fine-tuning is named by their scripts (`dreamda_x30_nofinetune`, `finetune=False`), but its code and its settings were
not released: both ways to learn are reconstructions. `lora`: LoRA before the perturbed process, of each class or of all
(`scope`), under the first of `prompts`; the U-Net predicts source and image with it. Its defaults and the preset's are
those of diffusers' own text-to-image script in the version that the authors' environment pins (0.20.2), which reads
lists of the form that theirs have. `fine_tuning`: a learned token for each class and one LoRA for all.

Their pseudo-labels (asymmetric multi-head self-training) belong to the classifier that learns from the images and were
not released either; what a classifier of the real images says of each image is `scores.judge`, by which filters can
keep the images that it agrees with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field, field_validator, model_validator

from diffaug_datasets.methods import _editing, _loras
from diffaug_datasets.methods._concepts import learn, unit_of
from diffaug_datasets.methods._editing import counts, source_columns
from diffaug_datasets.numerics.timesteps import img2img_start
from diffaug_datasets.plugin import (
    ConceptConfig,
    Context,
    FitFiles,
    FitUnit,
    Generated,
    Later,
    LoraConfig,
    PlanRow,
    PlanSpec,
    Requirements,
    Resize,
    RowKey,
    SourceTable,
    branches,
    fill,
    new_row,
    uint63,
)

if TYPE_CHECKING:
    from torch import Tensor

NAME = "dream_da"
SLUG = "dreamda"
VERSION = 1
TITLE = "DreamDA"
PAPER = "2403.12803"
PARITY = "differs: each row has draws of its own; fine-tuning, of which no code was released, is a reconstruction"
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name"
START = "noised image of the class"


class DiffusersLora(LoraConfig):
    """LoRA of the U-Net; defaults follow diffusers 0.20.2, examples/text_to_image/train_text_to_image_lora.py."""

    rank: int = Field(default=4, ge=1, le=512, description="of LoRA (alpha = rank); A starts at N(0, 1/rank^2)")
    text_encoder: bool = Field(default=False, description="learn LoRA of the text encoder too")
    epochs: int = Field(default=100, ge=0, le=1_000_000, description="passes over the images")
    batch: int = Field(default=16, ge=1, le=1024, description="images per step")
    lr_schedule: Literal["cosine", "constant"] = Field(
        default="constant", description="constant; or cosine = up in `warmup` steps, then down to zero at the last"
    )


class Config(_editing.FromSource):
    """How far back, how much noise in the bottleneck, and how to sample."""

    prompts: tuple[str, ...] = Field(
        default=("A photo of a {name}.",), description="each row takes one; {name}, {metaclass} are filled in"
    )
    sampler: Literal["ddim"] = Field(default="ddim", description="DDIM with noise, which CycleDiffusion needs")
    num_inference_steps: int = Field(default=100, ge=2, le=999)
    strength: float = Field(default=0.8, gt=0, le=1, description="share of the schedule")
    eta: float = Field(default=1.0, gt=0, le=1, description="noise of a step; 1 = as much as the forward process")
    perturbation: float = Field(default=3.0, ge=0, le=100, description="lambda: deviation of the bottleneck's noise")
    resize: Resize = Field(default="bicubic", description="how sources are fitted")
    fine_tuning: ConceptConfig | None = Field(
        default=None, description="learn a token per class and LoRA of all, {name} is then the token; null = not"
    )
    lora: Annotated[DiffusersLora | None, Later()] = Field(
        default=None, description="learn LoRA of the U-Net under the first of `prompts`; null = as the released script"
    )
    scope: Annotated[_loras.Scope, Later()] = "class"

    def idle(self) -> dict[str, str]:
        """Of which images LoRA is learned, where it is not."""
        return super().idle() | ({} if self.lora else {"scope": "lora is null"})

    @property
    def requirements(self) -> Requirements:
        """Steps that fit the schedule, and a U-Net whose bottleneck takes noise."""
        return replace(super().requirements, bottleneck=True)

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(text.strip() for text in value):
            raise ValueError("expected one or more prompts")
        return value

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        img2img_start(self.num_inference_steps, self.strength)
        return self

    @model_validator(mode="after")
    def _one_way_to_learn(self) -> "Config":
        if self.lora and self.fine_tuning:
            raise ValueError("lora and fine_tuning are two ways to learn the classes; set one of them")
        return self


Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, its images in turn, in an order that is the class's own."""
    groups, learned = table.by_class(), _units(cfg, table, spec)
    steps = cfg.columns(img2img_start(cfg.num_inference_steps, cfg.strength), cfg.strength)
    for label, count in counts(table, spec):
        images = sorted(groups[label], key=lambda s: uint63(f"{spec.seed}|{NAME}|{s.label}|source|{s.id}"))
        adapters = (learned[label].name,) if label in learned else ()
        name = cfg.fine_tuning.token(label) if cfg.fine_tuning else table.prompt_names[label]
        for k in range(count if images else 0):
            key = RowKey(spec.seed, NAME, label, k)
            prompt = fill(key.choice("prompt", cfg.prompts), name, table.metaclass)
            columns = source_columns(images[k % len(images)]) | steps | cfg.drawn(key)
            yield new_row(VERSION, key, spec, prompt=prompt, adapters=adapters, **columns)


def _units(cfg: Config, table: SourceTable, spec: PlanSpec) -> Mapping[int, FitUnit]:
    """Class id -> what its rows rest on; empty where nothing is learned."""
    if cfg.fine_tuning:
        unit = unit_of(table.sources, cfg.fine_tuning, cfg.resize, table, spec)
        return dict.fromkeys(range(len(table.class_names)), unit)
    if cfg.lora:
        return _loras.units(cfg.lora, cfg.scope, cfg.resize, table, spec, partial(_learned_prompt, cfg, table))
    return {}


def _learned_prompt(cfg: Config, table: SourceTable, label: int) -> str:
    return fill(cfg.prompts[0], table.prompt_names[label], table.metaclass)


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The concepts of all classes, or LoRA of those that rows are made of, where they are wanted."""
    learned = _units(cfg, table, spec)
    return _loras.cited(learned, rows) if learned else ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn the concepts, or the matrices of one run."""
    return _loras.learn(unit, cfg.lora, ctx) if cfg.lora else learn(unit, cfg.fine_tuning or ConceptConfig(), ctx)


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: each step predicts the source once, and the image under every branch of guidance."""
    return (1 + branches(row)) * (cfg.num_inference_steps - (row.start_step or 0))


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 2 to 6 of a batch, whose rows may differ in start step and in the LoRA that they rest on."""
    import torch

    from diffaug_datasets.models.bottleneck import BottleneckNoise, perturbed
    from diffaug_datasets.models.denoising import guided_towards, pictures, row_conditions
    from diffaug_datasets.models.few_shot import beside
    from diffaug_datasets.numerics.cycle import cycle_sample
    from diffaug_datasets.numerics.schedule import Schedule, add_noise, ddim_timesteps

    if cfg.fine_tuning:
        ctx.use_concepts(rows[0].adapters[0])
    loras = [ctx.fit(row.adapters[0]) if cfg.lora else {} for row in rows]
    backbone, starts = ctx.backbone, [row.start_step or 0 for row in rows]
    schedule = cast(Schedule, backbone.schedule)  # of a U-Net, or the plan was refused
    labels = ddim_timesteps(schedule, cfg.num_inference_steps)
    pixels = [backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows]
    clean = backbone.encode(torch.stack(pixels), _editing.posterior_noise(rows, cfg, ctx))
    noised = add_noise(backbone.schedule, clean, ctx.noise(rows), [labels[s] for s in starts])
    told = row_conditions(rows)
    empty, cond = (_loras.encoded(texts, loras, ctx) for texts in ([""] * len(rows), told.last))
    uncond = _loras.encoded(told.negative, loras, ctx, negative=True)
    guided = guided_towards(backbone, cond, uncond, told.scale)
    generators: list[torch.Generator] = []

    def of_source(xt: "Tensor", t: float, _step: int) -> "Tensor":
        return backbone.eps(xt, t, empty)

    def of_target(xt: "Tensor", t: float, step: int) -> "Tensor":
        seeds = [uint63(f"{row.seed}|{NAME}|{step}") for row in rows]
        generators[:] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with perturbed(backbone, BottleneckNoise(generators, cfg.perturbation)):
            return guided(xt, t, step)

    def noise(_step: int) -> "Tensor":
        draws = [torch.randn(backbone.latent_shape, generator=generator) for generator in generators]
        return torch.stack(draws).to(backbone.device)

    networks = (of_source, of_target)
    with beside(backbone, [_loras.part(lora, "unet") for lora in loras]) if cfg.lora else nullcontext():
        latents = cycle_sample(networks, clean, noised, noise, schedule, labels, starts, cfg.eta, cfg.final)
    return pictures(backbone, latents)

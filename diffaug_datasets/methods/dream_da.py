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

The text leaves steps 3 to 6 open but for their idea (invert, then add noise to the bottleneck in every reverse step).
Follows the authors' code there: CycleDiffusion as the inversion, 100 steps at strength 0.8, eta 1, guidance 7.5, lambda
3, new xi for every step and for each branch of guidance, nothing added where the source is predicted. Departs from it:
z_0 is the mode of the posterior, theirs a draw; their source is guided from the empty prompt to the empty prompt, which
changes nothing, so here it takes one prediction; their draws are the same for every image, here they are the row's own.
Prompts are those of their first list; their later run takes sentences of a language model, which `prompts` can hold.

Fine-tuning is named by their scripts but its code was not released: `fine_tuning` is a reconstruction, learned tokens
and one LoRA for all classes (a batch holds rows of many classes). Their pseudo-labels (asymmetric multi-head
self-training) belong to the classifier that learns from the images and were not released either; what a classifier of
the real images says of each image is `scores.judge`, by which filters can keep the images that it agrees with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field, field_validator, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._concepts import learn, unit_of
from diffaug_datasets.methods._editing import counts, source_columns
from diffaug_datasets.numerics.timesteps import img2img_start
from diffaug_datasets.plugin import (
    ConceptConfig,
    Context,
    FitFiles,
    FitUnit,
    Generated,
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
PARITY = "differs: the posterior's mode, where the authors' code draws; fine-tuning and pseudo-labels were not released"
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name"
START = "noised image of the class"


class Config(_editing.Prompted):
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
        default=None, description="learn the classes first, {name} is then their token; null = as the released script"
    )

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


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, its images in turn, in an order that is the class's own."""
    rows: list[PlanRow] = []
    groups = table.by_class()
    steps = cfg.columns(img2img_start(cfg.num_inference_steps, cfg.strength), cfg.strength)
    for label, count in counts(table, spec):
        images = sorted(groups[label], key=lambda s: uint63(f"{spec.seed}|{NAME}|{s.label}|source|{s.id}"))
        name = cfg.fine_tuning.token(label) if cfg.fine_tuning else table.prompt_names[label]
        for k in range(count if images else 0):
            key = RowKey(spec.seed, NAME, label, k)
            prompt = fill(key.choice("prompt", cfg.prompts), name, table.metaclass)
            columns = source_columns(images[k % len(images)]) | steps
            rows.append(new_row(VERSION, key, spec, prompt=prompt, **columns))
    learned = tuple(unit.name for unit in fits(cfg, table, spec, rows))
    return (row.model_copy(update={"adapters": learned}) for row in rows)


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, _rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The concepts of all classes, where they are wanted."""
    return (unit_of(table.sources, cfg.fine_tuning, cfg.resize, table, spec),) if cfg.fine_tuning else ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn the concepts."""
    return learn(unit, cfg.fine_tuning or ConceptConfig(), ctx)


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: each step predicts the source once, and the image under every branch of guidance."""
    return (1 + branches(row)) * (cfg.num_inference_steps - (row.start_step or 0))


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 2 to 6 of a batch, whose rows may differ in start step."""
    import torch

    from diffaug_datasets.models.bottleneck import BottleneckNoise, perturbed
    from diffaug_datasets.models.denoising import guided_network, pictures, row_conditions
    from diffaug_datasets.numerics.cycle import cycle_sample
    from diffaug_datasets.numerics.schedule import Schedule, add_noise, ddim_timesteps

    if rows[0].adapters:
        ctx.use_concepts(rows[0].adapters[0])
    backbone, starts = ctx.backbone, [row.start_step or 0 for row in rows]
    schedule = cast(Schedule, backbone.schedule)  # of a U-Net, or the plan was refused
    labels = ddim_timesteps(schedule, cfg.num_inference_steps)
    pixels = [backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows]
    clean = backbone.encode(torch.stack(pixels))
    noised = add_noise(backbone.schedule, clean, ctx.noise(rows), [labels[s] for s in starts])
    empty, guided = backbone.prompts([""] * len(rows)), guided_network(backbone, row_conditions(rows))
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
    return pictures(backbone, cycle_sample(networks, clean, noised, noise, schedule, labels, starts, cfg.eta))

"""Img2Img: a real image of the class, noised part of the way and denoised under its own class's prompt.

The baselines Img2Img-L (strength 0.3) and Img2Img-H (0.7) of GeNIe (arXiv 2312.02548, section 4.1).

1. a source image of the class itself                `plan`, role `source`
2. z_0 = mode of the posterior, scaled               `Backbone.encode`
3. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps         `numerics.schedule.add_noise`, t the first label that runs
4. guided denoising of the last int(n s) steps       `models.denoising.denoise`

Departs from the authors' edits in step 3: theirs noise at int(1000 s), up to a level beside the first label that runs,
and above 0.999 they start from pure noise, where strength 1 here still holds some signal of the source. The script's
`txt2img` is such an edit at ratio 0.8 (presets `txt2img_code`).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, Generated, Guidance, PlanSpec, branches, new_row
from diffaug_datasets.core.prompts import fill
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import SourceTable
from diffaug_datasets.numerics.timesteps import img2img_start

NAME = "img2img"
SLUG = "img2img"
VERSION = 1
TITLE = "Img2Img"
PAPER = "2312.02548"
PARITY = "differs: noise at the first label that runs, where the authors take int(1000 s), or pure noise above 0.999"
N_SOURCES = 1
LABEL_RULE = "source"
NEEDS: frozenset[str] = frozenset()
PROMPT = "class name"
START = "noised image of the class"


class Config(BaseModel):
    """How far to go back, and how to sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(default=0.7, gt=0, le=1, description="share of the schedule: 0.3 is -L, 0.7 is -H")
    prompt: str = Field(
        default="a photo of a {name} {metaclass}", description="{name}, {metaclass}, {synonyms} are filled in"
    )
    negative_prompt: str = Field(default="", description="prompt of the unconditional branch")
    sampler: Literal["dpm", "ddim"] = Field(default="dpm", description="DPM-Solver++(2M) or DDIM")
    num_inference_steps: int = Field(default=50, ge=1, le=999)
    guidance_scale: Guidance = 7.5
    resize: Literal["crop", "bilinear", "bicubic", "lanczos"] = Field(
        default="crop", description="how sources are fitted"
    )

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        img2img_start(self.num_inference_steps, self.strength)
        return self


class Draw(BaseModel):
    """Only the source and the noise are drawn."""


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows a class that has images, each from one of them, uniformly."""
    for label, images in table.by_class().items():
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass, table.class_names[label])
        for k in range(spec.count(len(images)) if images and label in (spec.targets or (label,)) else 0):
            key = RowKey(spec.seed, NAME, label, k)
            source = key.choice("source", images)
            yield new_row(
                VERSION, key, spec, prompt=prompt, source_ids=(source.id,), source_labels=(label,), **_steps(cfg)
            )


def _steps(cfg: Config) -> dict[str, float | int | str]:
    return {
        "negative_prompt": cfg.negative_prompt,
        "num_inference_steps": cfg.num_inference_steps,
        "start_step": img2img_start(cfg.num_inference_steps, cfg.strength),
        "guidance_scale": cfg.guidance_scale,
        "strength": cfg.strength,
    }


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """None."""
    return ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Never called: there is nothing to fit."""
    raise LookupError(f"img2img has no fit {unit.name}")


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: two branches a step that runs, one where w = 1."""
    return branches(row) * (cfg.num_inference_steps - (row.start_step or 0))


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch; rows may differ in start step."""
    from diffaug_datasets.models.denoising import edit, row_conditions, timesteps

    labels = timesteps(ctx.backbone, cfg.sampler, cfg.num_inference_steps)
    starts = [row.start_step or 0 for row in rows]
    return edit(ctx, rows, row_conditions(rows), cfg, [labels[s] for s in starts], starts)

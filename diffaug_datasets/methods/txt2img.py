"""Txt2Img: the class name as a prompt, pure noise as the start (the baseline of GeNIe, arXiv 2312.02548, section 4).

1. prompt of the target class                       `plan`
2. z_T ~ N(0, I), one generator a row               `generate` (`ctx.noise`)
3. guided denoising over the whole schedule         `models.denoising.denoise`

Departs from the authors' script, whose `txt2img` edits an image at ratio 0.8 unless told otherwise (the presets
`txt2img_code` of `img2img`); this one uses no image at all.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, Generated, Guidance, PlanSpec, branches, new_row
from diffaug_datasets.core.prompts import fill
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import SourceTable

NAME = "txt2img"
SLUG = "txt2img"
VERSION = 1
TITLE = "Txt2Img"
PAPER = "2312.02548"
PARITY = "differs: the authors' script of this name edits an image at ratio 0.8"
N_SOURCES = 0
LABEL_RULE = "target"
NEEDS: frozenset[str] = frozenset()
PROMPT = "class name"
START = "noise"


class Sampling(BaseModel):
    """How to sample from pure noise; shared with Real-Gen and Diff-Gen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: str = Field(default="", description="prompt of the unconditional branch")
    sampler: Literal["dpm", "ddim"] = Field(default="dpm", description="DPM-Solver++(2M) or DDIM")
    num_inference_steps: int = Field(default=50, ge=1, le=1000)
    guidance_scale: Guidance = 7.5

    def steps(self) -> dict[str, float | int | str]:
        """The columns of a row that runs the whole schedule."""
        return {
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "start_step": 0,
            "guidance_scale": self.guidance_scale,
            "strength": 1.0,
        }


class Config(Sampling):
    """How to prompt."""

    prompt: str = Field(
        default="a photo of a {name} {metaclass}", description="{name}, {metaclass}, {synonyms} are filled in"
    )


class Draw(BaseModel):
    """Nothing but the noise is drawn."""


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows for every class, whether or not it has images (then `per_class` must be set)."""
    images = table.by_class()
    for label in spec.targets or range(len(table.class_names)):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass, table.class_names[label])
        for k in range(spec.count(len(images.get(label, ())))):
            yield new_row(VERSION, RowKey(spec.seed, NAME, label, k), spec, prompt=prompt, **cfg.steps())


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """None."""
    return ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Never called: there is nothing to fit."""
    raise LookupError(f"txt2img has no fit {unit.name}")


def evaluations(cfg: Sampling, row: PlanRow) -> int:
    """U-Net rows for one image: two branches a step, one where w = 1."""
    return branches(row) * cfg.num_inference_steps


def generate(rows: Sequence[PlanRow], cfg: Sampling, ctx: Context) -> list[Generated]:
    """Images of a batch, row i from row i's own noise."""
    from diffaug_datasets.models.denoising import denoise, pictures, row_conditions

    starts, steps = [0] * len(rows), cfg.num_inference_steps
    latents = denoise(ctx.backbone, ctx.noise(rows), row_conditions(rows), cfg.sampler, steps, starts)
    return pictures(ctx.backbone, latents)

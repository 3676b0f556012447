"""What methods share that sample from pure noise, or edit a real image as Diff-Mix's code does.

1. the source, stretched to the backbone's size             `FromSource.resize`
   and encoded: the posterior's mode, or its sample         `FromSource.encode`, `Draw.posterior_seed`
2. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s    `timesteps.img2img_start`, `models.denoising.edit`
3. guided denoising of the last int(n s) steps                `models.denoising.denoise`
4. the picture, brought back to the source's own size         `restored`

From pure noise, z_T ~ N(0, I), step 3 alone, over the whole schedule.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from diffaug_datasets.core.family import Sampler, Solver
from diffaug_datasets.core.identity import RowKey, canonical
from diffaug_datasets.core.method import (
    Context,
    Final,
    Generated,
    Guidance,
    MethodConfig,
    PlanSpec,
    Requirements,
    Resize,
    StepCount,
    branches,
)
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.settings import Later
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.numerics.timesteps import img2img_start

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Targets = Annotated[
    Literal["proportional", "even"], Field(description="rows per class: by its images, or even (long tails)")
]
Encode = Annotated[
    Literal["mode", "sample"],
    Later(),
    Field(description="latent of a source: the posterior's mode, or sample, as img2img of diffusers takes it"),
]
Sources = Annotated[
    Literal["drawn", "each"],
    Later(),
    Field(description="drawn = uniformly for every row; each = the class's images in turn, so that all have as many"),
]
ClassPrompt = Annotated[str, Field(description="{name}, {metaclass} are filled in")]
SynonymPrompt = Annotated[str, Field(description="{name}, {metaclass}, {synonyms} are filled in")]


OTHER_SAMPLERS = "of a flow euler, of LCM lcm, of SDXL-Turbo ancestral"


def _in_range(strengths: tuple[float, ...]) -> tuple[float, ...]:
    if not strengths or not all(0 < s <= 1 for s in strengths):
        raise ValueError("expected one or more strengths in (0, 1]")
    return strengths


Strengths = Annotated[tuple[float, ...], AfterValidator(_in_range)]


class Sampling(MethodConfig):
    """How a batch is denoised."""

    sampler: Sampler = Field(default="dpm", description="DPM-Solver++(2M), DDIM or PLMS (PNDM); " + OTHER_SAMPLERS)
    num_inference_steps: int = Field(default=50, ge=1, le=999)
    guidance_scale: Guidance = 7.5
    final: Annotated[Final | None, Later()] = Field(
        default=None,
        description="where sampling ends: zero (no noise left) or alpha_bar_0 (the level of label 0, as diffusers 0.19 "
        "had it for dpm, with a last step of second order from 15 steps on); null = dpm at zero, ddim and plms where "
        "the model says",
    )

    @property
    def requirements(self) -> Requirements:
        """Steps that fit the backbone's schedule."""
        return Requirements(steps=(StepCount("num_inference_steps", self.sampler, self.num_inference_steps),))


class Prompted(Sampling):
    """The same, away from a prompt."""

    negative_prompt: str = Field(default="", description="prompt of the unconditional branch")

    def idle(self) -> dict[str, str]:
        """The prompt of a branch that guidance 1 does not have."""
        return {"negative_prompt": "guidance_scale is 1"} if self.guidance_scale == 1 else {}

    def columns(self, start_step: int, strength: float) -> dict[str, object]:
        """The columns of a row that begins at that step and denoises that share of the schedule."""
        return {
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "start_step": start_step,
            "guidance_scale": self.guidance_scale,
            "strength": strength,
        }


class FromNoise(Prompted):
    """How to sample from pure noise."""

    sampler: Solver = Field(default="dpm", description="DPM-Solver++(2M) or DDIM; " + OTHER_SAMPLERS)
    num_inference_steps: int = Field(default=50, ge=1, le=1000)

    def steps(self) -> dict[str, object]:
        """The columns of a row that runs the whole schedule."""
        return self.columns(0, 1.0)


class FromSource(Prompted):
    """How sources are fitted, noised and denoised."""

    resize: Resize = Field(default="crop", description="how sources are fitted")
    encode: Encode = "mode"

    def drawn(self, key: RowKey) -> dict[str, object]:
        """The column of a row's own draws: empty, unless sources are sampled."""
        return {} if self.encode == "mode" else {"draw": _draw_json(key)}

    def steps(self, strength: float) -> dict[str, object]:
        """The columns of a row that is denoised over the last int(n s) of n steps.

        Raises:
            ValueError: no step would run.
        """
        return self.columns(img2img_start(self.num_inference_steps, strength), strength)


class Editing(FromSource):
    """The settings of Diff-Mix's authors."""

    num_inference_steps: int = Field(default=25, ge=2, le=999)
    resize: Resize = Field(default="bilinear", description="how sources are fitted")
    restore_size: bool = Field(default=True, description="bring the image back to its source's size, not with crop")

    @property
    def requirements(self) -> Requirements:
        """Steps that fit the schedule; pictures at their sources' sizes, unless those were cropped."""
        at_source_size = self.restore_size and self.resize != "crop"
        return Requirements(steps=super().requirements.steps, at_source_size=at_source_size)


class Instructed(Protocol):
    """The part of a method's `Config` that an edit by InstructPix2Pix reads."""

    @property
    def num_inference_steps(self) -> int:
        """Of Euler's ancestral sampler."""

    @property
    def image_guidance_scale(self) -> float:
        """Towards the image."""


class Draw(BaseModel):
    """posterior_seed: of the noise that chooses the source's latent; None = the posterior's mode, which needs none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    posterior_seed: int | None = None


def _draw_json(key: RowKey) -> str:
    return canonical(Draw(posterior_seed=key.seed("posterior")).model_dump())


def redraw(row: PlanRow, key: RowKey, cfg: FromSource) -> PlanRow:
    """A later attempt has other noise, and another latent of its source where that is sampled."""
    return row.model_copy(update={"seed": key.seed("noise"), **cfg.drawn(key)})


def counts(table: SourceTable, spec: PlanSpec, targets: Targets = "proportional") -> Iterator[tuple[int, int]]:
    """(class id, rows) of every class: m times its images, or m times the mean of all classes (`even`)."""
    mean = len(table) / len(table.class_names)
    for label, images in table.by_class().items():
        if spec.wants(label):
            yield label, spec.count(mean if targets == "even" else len(images))


def own_source(key: RowKey, images: Sequence[Source], sources: Sources = "drawn") -> dict[str, object]:
    """The columns of one image of the row's own class: uniform, or the class's images in turn (`each`)."""
    return source_columns(images[key.k % len(images)] if sources == "each" else key.choice("source", images))


def source_columns(source: Source) -> dict[str, object]:
    """The columns that name a row's one source."""
    return {"source_ids": (source.id,), "source_labels": (source.label,)}


def evaluations(cfg: Sampling, row: PlanRow) -> int:
    """U-Net rows for one image: two branches per step that runs, one where w = 1. PLMS takes its first step twice."""
    labels = cfg.num_inference_steps + (cfg.sampler == "plms")
    return branches(row) * (labels - (row.start_step or 0))


def instructed_evaluations(cfg: Instructed, row: PlanRow) -> int:
    """U-Net rows for one image that InstructPix2Pix edits: three a step, one where neither scale guides."""
    plain = row.guidance_scale == 1 and cfg.image_guidance_scale == 1
    return cfg.num_inference_steps * (1 if plain else 3)


def instructed(
    rows: Sequence[PlanRow], cfg: Instructed, ctx: Context, sources: "Float[Tensor, 'b 3 H W']"
) -> "Float[Tensor, 'b 3 H W']":
    """Sources in [-1, 1], edited as their rows' prompts instruct: in [0, 1], row i by its own seed."""
    from diffaug_datasets.models import pix2pix
    from diffaug_datasets.models.denoising import row_conditions

    told, seeds = row_conditions(rows), [row.seed or 0 for row in rows]
    scales, steps = (told.scale, cfg.image_guidance_scale), cfg.num_inference_steps
    return pix2pix.instructed(ctx.backbone, sources, told.last, told.negative, *scales, steps, seeds)


def from_noise(rows: Sequence[PlanRow], cfg: FromNoise, ctx: Context) -> list[Generated]:
    """Images of a batch, row i from row i's own noise, under the concepts that the rows cite."""
    from diffaug_datasets.models.denoising import denoise, pictures, pure_noise, row_conditions

    _use_cited_concepts(rows, ctx)
    starts, steps = [0] * len(rows), cfg.num_inference_steps
    xt = pure_noise(ctx.backbone, ctx.noise(rows), cfg.sampler, steps)
    latents = denoise(ctx.backbone, xt, row_conditions(rows), cfg.sampler, steps, starts, cfg.final)
    return pictures(ctx.backbone, latents)


def from_source(rows: Sequence[PlanRow], cfg: FromSource, ctx: Context) -> list[Generated]:
    """Images of a batch, whose rows may differ in start step, under the concepts that the rows cite."""
    from diffaug_datasets.models.denoising import edit, row_conditions, timesteps

    _use_cited_concepts(rows, ctx)
    labels = timesteps(ctx.backbone, cfg.sampler, cfg.num_inference_steps)
    starts = [row.start_step or 0 for row in rows]
    noised_at = [labels[s] for s in starts]
    made = edit(ctx, rows, row_conditions(rows), cfg, noised_at, starts, posterior_noise(rows, cfg, ctx))
    return [restored(image, row, cfg, ctx) for image, row in zip(made, rows, strict=True)]


def posterior_noise(rows: Sequence[PlanRow], cfg: FromSource, ctx: Context) -> "Tensor | None":
    """Standard normal draws [b c h w] from the rows' posterior seeds; None where the mode is taken."""
    if cfg.encode == "mode":
        return None
    seeds = [Draw.model_validate_json(row.draw).posterior_seed for row in rows]
    return ctx.noise([row.model_copy(update={"seed": seed}) for row, seed in zip(rows, seeds, strict=True)])


def restored(image: Generated, row: PlanRow, cfg: FromSource, ctx: Context) -> Generated:
    """The image at the size of its source, by the filter that fitted the source; what is not finite stays as it is."""
    import torch
    from numpy import array

    from diffaug_datasets.models.backbone import FILTERS
    from diffaug_datasets.models.driving import resizes_itself
    from diffaug_datasets.models.resizing import resized

    if not cfg.requirements.at_source_size:
        return image
    height, width = image.pixels.shape[:2]
    size = ctx.source(row.source_ids[0]).size
    if size != (width, height) and resizes_itself(ctx.backbone, cfg.resize):
        return Generated(resized(image.pixels, size, cfg.resize), image.measured, image.chosen)
    if size == (width, height) or not bool(torch.isfinite(image.pixels).all()):
        return image
    picture = ctx.image(image.pixels).resize(size, FILTERS[cfg.resize])
    return Generated(torch.from_numpy(array(picture)), image.measured, image.chosen)


def _use_cited_concepts(rows: Sequence[PlanRow], ctx: Context) -> None:
    """All rows of a plan cite the same concepts, first, or none at all."""
    if rows[0].adapters:
        ctx.use_concepts(rows[0].adapters[0])

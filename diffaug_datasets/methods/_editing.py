"""Edits of real images as Diff-Mix's code makes them: one engine, which its authors and those they compare with share.

1. the source, stretched to the backbone's size             `Editing.resize`
2. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s    `timesteps.img2img_start`, `models.denoising.edit`
3. guided denoising of the last int(n s) steps                `models.denoising.denoise`
4. the picture, brought back to the source's own size         `restored`
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Context, Generated, Guidance, PlanSpec, branches
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.numerics.timesteps import img2img_start

if TYPE_CHECKING:
    from torch import Tensor

Targets = Literal["proportional", "even"]
Sampler = Literal["dpm", "ddim", "plms"]
Resizing = Literal["crop", "bilinear", "bicubic", "lanczos"]


def _in_range(strengths: tuple[float, ...]) -> tuple[float, ...]:
    if not strengths or not all(0 < s <= 1 for s in strengths):
        raise ValueError("expected one or more strengths in (0, 1]")
    return strengths


Strengths = Annotated[tuple[float, ...], AfterValidator(_in_range)]


class Editing(BaseModel):
    """How sources are prepared, noised and denoised; the authors' settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: str = Field(default="", description="prompt of the unconditional branch")
    sampler: Sampler = Field(default="dpm", description="DPM-Solver++(2M), DDIM or PLMS (PNDM)")
    num_inference_steps: int = Field(default=25, ge=2, le=999)
    guidance_scale: Guidance = 7.5
    resize: Resizing = Field(default="bilinear", description="how sources are fitted")
    restore_size: bool = Field(default=True, description="bring the image back to its source's size, not with crop")

    def steps(self, strength: float) -> dict[str, float | int | str]:
        """The columns of a row that is denoised over the last int(n s) of n steps.

        Raises:
            ValueError: no step would run.
        """
        return {
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "start_step": img2img_start(self.num_inference_steps, strength),
            "guidance_scale": self.guidance_scale,
            "strength": strength,
        }


def counts(table: SourceTable, spec: PlanSpec, targets: Targets = "proportional") -> Iterator[tuple[int, int]]:
    """(class id, rows) of every class: m times its images, or m times the mean of all classes (`even`)."""
    mean = len(table) / len(table.class_names)
    for label, images in table.by_class().items():
        if label in (spec.targets or (label,)):
            yield label, spec.count(mean if targets == "even" else len(images))


def own_source(key: RowKey, images: Sequence[Source]) -> dict[str, tuple[object, ...]]:
    """The columns of one image of the row's own class, uniform."""
    return source_columns(key.choice("source", images))


def source_columns(source: Source) -> dict[str, tuple[object, ...]]:
    """The columns that name a row's one source."""
    return {"source_ids": (source.id,), "source_labels": (source.label,)}


def evaluations(cfg: Editing, row: PlanRow) -> int:
    """U-Net rows for one image: two branches a step that runs, one where w = 1. PLMS takes its first step twice."""
    labels = cfg.num_inference_steps + (cfg.sampler == "plms")
    return branches(row) * (labels - (row.start_step or 0))


def edited(rows: Sequence[PlanRow], cfg: Editing, ctx: Context) -> list[Generated]:
    """Images of a batch, whose rows may differ in start step; `ctx` holds the concepts that the prompts name."""
    from diffaug_datasets.models.denoising import edit, row_conditions, timesteps

    labels = timesteps(ctx.backbone, cfg.sampler, cfg.num_inference_steps)
    starts = [row.start_step or 0 for row in rows]
    made = edit(ctx, rows, row_conditions(rows), cfg, [labels[s] for s in starts], starts)
    return [restored(image, row, cfg, ctx) for image, row in zip(made, rows, strict=True)]


def restored(image: Generated, row: PlanRow, cfg: Editing, ctx: Context) -> Generated:
    """The image at the size of its source, by the filter that fitted the source; what is not finite stays as it is."""
    import torch

    height, width = image.pixels.shape[:2]
    size = ctx.source(row.source_ids[0]).size
    keep = not cfg.restore_size or cfg.resize == "crop" or size == (width, height)
    if keep or not bool(torch.isfinite(image.pixels).all()):
        return image
    return Generated(_resized(image, size, cfg, ctx), image.measured, image.chosen)


def _resized(image: Generated, size: tuple[int, int], cfg: Editing, ctx: Context) -> "Tensor":
    import torch
    from numpy import array

    from diffaug_datasets.models.pixels import FILTERS

    picture = ctx.image(image.pixels).resize(size, FILTERS[cfg.resize])
    return torch.from_numpy(array(picture))

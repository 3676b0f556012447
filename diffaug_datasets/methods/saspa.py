"""SaSPA: the edges of a real image of the class, filled in anew under a prompt (Michaeli & Fried 2024).

Paper: "Advancing fine-grained classification by structure and subject preserving augmentation", NeurIPS 2024, arXiv
2406.14551.

1. sentences that a language model writes of the kind of thing, once per dataset     `prompts`, `suffixes`
2. a real image of the class, each once before any repeats                           `plan`, role `source`
3. a sentence with the class's name in it; half of them `, a painting of {painter}`  roles `prompt`, `suffix`, `style`
4. its Canny edges E, thresholds 120 and 200 of |dx| + |dy|                          `numerics.edges.canny`
5. z_T ~ N(0, I): nothing of the image's pixels is kept                             `ctx.noise`
6. DDIM of e(z_t, c; u(z_t, c, E)), u the ControlNet's residuals times 0.75          `models.controlnet.steered`
7. the label is that of the image                                                   hard
8. semantic filter: the text `a photo of an airplane` is nearer to the image, by CLIP's cosine, than `a photo of an
   object`, `an image`, ... are                                                      `caption_margin` of 0 or more
9. confidence filter: the label is among the ten likeliest classes of a classifier of the real images
                                                                                    `label_rank` of 10 or less

Steps 8 and 9 are what `scores.captions` and `scores.label_rank` measure, for filters of a recipe. Follows the authors'
code in its numbers: 30 steps (Cars 50), guidance 7.5, its negative prompt, Canny at 120 and 200 (ControlNet's own demo
takes 100 and 200), painters for Stable Diffusion alone. Departs from it: an image is stretched to the backbone's size
and brought back, theirs keeps its shape at 512 on its shorter side; which rows are paintings is drawn, theirs are every
second one. Its sentences name the kind of thing and put the class before it; here `{name}` stands in the sentence.

The subject representation, BLIP-diffusion's, which the authors take for Cars, CompCars and DTD, is not built: its
encoder is a network of its own kind. Aircraft they make with Stable Diffusion and edges alone, as this module does; CUB
with SDXL-Turbo, which cannot be driven.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._editing import counts, source_columns
from diffaug_datasets.plugin import (
    Context,
    Generated,
    Place,
    PlanRow,
    PlanSpec,
    Requirements,
    RowKey,
    SourceTable,
    fill,
    new_row,
    uint63,
    with_suffix,
)

NAME = "saspa"
SLUG = "saspa"
VERSION = 1
TITLE = "SaSPA"
PAPER = "2406.14551"
PARITY = (
    "differs: Stable Diffusion with edges alone, as the authors for Aircraft; BLIP-diffusion's subject is not built"
)
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name with a sentence"
START = "noise"
FILTER = "by recipe: CLIP and a classifier's ten likeliest"

_NEGATIVE = (
    "over-exposure, under-exposure, saturated, duplicate, out of frame, lowres, cropped, worst quality, low quality, "
    "jpeg artifacts, morbid, mutilated, out of frame, ugly, bad anatomy, bad proportions, deformed, blurry, duplicate"
)
_PAINTERS = (
    *("van gogh", "monet", "picasso", "da vinci", "michelangelo"),
    *("rembrandt", "raphael", "vermeer", "degas", "klimt"),
)


class Config(_editing.Editing):
    """Edges, sentences, and how to sample."""

    controlnet: Annotated[str | None, Place()] = Field(
        default=None, description="folder of a ControlNet of Canny edges, in diffusers format; needed"
    )
    subject: Literal["none", "blip_diffusion"] = Field(
        default="none", description="who the image shows: none = the prompt says it; blip_diffusion is not built"
    )
    prompts: tuple[str, ...] = Field(
        default=("a photo of a {name} {metaclass}",), description="sentences; {name}, {metaclass} are filled in"
    )
    suffixes: Annotated[tuple[str, ...] | str, Place(files=(".json",), only_files=True)] = Field(
        default="auto",
        description="ends of prompts: texts, a shipped list, a file of `diffaug captions`, or auto",
    )
    painters: tuple[str, ...] = Field(default=_PAINTERS, description="whose paintings some rows are")
    painted: float = Field(default=0.5, ge=0, le=1, description="share of the rows that are paintings")
    low: float = Field(default=120, ge=0, le=2040, description="Canny's lower threshold, of |dx| + |dy|")
    high: float = Field(default=200, ge=0, le=2040, description="Canny's higher threshold")
    conditioning_scale: float = Field(default=0.75, ge=0, le=10, description="weight of the ControlNet's residuals")
    negative_prompt: str = Field(default=_NEGATIVE, description="prompt of the unconditional branch")
    sampler: Literal["ddim", "dpm"] = Field(default="ddim", description="DDIM or DPM-Solver++(2M)")
    num_inference_steps: int = Field(default=30, ge=1, le=999)

    @field_validator("subject")
    @classmethod
    def _built(cls, value: str) -> str:
        if value != "none":
            raise ValueError("BLIP-diffusion's subject encoder is not built; set it to none")
        return value

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(text.strip() for text in value):
            raise ValueError("expected one or more prompts")
        return value

    @property
    def requirements(self) -> Requirements:
        """Those of an edit, ends of prompts, and a ControlNet."""
        edit = super().requirements
        return Requirements(
            steps=edit.steps,
            at_source_size=edit.at_source_size,
            suffixes=self.suffixes,
            controlnet=self.controlnet or "",
        )


evaluations = _editing.evaluations


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, its images in turn, in an order that is the class's own."""
    groups, steps = table.by_class(), cfg.columns(0, 1.0)
    for label, count in counts(table, spec):
        images = sorted(groups[label], key=lambda s: uint63(f"{spec.seed}|{NAME}|{s.label}|source|{s.id}"))
        for k in range(count if images else 0):
            key = RowKey(spec.seed, NAME, label, k)
            sentence = _sentence(cfg, key, table.prompt_names[label], table.metaclass, spec.suffixes)
            yield new_row(VERSION, key, spec, prompt=sentence, **source_columns(images[k % len(images)]), **steps)


def _sentence(cfg: Config, key: RowKey, name: str, metaclass: str, suffixes: Sequence[str]) -> str:
    """A sentence of the list, its end, and whose painting it is where it is one; no full stop at its end."""
    text = fill(key.choice("prompt", cfg.prompts), name, metaclass)
    text = with_suffix(text, key.choice("suffix", suffixes)) if suffixes else text
    text = text.removesuffix(".")
    is_painted = cfg.painters and key.uniform("style") < cfg.painted
    return f"{text}, a painting of {key.choice('painter', cfg.painters)}" if is_painted else text


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 4 to 6 of a batch."""
    import torch

    from diffaug_datasets.models.controlnet import edge_picture, steered
    from diffaug_datasets.models.denoising import denoise, pictures, row_conditions

    backbone = ctx.backbone
    fitted = [backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows]
    edges = torch.stack([edge_picture(image, cfg.low, cfg.high) for image in fitted])
    starts, steps = [0] * len(rows), cfg.num_inference_steps
    with steered(backbone, ctx.controlnet, edges, cfg.conditioning_scale):
        latents = denoise(backbone, ctx.noise(rows), row_conditions(rows), cfg.sampler, steps, starts, cfg.final)
    made = zip(pictures(backbone, latents), edges, strict=True)
    measured = [Generated(image.pixels, {"edge_share": float(edge[0].mean())}) for image, edge in made]
    return [_editing.restored(image, row, cfg, ctx) for image, row in zip(measured, rows, strict=True)]

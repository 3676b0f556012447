"""ALIA: a real image of the class, edited into the settings that language finds in the whole dataset (Dunlap et al.).

Paper: "Diversify your vision datasets with automatic diffusion-based augmentation", NeurIPS 2023, arXiv 2305.16289.

1. captions of training images, and a language model's summary of them: the domains   `diffaug captions`
2. every pair of an image of the class and a domain, each once before any repeats    `plan`, roles `source`, `suffix`
3. the class's prompt with the domain, `a photo of a {name} {metaclass} on a branch.`  `with_suffix`
4. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s                           `numerics.schedule.add_noise`
5. PLMS over the last steps under that prompt                                       `numerics.sampling.plms_sample`
   or, in the place of 4 and 5, InstructPix2Pix told `put the {name} on a branch.`  `models.pix2pix.instructed`
6. the label is that of the image                                                   hard
7. semantic filter: the text `a photo of a bird` is nearer to the image, by CLIP's cosine, than `a photo of an object`,
   `a painting`, ... are                                                             `caption_margin` of 0 or more
8. confidence filter: images go whose confidence under a classifier of the real images lies above the mean confidence
   of real images of their class, right (too easy) or wrong (mislabelled)           `confidence_margin` of 0 or less

Steps 7 and 8 are the recipe `alia_filter`; they mark images, and a classifier's folder is `scores.judge`. Follows the
authors' code in what the text leaves open: Stable Diffusion 1.5's own sampler (PNDM, 50 steps), guidance 7.5, strength
0.6 for CUB and 0.5 for iWildCam, the threshold of the image's own class (a line with that of the predicted one is
commented out). `editor: instruct` is their second way, InstructPix2Pix, by which they made Waterbirds (guidance 5,
towards the image 1.2) and one of two sets of iWildCam (5 and 1.3): no steps and no scheduler are given, so diffusers'
100 and the model's own, Euler's ancestral.

Departs from it: captions begin with the dataset's prefix and at most 200 are summed up, as in Diff-II, whose lists are
this method's way (theirs: all images, 20 captions at random); an image is stretched to the backbone's size and brought
back, theirs goes in at its own; unless `encode: sample`, the latent of an image that is noised is the posterior's mode;
thresholds are taken from real images as they are, theirs from the augmented views of training.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._editing import counts, source_columns
from diffaug_datasets.plugin import (
    Context,
    Generated,
    Later,
    Place,
    PlanRow,
    PlanSpec,
    RecipeError,
    Requirements,
    RowKey,
    Sampler,
    Source,
    SourceTable,
    fill,
    new_row,
    uint63,
    with_suffix,
)

NAME = "alia"
SLUG = "alia"
VERSION = 1
TITLE = "ALIA"
PAPER = "2305.16289"
PARITY = "differs: images at the backbone's size; captions and their summing up are Diff-II's"
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name with a domain"
START = "noised image of the class"
FILTER = "by recipe: CLIP and confidence"


class Config(_editing.Editing):
    """Domains, and how far edits go."""

    suffixes: Annotated[tuple[str, ...] | str, Place(files=(".json",), only_files=True)] = Field(
        default="auto",
        description="domains: texts, a shipped list, a file of `diffaug captions` (.json), or auto",
    )
    editor: Annotated[Literal["noised", "instruct"], Later()] = Field(
        default="noised", description="the noised image denoised by any Stable Diffusion, or InstructPix2Pix"
    )
    prompt: _editing.ClassPrompt = "a photo of a {name} {metaclass}"
    strength: float = Field(
        default=0.6, gt=0, le=1, description="share of the schedule: 0.6 for CUB, 0.5 for iWildCam; noised alone"
    )
    sampler: Sampler = Field(default="plms", description="PLMS (PNDM), DPM-Solver++(2M) or DDIM; noised alone")
    num_inference_steps: int = Field(
        default=50, ge=2, le=999, description="of the sampler; instruct: of Euler's ancestral, 100 for the authors"
    )
    image_guidance_scale: Annotated[float, Later()] = Field(
        default=1.2, ge=1, le=1000, description="towards the image; instruct alone"
    )

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.begun()
        return self

    def idle(self) -> dict[str, str]:
        """What the other way of editing reads."""
        if self.editor == "noised":
            return super().idle() | {"image_guidance_scale": "editor is noised"}
        keys = super().idle() if self.image_guidance_scale == 1 else {}
        return keys | dict.fromkeys(("strength", "sampler", "final", "encode"), "editor is instruct")

    def begun(self) -> dict[str, object]:
        """The columns of a row: an instructed edit begins at pure noise."""
        return self.columns(0, 1.0) if self.editor == "instruct" else self.steps(self.strength)

    @property
    def requirements(self) -> Requirements:
        """Those of an edit, domains, and where it is told what to do a backbone that edits by instruction."""
        edit, instructs = super().requirements, self.editor == "instruct"
        steps = () if instructs else edit.steps
        return Requirements(steps=steps, at_source_size=edit.at_source_size, suffixes=self.suffixes, editor=instructs)


Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images: its pairs of image and domain in an order that is the class's own.

    Raises:
        RecipeError: there is no domain.
    """
    if not spec.suffixes:
        raise RecipeError(
            "config.suffixes: no shipped list fits this dataset; give domains as texts, or the file that `diffaug "
            "captions` writes."
        )
    groups = table.by_class()
    for label, count in counts(table, spec):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass)
        pairs = _pairs(groups[label], spec)
        for k in range(count if pairs else 0):
            source, domain = pairs[k % len(pairs)]
            key, text = RowKey(spec.seed, NAME, label, k), with_suffix(prompt, domain)
            columns = source_columns(source) | cfg.begun() | cfg.drawn(key)
            yield new_row(VERSION, key, spec, prompt=text, **columns)


def _pairs(images: Sequence[Source], spec: PlanSpec) -> list[tuple[Source, str]]:
    """Every pair of an image of a class and a domain; rows that stand together differ in their images."""

    def place(source: Source, text: str = "") -> int:
        return uint63(f"{spec.seed}|{NAME}|{source.label}|pair|{source.id}|{text}")

    turned = sorted(images, key=place)
    domains = {source: sorted(spec.suffixes, key=partial(place, source)) for source in turned}
    return [(source, domains[source][i]) for i in range(len(spec.suffixes)) for source in turned]


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: those of an edit, or three a step of an instructed one."""
    return (_editing.instructed_evaluations if cfg.editor == "instruct" else _editing.evaluations)(cfg, row)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 4 and 5 of a batch, or what stands in their place."""
    if cfg.editor == "noised":
        return _editing.from_source(rows, cfg, ctx)
    import torch

    sources = torch.stack([ctx.backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows])
    edits = [Generated(image.permute(1, 2, 0)) for image in _editing.instructed(rows, cfg, ctx, sources)]
    return [_editing.restored(image, row, cfg, ctx) for image, row in zip(edits, rows, strict=True)]

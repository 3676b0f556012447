"""SaSPA: the edges of a real image of the class, filled in anew under a prompt (Michaeli & Fried 2024).

Paper: "Advancing fine-grained classification by structure and subject preserving augmentation", NeurIPS 2024, arXiv
2406.14551.

1. sentences that a language model writes of the kind of thing, once per dataset     `prompts`, `suffixes`
2. a real image of the class, each once before any repeats                           `plan`, role `source`
3. a sentence with the class's name in it; half of them `, a painting of {painter}`  roles `prompt`, `suffix`, `style`
4. its Canny edges E, thresholds 120 and 200 of |dx| + |dy|                          `numerics.edges.canny`
5. z_T ~ N(0, I): nothing of the image's pixels is kept                             `ctx.noise`
6. DDIM of e(z_t, c; u(z_t, c, E)), u the ControlNet's residuals times 0.75          `models.controlnet.steered`
   with a subject, c is of the sentence and of another image of the class            `models.subjects`
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

`subject: blip_diffusion` is how they make Cars, CompCars and DTD. A BLIP-Diffusion model (arXiv 2305.14720) is shown a
second image of the row's class, drawn from all of it, the one with the edges included, as 16 vectors that its Q-Former
makes of it and of the word for what all classes are. The prompt is `a car {sentence}` 20 times over, cut where the text
encoder is full, with the vectors after its first `a`; none is a painting. Their pipeline takes PNDM and the residuals
in full (`sampler: plms`, `conditioning_scale: 1`, as the preset has it). Needed are three folders of
Salesforce/blipdiffusion-controlnet: it as the backbone, its `controlnet` and its `qformer`, in safetensors, with BERT's
vocab.txt in the last. Departs from it: the second image is fitted straight from its file, theirs by way of 512 pixels.
Aircraft they make with Stable Diffusion and edges alone, CUB with SDXL-Turbo, a ControlNet of SDXL, and two steps of
DDIM without guidance (preset; here the noise begins 0.998 times as large and the VAE is the model's own, theirs is one
that was made for float16). DTD's prompts are captions of each image, which `prompts` cannot hold.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._editing import counts
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
    Source,
    SourceTable,
    canonical,
    fill,
    new_row,
    uint63,
    with_suffix,
)

if TYPE_CHECKING:
    from diffaug_datasets.numerics.sampling import Network

NAME = "saspa"
SLUG = "saspa"
VERSION = 1
TITLE = "SaSPA"
PAPER = "2406.14551"
PARITY = "differs: images at the backbone's size; which rows are paintings is drawn, not every second one"
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
        default="none", description="who the image shows: none = the prompt says it; or another image of the class does"
    )
    qformer: Annotated[str | None, Later(), Place()] = Field(
        default=None, description="folder of BLIP-Diffusion's Q-Former, in diffusers format; needed for its subject"
    )
    subject_name: Annotated[str, Later()] = Field(
        default="{metaclass}", description="what the Q-Former looks for and the prompt begins with: a car"
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
    sampler: Literal["ddim", "dpm", "plms"] = Field(default="ddim", description="DDIM, DPM-Solver++(2M) or PLMS (PNDM)")
    num_inference_steps: int = Field(default=30, ge=1, le=999)

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(text.strip() for text in value):
            raise ValueError("expected one or more prompts")
        return value

    def idle(self) -> dict[str, str]:
        """No source is encoded; a subject has words of its own, and no painter."""
        keys = super().idle() | {"encode": "images begin at noise"}
        if self.subject == "none":
            return keys | dict.fromkeys(("qformer", "subject_name"), "subject is none")
        unread = ("painters", "painted") if self.painted else ("painters",)
        return keys | dict.fromkeys(unread, f"subject is {self.subject}")

    @property
    def requirements(self) -> Requirements:
        """Those of an edit, ends of prompts, a ControlNet, and a Q-Former where it shows a subject."""
        edit = super().requirements
        return Requirements(
            steps=edit.steps,
            at_source_size=edit.at_source_size,
            suffixes=self.suffixes,
            controlnet=self.controlnet or "",
            qformer=None if self.subject == "none" else self.qformer or "",
        )


class Draw(BaseModel):
    """subject: the word for what the second image shows; None where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str | None = None


evaluations = _editing.evaluations


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, its images in turn, in an order that is the class's own.

    Raises:
        RecipeError: there is no word for the subject.
    """
    groups, steps, word = table.by_class(), cfg.columns(0, 1.0), _subject_name(cfg, table)
    for label, count in counts(table, spec):
        images = sorted(groups[label], key=lambda s: uint63(f"{spec.seed}|{NAME}|{s.label}|source|{s.id}"))
        for k in range(count if images else 0):
            key = RowKey(spec.seed, NAME, label, k)
            sentence = _sentence(cfg, key, table.prompt_names[label], table.metaclass, spec.suffixes)
            shown = (images[k % len(images)], *([key.choice("subject", images)] if word else []))
            yield new_row(VERSION, key, spec, prompt=sentence, **_shown(shown, word), **steps)


def _subject_name(cfg: Config, table: SourceTable) -> str | None:
    if cfg.subject == "none":
        return None
    if word := fill(cfg.subject_name, "", table.metaclass):
        return word
    raise RecipeError(
        "config.subject_name: the dataset states no word for what all its classes are; give one, such as car, or set "
        "the recipe's metaclass."
    )


def _shown(images: Sequence[Source], word: str | None) -> dict[str, object]:
    """The columns that name a row's images, that of the edges first, and what the other one shows."""
    drawn = {"draw": canonical(Draw(subject=word).model_dump())} if word else {}
    ids, labels = tuple(image.id for image in images), tuple(image.label for image in images)
    return {"source_ids": ids, "source_labels": labels, **drawn}


def _sentence(cfg: Config, key: RowKey, name: str, metaclass: str, suffixes: Sequence[str]) -> str:
    """A sentence of the list, its end, and whose painting it is where it is one; no full stop at its end."""
    text = fill(key.choice("prompt", cfg.prompts), name, metaclass)
    text = with_suffix(text, key.choice("suffix", suffixes)) if suffixes else text
    text = text.removesuffix(".")
    is_painted = cfg.painters and cfg.subject == "none" and key.uniform("style") < cfg.painted
    return f"{text}, a painting of {key.choice('painter', cfg.painters)}" if is_painted else text


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 4 to 6 of a batch."""
    import torch

    from diffaug_datasets.models.controlnet import edge_picture, steered
    from diffaug_datasets.models.denoising import pictures, sampled

    backbone, network = ctx.backbone, _network(rows, cfg, ctx)
    fitted = [backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows]
    edges = torch.stack([edge_picture(image, cfg.low, cfg.high) for image in fitted])
    starts, steps = [0] * len(rows), cfg.num_inference_steps
    with steered(backbone, ctx.controlnet, edges, cfg.conditioning_scale):
        latents = sampled(
            backbone, network, ctx.noise(rows), cfg.sampler, steps, starts, cfg.final, [row.seed or 0 for row in rows]
        )
    made = zip(pictures(backbone, latents), edges, strict=True)
    measured = [Generated(image.pixels, {"edge_share": float(edge[0].mean())}) for image, edge in made]
    return [_editing.restored(image, row, cfg, ctx) for image, row in zip(measured, rows, strict=True)]


def _network(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> "Network":
    """The guided prediction under the rows' sentences, and their subjects where they show one."""
    from diffaug_datasets.models.denoising import guided_network, guided_towards, row_conditions

    told = row_conditions(rows)
    if cfg.subject == "none":
        return guided_network(ctx.backbone, told)
    from diffaug_datasets.models.subjects import subject_conditions, subject_prompt

    words = [Draw.model_validate_json(row.draw).subject or "" for row in rows]
    vectors = [ctx.subject(ctx.source(row.source_ids[1]), word) for row, word in zip(rows, words, strict=True)]
    texts = [subject_prompt(word, sentence) for word, sentence in zip(words, told.last, strict=True)]
    cond = subject_conditions(ctx.backbone, vectors, texts)
    return guided_towards(ctx.backbone, cond, ctx.backbone.prompts(told.negative, negative=True), told.scale)

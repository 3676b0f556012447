"""DataDream: text-to-image by a model fine-tuned on a few images of the class (Kim et al. 2024, arXiv 2407.10910).

Paper: "DataDream: few-shot guided dataset generation", ECCV 2024.

1. LoRA of the U-Net and of the text encoder, min E || eps - eps_theta(z_t, t, tau(prompt)) ||^2 over the class's
   images under its own prompt, for each class by itself, or for all in one run       fit `lora`, `models.few_shot`
2. the same prompt, class name in words                                               `plan`
3. z_T ~ N(0, I), one generator per row                                               `generate` (`ctx.noise`)
4. guided denoising, 50 steps, guidance 2                                             `models.denoising.sampled`
5. the label of the prompt                                                            hard

`scope: class` is the paper's DataDream_cls, `scope: dataset` its DataDream_dset. Follows the authors' code
(ExplainableML/DataDream) in rank 16, both networks' targets, the normal start of LoRA, 200 epochs of batches of 8,
AdamW at 1e-4 with 100 steps of warm-up and a cosine, clipping, and one template (`a {domain} photo of a {name}`). The
paper leaves the sampler open; the code takes that of the checkpoint, Stable Diffusion 2.1, without saying which of the
two: here that of 512 pixels, at which they learn and store, and DDIM. Departs from it: images are fitted and cropped to
the middle (theirs: at random), latents are the posterior's mode, batches may span epochs, and pictures are not resized
afterwards. Rows of several classes share a batch: each row's LoRA stands beside the projections, so a row costs what it
would alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from diffaug_datasets.methods import _editing, _loras
from diffaug_datasets.plugin import (
    Context,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    LoraConfig,
    PlanRow,
    PlanSpec,
    Resize,
    RowKey,
    SourceTable,
    fill,
    new_row,
)

NAME = "datadream"
SLUG = "datadream"
VERSION = 1
TITLE = "DataDream"
PAPER = "2407.10910"
PARITY = "differs: images to learn from are cropped to the middle, and their latents are the posterior's mode"
N_SOURCES = 0
LABEL_RULE = "target"
NEEDS = frozenset({"lora"})
PROMPT = "class name"
START = "noise"
UNSURE = {"sampler": "from memory: the scheduler in the checkpoint of Stable Diffusion 2.1, which the code takes"}


class Config(_editing.FromNoise):
    """What is learned, of which images together, and sampling."""

    lora: LoraConfig = LoraConfig()
    scope: _loras.Scope = "class"
    prompt: str = Field(
        default="a {metaclass} photo of a {name}", description="of learning and of images; {name}, {metaclass}"
    )
    sampler: Literal["dpm", "ddim"] = Field(default="ddim", description="DPM-Solver++(2M) or DDIM")
    guidance_scale: Guidance = 2.0
    resize: Resize = Field(default="crop", description="how the images to learn from are fitted")


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images to learn from."""
    groups, units = table.by_class(), _units(cfg, table, spec)
    for label, count in _editing.counts(table, spec):
        for k in range(count if groups[label] else 0):
            key, adapters = RowKey(spec.seed, NAME, label, k), (units[label].name,)
            yield new_row(VERSION, key, spec, prompt=_prompt(cfg, table, label), adapters=adapters, **cfg.steps())


def _prompt(cfg: Config, table: SourceTable, label: int) -> str:
    return fill(cfg.prompt, table.prompt_names[label], table.metaclass, table.class_names[label])


def _units(cfg: Config, table: SourceTable, spec: PlanSpec) -> Mapping[int, FitUnit]:
    """Class id -> the training run that its rows rest on."""
    return _loras.units(cfg.lora, cfg.scope, cfg.resize, table, spec, partial(_prompt, cfg, table))


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """A training run for every class that rows are made of, or one for all."""
    return _loras.cited(_units(cfg, table, spec), rows)


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn the matrices of one run."""
    return _loras.learn(unit, cfg.lora, ctx)


evaluations = _editing.evaluations


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch, row i from its own noise under its own LoRA."""
    from diffaug_datasets.models.denoising import guided_towards, pictures, row_conditions, sampled
    from diffaug_datasets.models.few_shot import beside

    backbone = ctx.backbone
    loras = [ctx.fit(row.adapters[0]) for row in rows]
    told, starts = row_conditions(rows), [0] * len(rows)
    cond, uncond = (_loras.encoded(texts, loras, ctx) for texts in (told.last, told.negative))
    with beside(backbone, [_loras.part(lora, "unet") for lora in loras]):
        network = guided_towards(backbone, cond, uncond, told.scale)
        latents = sampled(backbone, network, ctx.noise(rows), cfg.sampler, cfg.num_inference_steps, starts, cfg.final)
    return pictures(backbone, latents)

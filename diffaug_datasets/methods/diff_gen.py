"""Diff-Gen: a class's learned token as a prompt, pure noise as the start (Diff-Mix, arXiv 2403.19600).

1. one token a class, learned together with LoRA on the U-Net   fit `concepts`, `models.concepts`
2. the token of the target class as a prompt                      `plan`
3. z_T ~ N(0, I), one generator a row                              `generate` (`ctx.noise`)
4. guided denoising over 25 steps                                `models.denoising.denoise`

The strategy `diff-gen` of the authors' code: Real-Gen with concepts, no source image. Departs from the code in drawing:
every class gets its planned number of rows, where theirs is itself drawn. Concepts are learned from images stretched to
a square (theirs: random crops) at the backbone's size (their current scripts: 224, `concepts.resolution`), on the
posterior's mode, with the tokens' gradient clipped too.
"""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field

from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, Generated, PlanSpec, new_row
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import SourceTable
from diffaug_datasets.methods import txt2img
from diffaug_datasets.methods._concepts import concept_unit, learn
from diffaug_datasets.methods._editing import Resizing, Targets, counts

NAME = "diff_gen"
SLUG = "diffgen"
VERSION = 1
TITLE = "Diff-Gen"
PAPER = "2403.19600"
PARITY = "differs: a fixed number of rows a class, where the authors draw it; concepts learned without crops, at 512"
N_SOURCES = 0
LABEL_RULE = "target"
NEEDS = frozenset({"concepts"})
PROMPT = "learned token"
START = "noise"


class Config(txt2img.Sampling):
    """Concepts and how many rows a class gets."""

    concepts: ConceptConfig = ConceptConfig()
    num_inference_steps: int = Field(default=25, ge=1, le=999)
    resize: Resizing = Field(default="bilinear", description="how the images to learn from are fitted")
    targets: Targets = Field(default="proportional", description="rows a class: by its images, or even (long tails)")


class Draw(BaseModel):
    """Nothing but the noise is drawn."""


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every class that has images to learn from."""
    concept, learned = concept_unit(cfg.concepts, cfg.resize, table, spec), {s.label for s in table.sources}
    for label, count in counts(table, spec, cfg.targets):
        prompt = cfg.concepts.prompt(label, table.metaclass)
        for k in range(count if label in learned else 0):
            key = RowKey(spec.seed, NAME, label, k)
            yield new_row(VERSION, key, spec, prompt=prompt, adapters=(concept.name,), **cfg.steps())


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The concepts of all classes."""
    return (concept_unit(cfg.concepts, cfg.resize, table, spec),)


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn the concepts."""
    return learn(unit, cfg.concepts, ctx)


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image."""
    return txt2img.evaluations(cfg, row)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch, row i from row i's own noise."""
    ctx.use_concepts(rows[0].adapters[0])
    return txt2img.generate(rows, cfg, ctx)

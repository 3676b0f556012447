"""Real-Gen: the class's name as a prompt, pure noise as the start (the control of Diff-Mix, arXiv 2403.19600).

1. the name of the target class, spelled out      `plan`
2. z_T ~ N(0, I), one generator a row               `generate` (`ctx.noise`)
3. guided denoising over 25 steps                 `models.denoising.denoise`

The strategy `real-gen` of the authors' code: no fine-tuning, no source image. Departs from it in the prompt, into which
theirs leaks the underscores of folder names, and in drawing: every class gets its planned number of rows, where theirs
is itself drawn. `txt2img` is the same with GeNIe's 50 steps.
"""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field

from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.method import Context, FitFiles, FitUnit, Generated, PlanSpec, new_row
from diffaug_datasets.core.prompts import fill
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import SourceTable
from diffaug_datasets.methods import txt2img
from diffaug_datasets.methods._editing import Targets, counts

NAME = "real_gen"
SLUG = "realgen"
VERSION = 1
TITLE = "Real-Gen"
PAPER = "2403.19600"
PARITY = "differs: no underscores in the prompt, and a fixed number of rows a class, where the authors draw the class"
N_SOURCES = 0
LABEL_RULE = "target"
NEEDS: frozenset[str] = frozenset()
PROMPT = "class name"
START = "noise"


class Config(txt2img.Sampling):
    """How to prompt and how many rows a class gets."""

    prompt: str = Field(default="a photo of a {name} {metaclass}", description="{name}, {metaclass} are filled in")
    num_inference_steps: int = Field(default=25, ge=1, le=999)
    targets: Targets = Field(default="proportional", description="rows a class: by its images, or even (long tails)")


class Draw(BaseModel):
    """Nothing but the noise is drawn."""


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every class, whether or not it has images."""
    for label, count in counts(table, spec, cfg.targets):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass)
        for k in range(count):
            yield new_row(VERSION, RowKey(spec.seed, NAME, label, k), spec, prompt=prompt, **cfg.steps())


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """None."""
    return ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Never called: there is nothing to fit."""
    raise LookupError(f"real_gen has no fit {unit.name}")


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image."""
    return txt2img.evaluations(cfg, row)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch, row i from row i's own noise."""
    return txt2img.generate(rows, cfg, ctx)

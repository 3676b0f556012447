"""Real-Guidance: a real image of the class, noised a little and denoised under its class's name (He et al. 2022).

Paper: "Is synthetic data from generative models ready for image recognition?", arXiv 2210.07574.

1. a real image of the class itself                           `plan`, role `source`
2. x_t* = sqrt(ab_t*) x_ref + sqrt(1 - ab_t*) eps               `numerics.schedule.add_noise`
3. guided denoising of the last int(n s) steps                `models.denoising.denoise`

Follows Diff-Mix's code (its strategy `real-aug`), which the later papers compare with: Stable Diffusion without any
fine-tuning, strength 0.1. The original runs GLIDE and starts at t* = 15, 20, 35, 40, 50 of 100 steps for 16, 8, 4, 2, 1
shots, that is `strength: 0.15` to `0.5` with `num_inference_steps: 100`; DA-Fusion's comparison takes 0.5 and the
prompt `a photo`.
"""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field, model_validator

from diffaug_datasets.core.method import Context, FitFiles, FitUnit, Generated, PlanSpec, new_row
from diffaug_datasets.core.prompts import fill
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.seeds import RowKey
from diffaug_datasets.core.sources import SourceTable
from diffaug_datasets.methods import editing
from diffaug_datasets.methods.editing import Editing, counts, own_source

NAME = "real_guidance"
SLUG = "realguidance"
VERSION = 1
TITLE = "Real-Guidance"
PAPER = "2210.07574"
PARITY = "matches Diff-Mix's `real-aug`; presets hold DA-Fusion's and He et al.'s settings"
N_SOURCES = 1
LABEL_RULE = "source"
NEEDS: frozenset[str] = frozenset()


class Config(Editing):
    """One strength for all rows."""

    strength: float = Field(default=0.1, gt=0, le=1, description="share of the schedule; t* / 100 in the paper's terms")
    prompt: str = Field(default="a photo of a {name} {metaclass}", description="{name}, {metaclass} are filled in")

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.steps(self.strength)
        return self


class Draw(BaseModel):
    """Only the source and the noise are drawn."""


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows a class that has images, each from one of them, uniformly."""
    groups = table.by_class()
    for label, count in counts(table, spec):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass)
        for k in range(count if groups[label] else 0):
            key = RowKey(spec.seed, NAME, label, k)
            source = own_source(key, groups[label])
            yield new_row(VERSION, key, spec, prompt=prompt, **source, **cfg.steps(cfg.strength))


def fits(cfg: Config, table: SourceTable, spec: PlanSpec) -> tuple[FitUnit, ...]:
    """None."""
    return ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Never called: there is nothing to fit."""
    raise LookupError(f"real_guidance has no fit {unit.name}")


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image."""
    return editing.evaluations(cfg, row)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Images of a batch."""
    return editing.edited(rows, cfg, ctx)

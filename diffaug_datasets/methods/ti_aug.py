"""TI-AUG: a real image of the class, redrawn by a model that has learned the class's token alone (arXiv 2403.19600).

1. one token per class, all learned in one run, no LoRA           fit `concepts`, `models.concepts`
2. a real image of the class itself                               `plan`, role `source`
3. a strength s of a small list                                   `plan`, role `strength`
4. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s        `numerics.schedule.add_noise`
5. guided denoising under the class's token                      `models.denoising.denoise`

Diff-AUG without its LoRA (Wang et al. 2024), the strategy `ti-aug` of the authors' code: DA-Fusion in the engine of
Diff-Mix, with DPM-Solver++ in 25 steps and the tokens of all classes learned in one run. The strengths are DA-Fusion's;
otherwise it departs as `diff_aug` and `ti_mix` do. Their strategy cannot have run as released: `ti-aug` is offered and
`ti_aug` is looked up. This is what it says it does.
"""

from collections.abc import Iterator

from pydantic import Field

from diffaug_datasets.methods import _concepts, _editing, diff_aug
from diffaug_datasets.plugin import PlanRow, PlanSpec, SourceTable, TokenConfig

NAME = "ti_aug"
SLUG = "tiaug"
VERSION = 1
TITLE = "TI-AUG"
PAPER = "2403.19600"
PARITY = "differs: a fixed number of rows per class, where the authors draw it; tokens learned without crops, at 512"
N_SOURCES = 1
LABEL_RULE = "source"
NEEDS = frozenset({"concepts"})
PROMPT = "learned token"
START = "noised image of the class"


class Config(diff_aug.Config):
    """Diff-AUG's, with tokens alone and DA-Fusion's strengths."""

    concepts: TokenConfig = TokenConfig()
    strengths: _editing.Strengths = Field(default=(0.25, 0.5, 0.75, 1.0), description="drawn uniformly for every row")


fits, fit = _concepts.fits, _concepts.fit
evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, each from one of them, uniformly."""
    return diff_aug.edits(NAME, VERSION, cfg, table, spec)

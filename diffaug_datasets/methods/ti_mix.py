"""TI-Mix: images between two classes, drawn by a model that has learned their tokens alone (arXiv 2403.19600).

1. one token per class, all learned in one run, no LoRA           fit `concepts`, `models.concepts`
2. a source image of any class, the token of a target class      `plan`, roles `source_class`, `source`
3. a strength s of a small list                                  `plan`, role `strength`
4. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s         `numerics.schedule.add_noise`
5. guided denoising under the target's token                     `models.denoising.denoise`
6. the label (1 - s^gamma) e_source + s^gamma e_target             `real_mix.diff_mix_label`

Diff-Mix without its LoRA (Wang et al. 2024), which its paper compares with; everything but step 1 is `diff_mix`, with
its departures. The authors' script learns the tokens under `--ti_only`, where LoRA's rate is 0 and its start changes
nothing. Their strategy `ti-mix` cannot have run as released: its edit takes one picture, and is given a list of them
and a resolution that it does not know. This is what it says it does.
"""

from collections.abc import Iterator

from diffaug_datasets.methods import _concepts, _editing, diff_mix
from diffaug_datasets.plugin import PlanRow, PlanSpec, SourceTable, TokenConfig

NAME = "ti_mix"
SLUG = "timix"
VERSION = 1
TITLE = "TI-Mix"
PAPER = "2403.19600"
PARITY = "differs: a fixed number of rows per class, where the authors draw it; tokens learned without crops, at 512"
N_SOURCES = 1
LABEL_RULE = "mixed"
NEEDS = frozenset({"concepts"})
PROMPT = "learned token of the target"
START = "noised image of any class"


class Config(diff_mix.Config):
    """Diff-Mix's, with tokens alone."""

    concepts: TokenConfig = TokenConfig()


fits, fit = _concepts.fits, _concepts.fit
evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every target class that has images, each from an image of any class, its own among them."""
    return diff_mix.edits(NAME, VERSION, cfg, table, spec)

"""Real-Gen: the class's name as a prompt, pure noise as the start (the control of Diff-Mix, arXiv 2403.19600).

1. the name of the target class, spelled out      `plan`
2. z_T ~ N(0, I), one generator per row               `generate` (`ctx.noise`)
3. guided denoising over 25 steps                 `models.denoising.denoise`

The strategy `real-gen` of the authors' code: no fine-tuning, no source image. Departs from it in the prompt, where
theirs joins the words of a name and puts them in brackets, `a photo of a <Black_footed_Albatross>` (on the packaged
model 66 % of 50 images are judged as their class then, and all of them without), and in drawing: every class gets its
planned number of rows, where theirs is itself drawn. Their DPM-Solver++, of diffusers 0.25.1, ends at the level of
label 0 (`final: alpha_bar_0`), here at zero noise, on the packaged model 1.2 grey levels away on average and 44 at
most. `txt2img` is the same with GeNIe's 50 steps.
"""

from collections.abc import Iterator

from pydantic import Field

from diffaug_datasets.methods import _editing
from diffaug_datasets.plugin import PlanRow, PlanSpec, RowKey, SourceTable, fill, new_row

NAME = "real_gen"
SLUG = "realgen"
VERSION = 1
TITLE = "Real-Gen"
PAPER = "2403.19600"
PARITY = "differs: no underscores in the prompt, and a fixed number of rows per class, where the authors draw the class"
N_SOURCES = 0
LABEL_RULE = "target"
PROMPT = "class name"
START = "noise"


class Config(_editing.FromNoise):
    """How to prompt, and how many rows a class gets."""

    prompt: _editing.ClassPrompt = "a photo of a {name} {metaclass}"
    num_inference_steps: int = Field(default=25, ge=1, le=999)
    targets: _editing.Targets = Field(
        default="proportional", description="rows per class: by its images, or even (long tails)"
    )


evaluations, generate = _editing.evaluations, _editing.from_noise


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every class, whether or not it has images."""
    for label, count in _editing.counts(table, spec, cfg.targets):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass)
        for k in range(count):
            yield new_row(VERSION, RowKey(spec.seed, NAME, label, k), spec, prompt=prompt, **cfg.steps())

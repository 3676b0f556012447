"""Real-Guidance: a real image of the class, noised a little and denoised under its class's name (He et al. 2022).

Paper: "Is synthetic data from generative models ready for image recognition?", arXiv 2210.07574.

1. a real image of the class itself                           `plan`, role `source`
2. x_t* = sqrt(ab_t*) x_ref + sqrt(1 - ab_t*) eps               `numerics.schedule.add_noise`
3. guided denoising of the last int(n s) steps                `models.denoising.denoise`

Follows Diff-Mix's code (its strategy `real-aug`), which the later papers compare with: Stable Diffusion without any
fine-tuning, strength 0.1. The original runs GLIDE and starts at t* = 15, 20, 35, 40, 50 of 100 steps for 16, 8, 4, 2, 1
shots, that is `strength: 0.15` to `0.5` with `num_inference_steps: 100`; DA-Fusion's comparison takes Stable Diffusion
1.4 with its own sampler, 0.5 and the prompt `a photo`, every image ten times (`sources: each`) from a sampled latent
(`encode: sample`). Departs from Diff-Mix's code in drawing: every class gets its planned number of rows, where theirs
is itself drawn, and in where DPM-Solver++ ends (as `diff_mix`, `final`). Their strategy makes no image as it was
released: without a checkpoint it looks the class's name up in an empty dictionary of tokens, and stops. This is what it
says it does. He et al.'s Real-Filter and CLIP filter are recipes (`real_filter`, `clip_filter`); their language
enhancement, sentences made from class names, is `diffaug sentences`, whose file `txt2img` takes as `prompts`.
"""

from collections.abc import Iterator

from pydantic import Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._editing import counts, own_source
from diffaug_datasets.plugin import PlanRow, PlanSpec, RowKey, SourceTable, fill, new_row

NAME = "real_guidance"
SLUG = "realguidance"
VERSION = 1
TITLE = "Real-Guidance"
PAPER = "2210.07574"
PARITY = "differs: a fixed number of rows per class, where Diff-Mix's `real-aug` draws the class; He et al. run GLIDE"
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name"
START = "noised image of the class"


class Config(_editing.Editing):
    """One strength for all rows."""

    strength: float = Field(default=0.1, gt=0, le=1, description="share of the schedule; t* / 100 in the paper's terms")
    prompt: _editing.ClassPrompt = "a photo of a {name} {metaclass}"
    sources: _editing.Sources = "drawn"

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.steps(self.strength)
        return self


evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, each from one of them, drawn or in turn."""
    groups = table.by_class()
    for label, count in counts(table, spec):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass)
        for k in range(count if groups[label] else 0):
            key = RowKey(spec.seed, NAME, label, k)
            columns = own_source(key, groups[label], cfg.sources) | cfg.steps(cfg.strength) | cfg.drawn(key)
            yield new_row(VERSION, key, spec, prompt=prompt, **columns)

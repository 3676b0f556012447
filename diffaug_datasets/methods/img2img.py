"""Img2Img: a real image of the class, noised part of the way and denoised under its own class's prompt.

The baselines Img2Img-L (strength 0.3) and Img2Img-H (0.7) of GeNIe (arXiv 2312.02548, section 4.1).

1. a source image of the class itself                `plan`, role `source`
2. z_0 = mode of the posterior, scaled, or a sample  `Backbone.encode`, `encode`
3. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps         `numerics.schedule.add_noise`, t the first label that runs
4. guided denoising of the last int(n s) steps       `models.denoising.denoise`

Departs from the authors' edits in step 3: theirs noise at int(1000 s), up to a level beside the first label that runs,
and above 0.999 they start from pure noise, where strength 1 here still holds some signal of the source. Sources are
drawn; theirs are edited in turn, each as often as any other, which is `sources: each` and what their presets take. The
script's `txt2img` is such an edit at ratio 0.8 (presets `txt2img_code`).

`encode: sample` takes the latent as img2img of diffusers does, which GeNIe's own edit does not. Without prompt and
guidance this is Boomerang (Luzi et al., arXiv 2210.12100), which Burg et al. (arXiv 2304.10253) compare with; how much
noise they add is not known here, and the preset of that name is a reconstruction.
"""

from collections.abc import Iterator

from pydantic import Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.methods._editing import counts, own_source
from diffaug_datasets.plugin import PlanRow, PlanSpec, RowKey, Solver, SourceTable, fill, new_row

NAME = "img2img"
SLUG = "img2img"
VERSION = 1
TITLE = "Img2Img"
PAPER = "2312.02548"
PARITY = "differs: noise at the first label that runs, where the authors take int(1000 s), or pure noise above 0.999"
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "class name"
START = "noised image of the class"


class Config(_editing.FromSource):
    """How far to go back, and how to sample."""

    strength: float = Field(default=0.7, gt=0, le=1, description="share of the schedule: 0.3 is -L, 0.7 is -H")
    prompt: _editing.SynonymPrompt = "a photo of a {name} {metaclass}"
    sources: _editing.Sources = "drawn"
    sampler: Solver = Field(default="dpm", description="DPM-Solver++(2M) or DDIM; " + _editing.OTHER_SAMPLERS)

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
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass, table.class_names[label])
        for k in range(count if groups[label] else 0):
            key = RowKey(spec.seed, NAME, label, k)
            columns = own_source(key, groups[label], cfg.sources) | cfg.steps(cfg.strength) | cfg.drawn(key)
            yield new_row(VERSION, key, spec, prompt=prompt, **columns)

"""Txt2Img: the class name as a prompt, pure noise as the start (the baseline of GeNIe, arXiv 2312.02548, section 4).

1. prompt of the target class                       `plan`
2. z_T ~ N(0, I), one generator per row               `generate` (`ctx.noise`)
3. guided denoising over the whole schedule         `models.denoising.denoise`

Departs from the authors' script, whose `txt2img` edits an image at ratio 0.8 unless told otherwise (the presets
`txt2img_code` of `img2img`); this one uses no image at all.
"""

from collections.abc import Iterator

from diffaug_datasets.methods import _editing
from diffaug_datasets.plugin import PlanRow, PlanSpec, RowKey, SourceTable, fill, new_row

NAME = "txt2img"
SLUG = "txt2img"
VERSION = 1
TITLE = "Txt2Img"
PAPER = "2312.02548"
PARITY = "differs: the authors' script of this name edits an image at ratio 0.8"
N_SOURCES = 0
LABEL_RULE = "target"
PROMPT = "class name"
START = "noise"


class Config(_editing.FromNoise):
    """How to prompt, and how to sample."""

    prompt: _editing.SynonymPrompt = "a photo of a {name} {metaclass}"


evaluations, generate = _editing.evaluations, _editing.from_noise


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows for every class, whether or not it has images (then `per_class` must be set)."""
    for label, count in _editing.counts(table, spec):
        prompt = fill(cfg.prompt, table.prompt_names[label], table.metaclass, table.class_names[label])
        for k in range(count):
            yield new_row(VERSION, RowKey(spec.seed, NAME, label, k), spec, prompt=prompt, **cfg.steps())

"""Txt2Img: the class name as a prompt, pure noise as the start (the baseline of GeNIe, arXiv 2312.02548, section 4).

1. prompt of the target class, or one of its list   `plan`, role `prompt`
2. z_T ~ N(0, I), one generator per row               `generate` (`ctx.noise`)
3. guided denoising over the whole schedule         `models.denoising.denoise`

Departs from the authors' script, whose `txt2img` edits an image at ratio 0.8 unless told otherwise (the presets
`txt2img_code` of `img2img`); this one uses no image at all. DPM-Solver++ ends at zero noise; their diffusers 0.19 ends
at the level of label 0 (`final: alpha_bar_0`), on the packaged model 0.7 of a grey level away on average, 26 at most.

Lists of prompts are those that Burg et al. (arXiv 2304.10253) compare, whose text was not at hand: a row takes one of
its class's texts, uniformly. `clip` are the 80 templates of CLIP; texts of one's own, for every class or by label, are
what others call language enhancement (He et al., Sariyildiz et al.). Of theirs the presets here are reconstructions:
`unguided` is an empty prompt without guidance, so that no label means anything; `clip_prompts`; `class_prompt`, the
class's name alone; `language`, sentences. `language` of EuroSAT follows He et al.'s code (arXiv 2210.07574), which
samples by GLIDE: sentences of a model that makes them from words, then CLIP's filter. The sentences are a file that
`diffaug sentences` writes, and the user's to make: a plan without it is refused.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from diffaug_datasets.core.prompts import PromptLists, texts_of
from diffaug_datasets.methods import _editing
from diffaug_datasets.plugin import Later, Place, PlanRow, PlanSpec, RowKey, SourceTable, fill, new_row

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
    prompts: Annotated[PromptLists | str | None, Place(files=(".json",), only_files=True), Later()] = Field(
        default=None,
        description="instead of `prompt`, one of several: clip (its 80 templates), texts, texts by label, or a file of "
        "either (.json), such as `diffaug sentences` writes; {name}, {metaclass}, {synonyms} are filled in",
    )

    def idle(self) -> dict[str, str]:
        """The one prompt, where there are several."""
        return super().idle() | ({} if self.prompts is None else {"prompt": "prompts is set"})

    @field_validator("prompts")
    @classmethod
    def _some_text(cls, value: PromptLists | str | None) -> PromptLists | str | None:
        lists = (
            [] if value is None or isinstance(value, str) else value.values() if isinstance(value, dict) else [value]
        )
        if (value is not None and not value) or not all(
            texts and all(text.strip() for text in texts) for texts in lists
        ):
            raise ValueError("expected one or more texts, of every class that is named")
        return value


evaluations, generate = _editing.evaluations, _editing.from_noise


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows for every class, whether or not it has images (then `per_class` must be set)."""
    for label, count in _editing.counts(table, spec):
        name = table.class_names[label]
        texts = (cfg.prompt,) if cfg.prompts is None or not count else texts_of(cfg.prompts, name)
        prompts = [fill(text, table.prompt_names[label], table.metaclass, name) for text in texts]
        for k in range(count):
            key = RowKey(spec.seed, NAME, label, k)
            yield new_row(VERSION, key, spec, prompt=key.choice("prompt", prompts), **cfg.steps())

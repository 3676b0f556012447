"""Real-Mix: Diff-Mix without fine-tuning, its class names spelled out (the control of Diff-Mix, arXiv 2403.19600).

1. a source image of any class, the name of a target class     `plan`, roles `source_class`, `source`
2. a strength s of a small list                                 `plan`, role `strength`
3. z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps at strength s        `numerics.schedule.add_noise`
4. guided denoising under the target's name                     `models.denoising.denoise`
5. the label (1 - s^gamma) e_source + s^gamma e_target            `diff_mix_label`

The strategy `real-mix` of the authors' code, which fails there on an empty dictionary; this is what it says it does.
Sources are the posterior's mode; theirs are sampled, as img2img of diffusers does (`encode: sample`, in their presets).
Their diffusers 0.25.1 ends at the level of label 0 (`final: alpha_bar_0`, in their presets too). How far that reaches,
counts, sources and labels are as in `diff_mix`.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.plugin import PlanRow, PlanSpec, RowKey, SoftLabel, Source, SourceTable, fill, new_row

NAME = "real_mix"
SLUG = "realmix"
VERSION = 1
TITLE = "Real-Mix"
PAPER = "2403.19600"
PARITY = "differs: rows as in diff_mix; the authors' strategy of this name fails on an empty dictionary"
N_SOURCES = 1
LABEL_RULE = "mixed"
PROMPT = "name of the target"
START = "noised image of any class"


class Mixing(_editing.Editing):
    """Which classes meet, how far the source is redrawn, and how the label is shared; also Diff-Mix's."""

    strengths: _editing.Strengths = Field(
        default=(0.5, 0.7, 0.9), description="drawn uniformly for every row; the paper fixes 0.7 on full datasets"
    )
    gamma: float = Field(default=0.5, gt=0, description="exponent of the label's target share; 0.8 on full datasets")
    soft_scaler: float = Field(
        default=1.0, gt=0, le=1, description="sum of the label's weights; the authors' loaders have 0.9"
    )
    sources: Literal["classes", "images"] = Field(
        default="classes", description="a class first, then its image; images: uniform over all (long tails)"
    )
    targets: _editing.Targets = Field(
        default="proportional", description="rows per class: by its images, or even (long tails)"
    )

    @model_validator(mode="after")
    def _some_step(self) -> "Mixing":
        self.steps(min(self.strengths))
        return self


class Config(Mixing):
    """Diff-Mix's, and the prompt."""

    prompt: _editing.ClassPrompt = "a photo of a {name} {metaclass}"


evaluations, generate = _editing.evaluations, _editing.from_source
Draw, redraw = _editing.Draw, _editing.redraw


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """Rows of every target class, each from an image of any class, its own among them."""
    pools = source_pools(cfg, table)
    for target, count in _editing.counts(table, spec, cfg.targets):
        prompt = fill(cfg.prompt, table.prompt_names[target], table.metaclass)
        for k in range(count):
            key = RowKey(spec.seed, NAME, target, k)
            yield new_row(VERSION, key, spec, prompt=prompt, **mixed(cfg, key, pools))


def source_pools(cfg: Mixing, table: SourceTable) -> list[tuple[Source, ...]]:
    """The groups that a source is drawn from: the classes that have images, or all images in one."""
    return [table.sources] if cfg.sources == "images" else [group for group in table.by_class().values() if group]


def mixed(cfg: Mixing, key: RowKey, pools: Sequence[Sequence[Source]]) -> dict[str, object]:
    """The columns of a row of class `key.class_id`: source, strength and soft label."""
    source = key.choice("source", key.choice("source_class", pools))
    strength = key.choice("strength", cfg.strengths)
    weights = diff_mix_label(source.label, key.class_id, strength, cfg.gamma, cfg.soft_scaler)
    columns = {**_editing.source_columns(source), **cfg.steps(strength), **cfg.drawn(key)}
    return {**columns, "soft_label": SoftLabel.mixed(weights)}


def diff_mix_label(
    source: int, target: int, strength: float, gamma: float, scaler: float = 1.0
) -> tuple[tuple[int, float], ...]:
    """The soft label ((class, weight), ...) of an image edited from source to target class; zero weights are left out.

    Implements the label of Diff-Mix: (1 - s^gamma) e_source + s^gamma e_target, for an img2img strength s in [0, 1] and
    gamma > 0; gamma < 1 favours the target. Equal classes give a one-hot label. Weights sum to `scaler`, in (0, 1]:
    1 in the paper, 0.9 by default in most of the authors' loaders.

    Raises:
        ValueError: strength, gamma or scaler is out of range.
    """
    if not (0 <= strength <= 1 and gamma > 0 and 0 < scaler <= 1):
        raise ValueError(
            f"got strength {strength}, gamma {gamma}, scaler {scaler}; "
            "give strength in [0, 1], gamma above 0 and scaler in (0, 1]"
        )
    if source == target:
        return ((source, scaler),)
    of_target = strength**gamma
    weights = ((source, scaler * (1 - of_target)), (target, scaler * of_target))
    return tuple((label, weight) for label, weight in weights if weight > 0)

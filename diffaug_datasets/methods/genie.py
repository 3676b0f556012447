"""GeNIe: hard negatives by a mismatch of source and target (Koohpayegani et al. 2023, arXiv 2312.02548).

1. an image X_S of another class, the prompt of the target T     `plan`, role `source`
2. z_0 = mode of the posterior, scaled                           `Backbone.encode`
3. z_r = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps, t = int(1000 r)    `plan`, `Draw.noised_at`; `schedule.add_noise`
4. guided denoising from the first label with t - 1 <= 1000 r    `numerics.timesteps.genie_start`
5. the label is T                                                hard

Follows the authors' code in steps 3 and 4 (the noise lies at most one level beside the first label; r > 0.999 starts
from pure noise). On a rectified flow, which the paper does not know, z_r = (1 - sigma) z_0 + sigma eps with sigma = r,
or with `ratio_in: snr` the sigma at which the flow has Stable Diffusion's signal-to-noise ratio at r. Departs from it
in the prompt: the paper's, with the first synonym (`{name}`); theirs ends with a full stop and names all synonyms of an
ImageNet class, `a photo of a {synonyms}.`. Departs in where DPM-Solver++ ends: at zero noise, as in diffusers since
0.26; their 0.19 ends at the level of label 0 (`final: alpha_bar_0`, in the presets of their code), on the packaged
model 0.8 of a grey level away on average and 17 at most. The long-tail sources, images of the classes most confused
with T, follow section 4.2; no code was released for them, nor for the fine-grained experiments.

Each target has an order of the other classes' images of its own, by a digest of target and image. Where targets times
images are more than 4 million (ImageNet-LT: 115 million), the order is drawn by a shuffle that takes a digest per row
instead, so that a row costs the same in a plan of any size.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import accumulate, chain
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.numerics.flow import FlowTimeline, sigma_of_ratio
from diffaug_datasets.numerics.timelines import usual_timeline
from diffaug_datasets.numerics.timesteps import Labels, genie_start
from diffaug_datasets.plugin import (
    Context,
    Generated,
    Later,
    PlanError,
    PlanRow,
    PlanSpec,
    Requirements,
    Resize,
    RowKey,
    RunError,
    Solver,
    Source,
    SourceTable,
    canonical,
    fill,
    new_row,
    uint63,
)

NAME = "genie"
SLUG = "genie"
VERSION = 1
TITLE = "GeNIe"
PAPER = "2312.02548"
PARITY = "differs: one synonym in the prompt unless it says {synonyms}; the long-tail sources are a reconstruction"
N_SOURCES = 1
LABEL_RULE = "target"
PROMPT = "name of the target"
START = "noised image of another class"

_MOST_DIGESTS = 1 << 22  # of a plan's targets and images; plans of more draw by shuffling


class Mismatch(_editing.Prompted):
    """How sources are prepared, prompted and denoised; shared by GeNIe and GeNIe-Ada."""

    prompt: str = Field(
        default="a photo of a {name}", description="{name}, {metaclass}, {synonyms} of the target are filled in"
    )
    sampler: Solver = Field(default="dpm", description="DPM-Solver++(2M) or DDIM; " + _editing.OTHER_SAMPLERS)
    resize: Resize = Field(default="crop", description="how sources are fitted")
    sources: Literal["others", "confused"] = Field(default="others", description="classes that sources come from")
    top_confused: int = Field(default=4, ge=1, description="how many of the most confused classes")
    ratio_in: Annotated[Literal["time", "snr"], Later()] = Field(
        default="time",
        description="of a rectified flow: what r measures, the share of its time, or the signal-to-noise ratio that "
        "Stable Diffusion 1.x has at r (0.7 is sigma 0.769)",
    )

    def idle(self) -> dict[str, str]:
        """How many classes are confused, where sources come from all others."""
        return super().idle() | ({"top_confused": "sources is others"} if self.sources == "others" else {})

    @property
    def requirements(self) -> Requirements:
        """Steps that fit the schedule, and the classes most confused with the target where sources come from those."""
        top_confused = self.top_confused if self.sources == "confused" else None
        return Requirements(steps=super().requirements.steps, top_confused=top_confused)

    def noised_at(self, ratio: float, timeline: Labels | None = None) -> int | None:
        """The label that a source is noised to at noise ratio r; None = pure noise, no source is kept."""
        at = timeline or usual_timeline(self.sampler)
        return None if ratio > 0.999 else int(at.num_train_timesteps * self._share(ratio, at))

    def _share(self, ratio: float, timeline: Labels) -> float:
        """The share of the schedule's time that a noise ratio means."""
        in_snr = self.ratio_in == "snr" and isinstance(timeline, FlowTimeline) and ratio <= 0.999
        return sigma_of_ratio(ratio) if in_snr else ratio

    def start(self, ratio: float, timeline: Labels | None = None) -> int:
        """The first step that runs at noise ratio r.

        Raises:
            ValueError: none does.
        """
        timeline = timeline or usual_timeline(self.sampler)
        labels = timeline.labels(self.sampler, self.num_inference_steps)
        share = self._share(ratio, timeline)
        return genie_start(labels, share, num_train_timesteps=timeline.num_train_timesteps)

    def check_ratio(self, timeline: Labels) -> None:
        """Raises PlanError where `ratio_in` says snr of a model whose noise ratio is one by time already."""
        if self.ratio_in == "snr" and not isinstance(timeline, FlowTimeline):
            raise PlanError(
                "config.ratio_in: snr is for a model on a rectified flow, and this one has a variance-preserving "
                "schedule: set it to time, or choose a backbone such as Stable Diffusion 3.5."
            )


class Config(Mismatch):
    """One noise ratio for all rows."""

    ratio: float = Field(default=0.8, gt=0, le=1, description="r: share of the schedule; 0.7 to 0.8 is advised")

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.start(self.ratio)
        return self


class Draw(BaseModel):
    """noised_at: the label that the source is noised to, None = pure noise. Source and noise are drawn, this follows.

    Decided once, from the recipe's ratio: `strength` holds a rounded one, which may lie below the same label.
    """

    noised_at: int | None


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per target class, the images of the other classes in turn, each once before any repeats."""
    cfg.check_ratio(spec.timeline)
    draw = canonical(Draw(noised_at=cfg.noised_at(cfg.ratio, spec.timeline)).model_dump())
    try:
        start = cfg.start(cfg.ratio, spec.timeline)
    except ValueError as error:
        raise PlanError(f"config.ratio: {error}.") from None
    steps = {"strength": cfg.ratio, "start_step": start, "draw": draw}
    return edits(NAME, VERSION, cfg, table, spec, steps)


def edits(
    name: str, version: int, cfg: Mismatch, table: SourceTable, spec: PlanSpec, steps: Mapping[str, object]
) -> Iterator[PlanRow]:
    """The rows of GeNIe or GeNIe-Ada: source of one class, prompt and label of another."""
    for target, count in _editing.counts(table, spec):
        prompt = fill(cfg.prompt, table.prompt_names[target], table.metaclass, table.class_names[target])
        sources = first_sources(name, table, spec, target, count)
        for k in range(count):
            source = sources[k % len(sources)]
            columns = {"source_ids": (source.id,), "source_labels": (source.label,), "prompt": prompt, **steps}
            yield new_row(
                version,
                RowKey(spec.seed, name, target, k),
                spec,
                negative_prompt=cfg.negative_prompt,
                num_inference_steps=cfg.num_inference_steps,
                guidance_scale=cfg.guidance_scale,
                **columns,
            )


def first_sources(name: str, table: SourceTable, spec: PlanSpec, target: int, count: int) -> list[Source]:
    """The first `count` images of the other classes (of the confused ones where these are given), in an order that is
    the target's own; all, where there are fewer.

    Raises:
        PlanError: no other class has an image.
    """
    groups = table.by_class()
    allowed = sorted(set(spec.confused[target] if spec.confused else groups) - {target})
    total = sum(len(groups[label]) for label in allowed)
    if not total:
        raise PlanError(f"{name}: no source for class {table.class_names[target]!r}: no other class has an image.")
    purpose = f"{spec.seed}|{name}|{target}|source|"
    if not spec.confused and len(spec.targets or groups) * len(table) > _MOST_DIGESTS:
        return _shuffled(purpose, [groups[label] for label in allowed], min(count, total))
    others = chain.from_iterable(groups[label] for label in allowed)
    return nsmallest(count, others, key=lambda source: uint63(f"{purpose}{source.id}|{source.label}"))


def _shuffled(purpose: str, groups: Sequence[Sequence[Source]], count: int) -> list[Source]:
    """The first `count` of all these images in the order of a shuffle (Fisher and Yates), of which no more is drawn."""
    ends = list(accumulate(map(len, groups)))
    moved: dict[int, int] = {}
    drawn = []
    for i in range(count):
        place = i + (uint63(f"{purpose}{i}") * (ends[-1] - i) >> 63)
        chosen, moved[place] = moved.get(place, place), moved.get(i, i)
        group = bisect_right(ends, chosen)
        drawn.append(groups[group][chosen - ends[group]])  # counted from its end
    return drawn


evaluations = _editing.evaluations


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 2 to 4 of a batch; rows may differ in start step."""
    from diffaug_datasets.models.denoising import edit, row_conditions, timeline_of

    noised_at = [Draw.model_validate_json(row.draw).noised_at for row in rows]
    if (rows[0].start_step or 0) != cfg.start(cfg.ratio, timeline_of(ctx.backbone)):
        raise RunError("rows were planned before the labels of their backbone were known; plan again.")
    return edit(ctx, rows, row_conditions(rows), cfg, noised_at, [row.start_step or 0 for row in rows])

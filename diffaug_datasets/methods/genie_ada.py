"""GeNIe-Ada: the noise ratio is chosen for every source and target (arXiv 2312.02548, Algorithm 1).

1. X_k = GeNIe(X_S, T, r_k) for every level, one eps for all levels     `generate`
2. Z_k = f(X_k), Z_S = f(X_S), Z_T = mean of f over T's images          `Encoder`, fit `embeddings`
3. d_k = (Z_k - Z_S) . (Z_T - Z_S) / |Z_T - Z_S|                        `numerics.selection.projections`
4. keep the level just after the largest jump |d_k - d_(k-1)|           `numerics.selection.largest_jump`

Edits are GeNIe's and depart as they do, in `final` too. Features are L2-normalised, as in the authors' code; the
paper's formula has plain ones (`normalise: false`). The levels are those of the experiments; the algorithm prints r =
m/M. The encoder is meant to be the backbone of the classifier one improves: DINOv2 ViT-G in the fine-grained
experiments, LiVT's on ImageNet-LT. The default is CLIP, and no released code confirms either; the fine-grained presets
name DINOv2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, field_validator, model_validator

from diffaug_datasets.methods import genie
from diffaug_datasets.numerics.timesteps import Labels, Timeline
from diffaug_datasets.plugin import (
    Context,
    FitFiles,
    FitUnit,
    Generated,
    Place,
    PlanError,
    PlanRow,
    PlanSpec,
    Requirements,
    RunError,
    SourceTable,
    branches,
    canonical,
    image_key,
    image_of,
)

if TYPE_CHECKING:
    from torch import Tensor

NAME = "genie_ada"
SLUG = "genieada"
VERSION = 1
TITLE = "GeNIe-Ada"
PAPER = "2312.02548"
PARITY = "differs: as genie; the encoder is CLIP unless named, where the paper takes the improved classifier's backbone"
N_SOURCES = 1
LABEL_RULE = "target"
NEEDS = frozenset({"encoder"})
PROMPT = "name of the target"
START = "noised image of another class"
FILTER = "the level, by features"

_SKIPPED = "ada_skipped"
_SAME = 1e-6  # features of one image differ in their last bits where it stands at two places of a batch


class Config(genie.Mismatch):
    """The levels to try, and the encoder that judges them."""

    levels: tuple[float, ...] = Field(default=(0.5, 0.6, 0.7, 0.8, 0.9), description="noise ratios, rising, in (0, 1]")
    encoder: Annotated[str, Place(packaged=("tiny",))] = Field(
        default="openai/clip-vit-base-patch32", description="`tiny`, a folder or a Hub id"
    )
    normalise: bool = Field(default=True, description="features of unit length, as in the authors' code")

    @property
    def requirements(self) -> Requirements:
        """GeNIe's, and the encoder."""
        return replace(super().requirements, encoder=self.encoder)

    @field_validator("levels")
    @classmethod
    def _rising(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if len(levels) < 2 or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] <= 1:
            raise ValueError("expected at least two rising noise ratios in (0, 1]")
        return levels

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.start(self.levels[0])
        return self


class Draw(BaseModel):
    """starts, noised_at: at each level the first step that runs and the label that a source is noised to (None = pure
    noise), where the backbone has other labels than Stable Diffusion.
    """

    starts: tuple[int, ...] | None = None
    noised_at: tuple[int | None, ...] | None = None


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """As GeNIe; `strength` and `start_step` stay open until the level is chosen, but where nothing is compared."""
    drawn: dict[str, object] = {}
    cfg.check_ratio(spec.timeline)
    if spec.timeline != Timeline():
        drawn["draw"] = canonical(_draw_on(cfg, spec.timeline).model_dump())
    rows, of_class = list(genie.edits(NAME, VERSION, cfg, table, spec, drawn)), _by_class(table)
    home = {image: unit.name for unit in fits(cfg, table, spec, rows) for image in unit.content["images"]}
    of_target = {label: dict.fromkeys(home[image] for image in of_class[label]) for label in {r.label for r in rows}}
    for row in rows:
        if units := of_target[row.label]:
            yield row.model_copy(update={"adapters": tuple({home[_source(row)]: None, **units})})
        else:
            steps = _steps(cfg, cfg.levels[-1], row)
            yield PlanRow.model_validate({**row.model_dump(), **steps, "fallback": _SKIPPED})


def _draw_on(cfg: Config, timeline: Labels) -> Draw:
    """Where each level begins on these labels."""
    try:
        starts = tuple(cfg.start(level, timeline) for level in cfg.levels)
    except ValueError as error:
        raise PlanError(f"config.levels: {error}.") from None
    return Draw(starts=starts, noised_at=tuple(cfg.noised_at(level, timeline) for level in cfg.levels))


def _begin(cfg: Config, level: float, row: PlanRow) -> tuple[int, int | None]:
    """The first step that runs at a level, and the label that a source is noised to."""
    draw = Draw.model_validate_json(row.draw)
    if draw.starts is None or draw.noised_at is None:
        return cfg.start(level), cfg.noised_at(level)
    at = cfg.levels.index(level)
    return draw.starts[at], draw.noised_at[at]


def _steps(cfg: Config, level: float, row: PlanRow) -> dict[str, object]:
    return {"strength": level, "start_step": _begin(cfg, level, row)[0]}


def _tried(cfg: Config, rows: Sequence[PlanRow]) -> tuple[float, ...]:
    """The levels that rows are made at: the largest alone where no row is compared with anything."""
    return cfg.levels[-1:] if all(row.fallback == _SKIPPED for row in rows) else cfg.levels


def _by_class(table: SourceTable) -> dict[int, list[str]]:
    return {label: [image_key(source.id, label) for source in images] for label, images in table.by_class().items()}


def _source(row: PlanRow) -> str:
    return image_key(row.source_ids[0], row.source_labels[0])


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """Embeddings of the images that levels are compared with, a few batches per unit."""
    of_class = _by_class(table)
    compared = [row for row in rows if of_class[row.label]]
    used = {_source(row) for row in compared}.union(*(of_class[label] for label in {row.label for row in compared}))
    images = [i for i in dict.fromkeys(image_key(source.id, source.label) for source in table.sources) if i in used]
    size = 8 * spec.batch_size
    chunks = [images[i : i + size] for i in range(0, len(images), size)]
    seen = {"encoder": cfg.encoder, "normalise": cfg.normalise}
    return tuple(FitUnit.of("embeddings", {**seen, "images": chunk}) for chunk in chunks)


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Features [d] by `image_key`."""
    images = unit.content["images"]
    features = ctx.features((ctx.source(image_of(image)[0]) for image in images), cfg.normalise)
    return FitFiles({"embeddings.safetensors": dict(zip(images, features.cpu().unbind(), strict=True))})


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: two branches per step (one where w = 1), summed over the levels that are tried."""
    return sum(branches(row) * (cfg.num_inference_steps - _begin(cfg, level, row)[0]) for level in _tried(cfg, [row]))


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """The image of the chosen level of every row, with all d_k."""
    candidates = [_at_level(rows, cfg, ctx, level) for level in _tried(cfg, rows)]
    compared = candidates if len(candidates) > 1 else []
    features = [ctx.features([ctx.image(made.pixels) for made in level], cfg.normalise) for level in compared]
    return [chosen(row, [c[i] for c in candidates], [f[i] for f in features], cfg, ctx) for i, row in enumerate(rows)]


def _at_level(rows: Sequence[PlanRow], cfg: Config, ctx: Context, level: float) -> list[Generated]:
    from diffaug_datasets.models.denoising import edit, row_conditions, timeline_of

    begins = [_begin(cfg, level, row) for row in rows]
    if begins[0][0] != cfg.start(level, timeline_of(ctx.backbone)):
        raise RunError("rows were planned before the labels of their backbone were known; plan again.")
    starts, noised_at = zip(*begins, strict=True)
    return edit(ctx, rows, row_conditions(rows), cfg, noised_at, starts)


def chosen(row: PlanRow, candidates: list[Generated], features: list["Tensor"], cfg: Config, ctx: Context) -> Generated:
    """Of a row's images at all levels the kept one; `features` [d] of each, where any is compared."""
    if row.fallback == _SKIPPED:
        return Generated(candidates[-1].pixels, {"levels": cfg.levels[-1:], "fallback": _SKIPPED})
    index, measured = judged(row, features, ctx)
    level = cfg.levels[index]
    columns = _steps(cfg, level, row)
    if "fallback" in measured:
        columns["fallback"] = measured["fallback"]
    return Generated(candidates[index].pixels, {"levels": cfg.levels, **measured}, columns)


def judged(row: PlanRow, features: list["Tensor"], ctx: Context) -> tuple[int, dict[str, object]]:
    """Index of the kept level and what decided it; the largest level where no distance is defined.

    Z_T is the mean of the features of the target's real images, as in the authors' code.
    """
    import torch

    from diffaug_datasets.numerics.selection import largest_jump, projections

    known = {name: tensor for adapter in row.adapters for name, tensor in ctx.fit(adapter).items()}
    source = known[_source(row)]
    target = torch.stack([known[name] for name in sorted(known) if name.endswith(f"/{row.label}")]).mean(0)
    if torch.allclose(source, target, rtol=0, atol=_SAME):
        return len(features) - 1, {"fallback": "source_equals_target"}
    d = projections(torch.stack(features).cpu(), source, target)
    return largest_jump(d), {"d": [float(x) for x in d]}

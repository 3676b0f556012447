"""Diff-II: inversion circle interpolation and two-stage denoising (Wang & Chen 2024, arXiv 2408.16266).

1. one token per class, learned together with LoRA on the U-Net (3.2)       fit `concepts`, `models.concepts`
2. DDIM inversion of the images of pairs, under their class's prompt, w = 1 (Eq. 4)   fit `inversions`, `ddim_invert`
3. a pair of images of one class, with replacement over all pairs          `plan`, role `pair`
4. a point of the circle through both inversions (Eq. 5 to 7)               `numerics.interpolation.circle`
5. denoising in two stages: the prompt with a context suffix, then without (Eq. 8)   `Conditions.first`, `.switch`

Follows the authors' code where it differs from the paper's text: the split ratio s is the share of steps that carry the
suffix (Eq. 8 prints the opposite; `split_convention: paper` gives it). Follows the paper where the code differs: 25
inversion steps, not 200, so that inversion ends at the label where sampling begins. Lambda runs over the whole circle
of Eq. 7, as in the code, where appendix A.3 says [0, 1], a share alpha / 2 pi of it, 24 % on the packaged model.
Departs from both in what the paper leaves open: classes with one image get a stated policy (of which `diff_aug` edits
the posterior's mode, where the code of Diff-Mix draws a sample), angles are computed in float64. On a rectified flow
inversion ends at the first label below pure noise, where denoising begins. Its ablations are settings: `start: noise`
denoises in two stages from N(0, I), without step 2 to 4 (Table 4, A.4), `split_ratio: 0` has one stage, and
`interpolation_strength` turns every pair alike. Pictures are rounded to 8 bits, where the code cuts them off, which is
0.45 of a grey level darker on average and 1 at most. Concepts are learned from images stretched to a square (the code:
random crops) at the backbone's size (current scripts: 224, `concepts.resolution`), on the posterior's mode, with the
tokens' gradient clipped too. LoRA starts normal with deviation 1/rank, as the authors' version of diffusers has it;
peft's uniform start (`concepts.lora_start`) leaves |B A| 1.68 times smaller after 60 steps on the packaged model, where
the loss (0.122) and the judged share of 50 images of Diff-Gen (70 and 68 %) hardly differ. An `inverter` other than
`ddim` inverts and denoises by a rule of its own (`numerics.inverting`); both latents of a pair turn by one draw. On
photographs (16 of flowers, 64 pixels, 10 steps) PSNR rises from 21.8 dB with `ddim` to 23.9 with `midpoint` and 24.0
with `bdia` and `edict`, which is all that the autoencoder keeps, and the latents' root mean square from 0.87 to 0.95,
0.93 and 0.91. Whether a classifier learns otherwise three draws of 60 flowers do not
settle (`scripts/bench_inverters.py`): over `ddim`, `midpoint` -0.4 points (-3.2 to +2.3), `bdia` +2.8 (+0.2 to +5.4)
and `edict` +4.2 (+1.4 to +6.9) on EfficientNet's features, of 83.6 %; from scratch, of 55.1 %, +0.7 (-3.5 to +4.9),
-2.1 (-3.9 to -0.3) and -2.4 (-7.5 to +2.7). Six comparisons, not corrected for their number.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from diffaug_datasets.methods._concepts import concept_unit, learn
from diffaug_datasets.numerics.inverters import Inverter, calls, is_paired
from diffaug_datasets.numerics.timesteps import Labels, img2img_start, suffix_steps
from diffaug_datasets.plugin import (
    ConceptConfig,
    Context,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    Later,
    MethodConfig,
    Place,
    PlanError,
    PlanRow,
    PlanSpec,
    RecipeError,
    Requirements,
    Resize,
    RowKey,
    RunError,
    Source,
    SourceTable,
    StepCount,
    branches,
    canonical,
    columns_of,
    image_key,
    image_of,
    new_row,
    with_suffix,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffaug_datasets.numerics.interpolation import Norm

NAME = "diff_ii"
SLUG = "diffii"
VERSION = 1
TITLE = "Diff-II"
PAPER = "2408.16266"
PARITY = "differs: from the paper in the split ratio (the code's), from the code in the inversion steps (25, not 200)"
N_SOURCES = 2
LABEL_RULE = "source"
NEEDS = frozenset({"concepts", "inversions"})
PROMPT = "learned token, early steps with a suffix"
START = "circle of two inversions"
FITS_BY_IMAGE = frozenset({"inversions"})

_OVERFLOWN = "the inversion of a source is not finite; set backbone.dtype to bfloat16 or float32"
_OF_INVERSIONS = (
    "inverter",
    "inversion_steps",
    "minimum_psnr",
    "arc",
    "norm",
    "single_image_policy",
    "fallback_strength",
)
_POOR = "no source of this row comes back from its inversion at config.minimum_psnr; lower it, or allow for failed rows"
Policy = Literal["noise_partner", "self_noise", "diff_aug", "skip", "error"]


class Config(MethodConfig):
    """Concepts, inversion, interpolation and the two stages."""

    concepts: ConceptConfig = ConceptConfig()
    num_inference_steps: int = Field(default=25, ge=1, le=999)
    inversion_steps: int = Field(default=25, ge=1, le=999, description="the authors' code defaults to 200")
    guidance_scale: Guidance = 7.5
    negative_prompt: str = Field(default="", description="prompt of the unconditional branch")
    split_ratio: float = Field(
        default=0.3, ge=0, le=1, description="s: 0.3 for 5-shot, 0.1 for 10-shot, 1 for long tails"
    )
    split_convention: Literal["code", "paper"] = Field(default="code", description="share with, or without, the suffix")
    suffixes: Annotated[tuple[str, ...] | str, Place(files=(".json",), only_files=True)] = Field(
        default="auto", description="texts, the name of a shipped list, a file of `diffaug captions` (.json), or auto"
    )
    arc: Literal["full", "short", "long"] = Field(default="full", description="short = interpolation only")
    start: Annotated[Literal["circle", "noise"], Later()] = Field(
        default="circle", description="circle = of two inversions; noise = N(0, I), no image is inverted"
    )
    interpolation_strength: Annotated[float | None, Later()] = Field(
        default=None, ge=0, le=1, description="how far from the first image on the arc every pair lies; null = drawn"
    )
    norm: Literal["paper", "geodesic"] = Field(
        default="paper", description="paper = latents of unequal norm span an ellipse; geodesic = norms go evenly"
    )
    single_image_policy: Policy = Field(default="noise_partner", description="what a class with one image gets")
    fallback_strength: float = Field(default=0.7, gt=0, le=1, description="img2img strength of the policy diff_aug")
    resize: Resize = Field(default="lanczos", description="how sources are fitted")
    inverter: Annotated[Inverter, Later()] = Field(
        default="ddim",
        description="ddim, or what comes back better: midpoint (second order), bdia or edict (exact, pairs of latents)",
    )
    minimum_psnr: Annotated[float | None, Later()] = Field(
        default=None,
        ge=0,
        le=100,
        description="dB; leave out sources that their inversion gives back worse: a noise partner takes their place",
    )

    on_distilled: Annotated[bool, Later()] = Field(
        default=False,
        description="invert a model that was distilled (from guidance, or to few steps) too, at guidance 1; see what "
        "the report says of its inversions",
    )

    @model_validator(mode="after")
    def _fits_the_inverter(self) -> "Config":
        if self.inverter == "ddim":
            return self
        if self.inversion_steps != self.num_inference_steps:
            raise ValueError(
                f"inverter {self.inverter} comes back along the labels it went, so inversion_steps must be "
                f"{self.num_inference_steps} as num_inference_steps, got {self.inversion_steps}"
            )
        if self.inverter == "bdia" and self.num_inference_steps < 2:
            raise ValueError("inverter bdia needs 2 or more steps")
        if self.single_image_policy == "diff_aug":
            raise ValueError(f"single_image_policy diff_aug denoises by ddim, not by {self.inverter}: choose another")
        return self

    @model_validator(mode="after")
    def _one_ablation(self) -> "Config":
        if self.start == "noise" and self.interpolation_strength is not None:
            raise ValueError("interpolation_strength: nothing is interpolated where start is noise; take one out")
        return self

    def idle(self) -> dict[str, str]:
        """What is said of inversions where there are none, and how an only image is edited where it is not."""
        keys = {"negative_prompt": "guidance_scale is 1"} if self.guidance_scale == 1 else {}
        if self.single_image_policy != "diff_aug":
            keys["fallback_strength"] = "single_image_policy is not diff_aug"
        return keys | (dict.fromkeys(_OF_INVERSIONS, "start is noise") if self.start == "noise" else {})

    @property
    def requirements(self) -> Requirements:
        """Texts to end prompts with, and steps that fit the schedule both ways."""
        keys = {"num_inference_steps": self.num_inference_steps, "inversion_steps": self.inversion_steps}
        return Requirements(
            suffixes=self.suffixes,
            any_inversion=self.on_distilled,
            steps=tuple(StepCount(key, "ddim", steps) for key, steps in keys.items()),
        )


class Draw(BaseModel):
    """u in [0, 1): where on the arc; switch: leading steps that carry the suffixed prompt."""

    u: float
    arc: Literal["full", "short", "long"]
    switch: int


@dataclass(frozen=True)
class Pairs(Sequence[tuple[Source, Source]]):
    """All pairs of images in the order of `itertools.combinations`, none of them held."""

    images: Sequence[Source]

    def __len__(self) -> int:
        return len(self.images) * (len(self.images) - 1) // 2

    def __getitem__(self, place: int) -> tuple[Source, Source]:  # type: ignore[override]
        """From the last pair on, the pairs of the last 2, 3, 4, ... images are triangular numbers."""
        behind = len(self) - 1 - place
        if not 0 <= behind < len(self):
            raise IndexError(place)
        row = (isqrt(8 * behind + 1) - 1) // 2
        first, second = len(self.images) - 2 - row, len(self.images) - 1 - (behind - row * (row + 1) // 2)
        return self.images[first], self.images[second]


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, each from one of its pairs.

    Rows name their fits, which follow from the pairs of all: these are drawn twice rather than held.
    """
    concept, *inversions = _units(cfg, table, spec, _used(cfg, table, spec))
    home = {image: unit.name for unit in inversions for image in unit.content["images"]}
    switch = _switch(cfg, spec.timeline)
    for label, images, count in _classes(cfg, table, spec):
        prompt, pairs = cfg.concepts.prompt(label, table.metaclass), Pairs(images)
        alone, start = _alone(cfg, images), _start(cfg, images)
        for k in range(count):
            key = RowKey(spec.seed, NAME, label, k)
            pair = _pair(cfg, key, pairs)
            cited = () if start else dict.fromkeys(home[image_key(source.id, label)] for source in pair)
            adapters = (concept.name, *cited)
            yield _row(cfg, spec, key, pair, switch, alone=alone, prompt=prompt, start_step=start, adapters=adapters)


def _classes(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[tuple[int, list[Source], int]]:
    """(class id, its images, one of each, its rows) of every class that gets rows."""
    for label, images in table.by_class().items():
        distinct = list({source.id: source for source in images}.values())
        alone = _alone(cfg, distinct)
        if not distinct or not spec.wants(label) or (alone and cfg.single_image_policy == "skip"):
            continue
        if alone and cfg.single_image_policy == "error":
            raise PlanError(
                f"class {table.class_names[label]!r} has one image, so no pair; set config.single_image_policy to "
                "noise_partner, self_noise, diff_aug or skip."
            )
        yield label, distinct, spec.count(len(images))


def _used(cfg: Config, table: SourceTable, spec: PlanSpec) -> set[str]:
    """The images whose inversions some row starts from; those of a class are known once each was drawn."""
    used: set[str] = set()
    for label, images, count in _classes(cfg, table, spec):
        if _start(cfg, images):
            continue
        pairs, drawn = Pairs(images), set[str]()
        for k in range(count):
            drawn.update(source.id for source in _pair(cfg, RowKey(spec.seed, NAME, label, k), pairs))
            if len(drawn) == len(images):
                break
        used |= {image_key(source, label) for source in drawn}
    return used


def _alone(cfg: Config, images: Sequence[Source]) -> bool:
    return len(images) == 1 and cfg.start == "circle"


def _start(cfg: Config, images: Sequence[Source]) -> int:
    """The first step of rows of a class with these images: none is inverted where it is not 0."""
    edited = _alone(cfg, images) and cfg.single_image_policy == "diff_aug"
    return img2img_start(cfg.num_inference_steps, cfg.fallback_strength) if edited else 0


def _row(
    cfg: Config,
    spec: PlanSpec,
    key: RowKey,
    pair: Sequence[Source],
    switch: int,
    *,
    alone: bool,
    prompt: str,
    start_step: int,
    adapters: tuple[str, ...],
) -> PlanRow:
    edited = alone and cfg.single_image_policy == "diff_aug"
    if switch and not spec.suffixes:
        raise RecipeError("config.suffixes: no shipped list fits this dataset; give texts, or set split_ratio to 0.")
    return new_row(
        VERSION,
        key,
        spec,
        source_ids=tuple(s.id for s in pair),
        source_labels=tuple(s.label for s in pair),
        prompt=prompt,
        prompt_first=with_suffix(prompt, key.choice("suffix", spec.suffixes)) if switch else None,
        negative_prompt=cfg.negative_prompt,
        num_inference_steps=cfg.num_inference_steps,
        start_step=start_step,
        guidance_scale=cfg.guidance_scale,
        strength=cfg.fallback_strength if edited else 1.0,
        adapters=adapters,
        fallback=cfg.single_image_policy if alone else None,
        draw=canonical({"u": _turned(cfg, key), "arc": cfg.arc, "switch": switch}),
    )


def _pair(cfg: Config, key: RowKey, pairs: Pairs) -> tuple[Source, ...]:
    """The images of a row: two of its class, its only one, or none where it starts from noise."""
    if cfg.start == "noise":
        return ()
    return (pairs.images[0],) if len(pairs.images) == 1 else key.choice("pair", pairs)


def _turned(cfg: Config, key: RowKey) -> float:
    """Where on its arc a row lies: drawn, or the one strength of all; the short arc runs from the second image."""
    if cfg.interpolation_strength is None:
        return key.uniform("turn")
    return 1 - cfg.interpolation_strength if cfg.arc == "short" else cfg.interpolation_strength


def _switch(cfg: Config, timeline: Labels) -> int:
    """How many leading steps carry the suffix."""
    labels, most = timeline.labels("ddim", cfg.num_inference_steps), timeline.num_train_timesteps
    return suffix_steps(labels, cfg.split_ratio, cfg.split_convention, num_train_timesteps=most)


def draw_json(draw: Draw) -> str:
    """A draw as the column stores it."""
    return canonical(draw.model_dump())


def redraw(row: PlanRow, key: RowKey, cfg: Config) -> PlanRow:
    """A later attempt turns elsewhere on the same circle, unless the strength is fixed, with other noise."""
    draw = Draw.model_validate_json(row.draw).model_copy(update={"u": _turned(cfg, key)})
    return row.model_copy(update={"draw": draw_json(draw), "seed": key.seed("noise")})


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The concepts of all classes, then inverted latents of the images that rows start from, a few batches per unit.

    Every batch of a unit is full, so that nothing is inverted twice: images that are left over are a unit of their own,
    whose batch is as large as they are many.
    """
    cited = columns_of(rows, "source_ids", "label", "start_step")
    used = {image_key(source, label) for ids, label, start in cited if not start for source in ids}
    return _units(cfg, table, spec, used)


def _units(cfg: Config, table: SourceTable, spec: PlanSpec, used: Set[str]) -> tuple[FitUnit, ...]:
    concept = concept_unit(cfg, table, spec)
    images = [i for i in dict.fromkeys(image_key(s.id, s.label) for s in table.sources) if i in used]
    size, full = 8 * spec.batch_size, len(images) - len(images) % spec.batch_size
    chunks = [images[i : min(i + size, full)] for i in range(0, full, size)] + [images[full:]]
    payload = {"concepts": concept.name, "steps": cfg.inversion_steps, "resize": cfg.resize}
    payload |= {"metaclass": table.metaclass, **_how_inverted(cfg)}
    inversions = [{**payload, "images": c, "batch": min(len(c), spec.batch_size)} for c in chunks if c]
    return (concept, *(FitUnit.of("inversions", content, after=[concept.name]) for content in inversions))


def _how_inverted(cfg: Config) -> dict[str, object]:
    """What a unit of inversions says beyond the steps, where they are not DDIM's or are measured at once."""
    back = calls(cfg.inverter, cfg.num_inference_steps)
    said: dict[str, object] = {} if cfg.inverter == "ddim" else {"inverter": cfg.inverter}
    if cfg.minimum_psnr is not None:
        said |= {"minimum_psnr": cfg.minimum_psnr, "back": cfg.num_inference_steps}
    if said:
        upwards = calls(cfg.inverter, cfg.inversion_steps, upwards=True)
        said["calls"] = upwards + (0 if cfg.minimum_psnr is None else back)
    return said


def evaluations(cfg: Config, row: PlanRow) -> int:
    """U-Net rows for one image: two branches per call, one where w = 1; inversions are counted with the fits."""
    return branches(row) * (calls(cfg.inverter, cfg.num_inference_steps) - (row.start_step or 0))


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Learn the concepts, or invert a few images; those that come back worse than `minimum_psnr` are left out."""
    if unit.kind == "concepts":
        return learn(unit, cfg.concepts, ctx)
    names = unit.content["images"]
    images, prompts = _inverted(unit, names, cfg, ctx)
    latents = dict(zip(names, _inversions(images, prompts, unit, cfg, ctx), strict=True))
    if cfg.minimum_psnr is None:
        return FitFiles({"inversions.safetensors": latents})
    found = dict(zip(names, _psnr_of(latents, unit, names, cfg, ctx), strict=True))
    kept = {name: latent for name, latent in latents.items() if found[name] >= cfg.minimum_psnr}
    measured = {"left_out": len(names) - len(kept), "psnr": {name: round(value, 2) for name, value in found.items()}}
    return FitFiles({"inversions.safetensors": kept}, measured)


def _inversions(
    images: Iterable["Tensor"], prompts: Sequence[str], unit: FitUnit, cfg: Config, ctx: Context
) -> list["Tensor"]:
    from diffaug_datasets.models.denoising import invert

    words = {"steps": cfg.inversion_steps, "batch": unit.content["batch"]}
    return invert(ctx.backbone, images, prompts, inverter=cfg.inverter, **words)


def _given_back(
    latents: Sequence["Tensor"], prompts: Sequence[str], unit: FitUnit, cfg: Config, ctx: Context
) -> list["Tensor"]:
    from diffaug_datasets.models.denoising import reconstructed

    words = {"steps": cfg.num_inference_steps, "batch": unit.content["batch"]}
    return reconstructed(ctx.backbone, latents, prompts, inverter=cfg.inverter, **words)


def inversion_psnr(unit: FitUnit, names: Sequence[str], cfg: Config, ctx: Context) -> list[float]:
    """PSNR in dB of images of a finished unit against what their inversions give, denoised under the same prompt.

    Without guidance or suffix, in as many steps as rows take; what the autoencoder loses counts too. NaN where an image
    was left out.
    """
    return _psnr_of(ctx.fit(unit.name), unit, names, cfg, ctx)


def _psnr_of(
    latents: Mapping[str, "Tensor"], unit: FitUnit, names: Sequence[str], cfg: Config, ctx: Context
) -> list[float]:
    from diffaug_datasets.models.denoising import psnr

    known = [name for name in names if name in latents]
    images, prompts = _inverted(unit, known, cfg, ctx)
    made = _given_back([latents[name] for name in known], prompts, unit, cfg, ctx)
    found = {n: psnr(image / 2 + 0.5, back) for n, image, back in zip(known, images, made, strict=True)}
    return [found.get(name, math.nan) for name in names]


def inversion_facts(unit: FitUnit, names: Sequence[str], cfg: Config, ctx: Context) -> list[dict[str, float]]:
    """How far inversions of a finished unit are from N(0, 1), and the self-interpolation score of each image.

    Diff-II denoises points between two inversions. So the picture that an image's inversion gives is inverted too, and
    the point half-way between both is denoised: in dB against the image, high where the way between two latents of one
    picture shows that picture. After arXiv 2606.03111, whose own formula was not at hand.
    """
    from diffaug_datasets.models.denoising import psnr
    from diffaug_datasets.numerics.interpolation import kurtosis, root_mean_square

    latents = ctx.fit(unit.name)
    known = [name for name in names if name in latents]
    images, prompts = _inverted(unit, known, cfg, ctx)
    first = [latents[name] for name in known]
    shown = (2 * image - 1 for image in _given_back(first, prompts, unit, cfg, ctx))
    second = _inversions(shown, prompts, unit, cfg, ctx)
    between = [_half_way(a, b) for a, b in zip(first, second, strict=True)]
    made = _given_back(between, prompts, unit, cfg, ctx)
    found = {
        name: {
            "inversion_norm": root_mean_square(latent),
            "inversion_kurtosis": kurtosis(latent),
            "self_interpolation": psnr(image / 2 + 0.5, back),
        }
        for name, latent, image, back in zip(known, first, images, made, strict=True)
    }
    return [found.get(name, {}) for name in names]


def _half_way(a: "Tensor", b: "Tensor") -> "Tensor":
    """The middle of the short arc between two latents, or of the line where they span no circle."""
    from diffaug_datasets.numerics.interpolation import angle, circle, is_degenerate, lerp, turn

    if not bool(a.isfinite().all() and b.isfinite().all()) or is_degenerate(alpha := angle(a, b)) != "ok":
        return lerp(a, b, 0.5)
    return circle(a, b, turn(0.5, alpha, "short"))


def _inverted(unit: FitUnit, names: Sequence[str], cfg: Config, ctx: Context) -> tuple[Iterator["Tensor"], list[str]]:
    """What inversion sees: images in [-1, 1], one by one, and prompts, under the concepts that the unit stands on."""
    ctx.use_concepts(unit.content["concepts"])
    pairs = [image_of(name) for name in names]
    images = (ctx.backbone.preprocess(ctx.source(source), cfg.resize) for source, _ in pairs)
    return images, [cfg.concepts.prompt(label, unit.content["metaclass"]) for _, label in pairs]


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Interpolate every row's inversions on its circle, then denoise the batch in two stages."""
    import torch

    from diffaug_datasets.models.denoising import (
        Conditions,
        denoise,
        first_inverted,
        from_inverted,
        guided_network,
        pictures,
        row_conditions,
        timeline_of,
    )

    ctx.use_concepts(rows[0].adapters[0])
    draws = [Draw.model_validate_json(row.draw) for row in rows]
    if draws[0].switch != _switch(cfg, timeline_of(ctx.backbone)):
        raise RunError("rows were planned before the labels of their backbone were known; plan again.")
    drawn = zip(rows, draws, ctx.noise(rows), strict=True)
    starts = [start_of(row, draw, noise, cfg, ctx) for row, draw, noise in drawn]
    plain = row_conditions(rows)
    first = [row.prompt_first or row.prompt or "" for row in rows]
    conditions = Conditions(plain.last, plain.negative, plain.scale, first, [draw.switch for draw in draws])
    xt, first_step = torch.stack([start.latent for start in starts]), first_inverted(ctx.backbone, cfg.inversion_steps)
    steps = [row.start_step or (first_step if row.source_ids else 0) for row in rows]
    if cfg.inverter == "ddim":
        latents = denoise(ctx.backbone, xt, conditions, "ddim", cfg.num_inference_steps, steps)
    else:
        network = guided_network(ctx.backbone, conditions)
        latents = from_inverted(ctx.backbone, network, xt, cfg.num_inference_steps, cfg.inverter)
    made = pictures(ctx.backbone, latents)
    return [start.describe(image) for image, start in zip(made, starts, strict=True)]


class Start(NamedTuple):
    """Where a row's denoising begins, a latent [c h w] or a pair of them; what was measured there, and why no picture
    can follow.
    """

    latent: "Tensor"
    measured: dict[str, object]
    lacking: str = ""

    def describe(self, image: Generated) -> Generated:
        """The image that it led to, with what was measured and decided at the start."""
        chosen = {key: self.measured[key] for key in ("fallback",) if key in self.measured}
        return Generated(image.pixels, self.measured, chosen, lacking=self.lacking)


def start_of(row: PlanRow, draw: Draw, noise: "Tensor", cfg: Config, ctx: Context) -> Start:
    """A point of the circle through the row's inversions, noise, or a noised source for the policy `diff_aug`."""
    from diffaug_datasets.numerics.interpolation import angle, is_degenerate

    if row.start_step:
        return _noised_source(row, noise, cfg, ctx)
    if is_paired(cfg.inverter):
        noise = noise.expand(2, *noise.shape)
    if not row.source_ids:
        return Start(noise, {})
    known = {name: latent for adapter in row.adapters[1:] for name, latent in ctx.fit(adapter).items()}
    names = [image_key(source, row.label) for source in row.source_ids]
    ends = [known[name].to(noise.device, noise.dtype) for name in names if name in known or cfg.minimum_psnr is None]
    if not ends:
        return Start(noise, {}, lacking=_POOR)
    if not all(bool(end.isfinite().all()) for end in ends):
        return Start(noise, {}, lacking=_OVERFLOWN)
    if len(ends) == 2 and (state := is_degenerate(angle(*ends))) == "ok":
        return _on_circle(ends[0], ends[1], draw, cfg.norm)
    if row.fallback == "self_noise":  # at most a quarter circle, so that the picture stays near its one source
        draw = draw.model_copy(update={"u": draw.u / 4, "arc": "full"})
    start = _on_circle(ends[0], _noise_beside(ends[0], noise), draw, cfg.norm)
    if len(names) == 1:
        return start
    if len(ends) == 1:
        return Start(start.latent, {**start.measured, "fallback": "poor_noise_partner"})
    return Start(start.latent, {**start.measured, "fallback": f"{state}_noise_partner"})


def _noise_beside(latent: "Tensor", noise: "Tensor") -> "Tensor":
    """Noise of the norm of a latent, or of either of a pair."""
    import torch

    from diffaug_datasets.numerics.interpolation import noise_partner

    if latent.ndim == 3:
        return noise_partner(latent, noise)
    return torch.stack([noise_partner(a, b) for a, b in zip(latent, noise, strict=True)])


def _on_circle(a: "Tensor", b: "Tensor", draw: Draw, norm: "Norm") -> Start:
    import torch

    from diffaug_datasets.numerics.interpolation import angle, circle, turn

    if a.ndim == 4:  # pairs: both latents turn by one draw, each on its own circle
        first, second = (_on_circle(a[i], b[i], draw, norm) for i in (0, 1))
        return Start(torch.stack([first.latent, second.latent]), first.measured)
    alpha = angle(a, b)
    phi = turn(draw.u, alpha, draw.arc)
    point = circle(a, b, phi, norm)
    norms = {name: float(x.double().norm()) for name, x in (("norm_a", a), ("norm_b", b), ("norm_z", point))}
    return Start(point, {"alpha": alpha, "phi": phi, **norms})


def _noised_source(row: PlanRow, noise: "Tensor", cfg: Config, ctx: Context) -> Start:
    from diffaug_datasets.models.denoising import timesteps
    from diffaug_datasets.numerics.schedule import add_noise

    backbone = ctx.backbone
    clean = backbone.encode(backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize)[None])
    t = timesteps(backbone, "ddim", cfg.num_inference_steps)[row.start_step or 0]
    return Start(add_noise(backbone.schedule, clean, noise[None], [t])[0], {})

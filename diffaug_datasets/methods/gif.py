"""GIF: real images redrawn, their latents moved to be of the class still, but telling more (Zhang et al. 2023).

Paper: "Expanding small-scale datasets with guided imagination", NeurIPS 2023, arXiv 2211.13976; here GIF-SD.

1. a real image of the class, turned and mirrored at random       `plan`, roles `source`, `turn`, `mirror`
2. `{domain} {adjective} {name}`, both words drawn                `plan`, roles `domain`, `adjective`
3. noised to strength s, denoised by DDIM                         fit `imagined`, `models.denoising.sampled`
4. z ~ U(0, 1), b ~ N(0, 1) per channel; a step up the sign of
   the gradient of s_con + s_ent + s_div, |f' - f| <= eps         fit `imagined`, `models.imagination`
5. the picture of the moved latent                                `generate`
6. the label of the image                                         hard

The paper moves the latent before it is decoded and leaves open where in diffusion that is; follows the authors' code
(Vanint/DatasetExpansion) there: after denoising, on the clean latent, one step of 0.1, `group` images of one real image
at a time. Theirs too: noise of one label above the first that is denoised, the words of step 2, the zero-shot
classifier (`This is a photo of a {name}`), and that class j is the one that CLIP sees, not the label. Departs from it:
CLIP sees pictures normalised as it was trained (theirs: as they are, the real one by CIFAR's mean), turns are drawn per
image and not per group, and every image gets its rows in turn. Images of one real image are one fit, so what they
become never depends on strangers; an image that fails is not drawn anew. The paper's random move, without
guidance by S, is `updates: 0`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, field_validator, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.numerics.timesteps import img2img_start
from diffaug_datasets.plugin import (
    Context,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    Place,
    PlanRow,
    PlanSpec,
    Requirements,
    Resize,
    RowKey,
    Sampler,
    Source,
    SourceTable,
    canonical,
    image_key,
    new_row,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Generator, Tensor

    from diffaug_datasets.models.imagination import Guide

NAME = "gif"
SLUG = "gif"
VERSION = 1
TITLE = "GIF"
PAPER = "2211.13976"
PARITY = "differs: CLIP sees normalised pictures, turns are drawn per image; otherwise as the authors' code has GIF-SD"
N_SOURCES = 1
LABEL_RULE = "source"
NEEDS = frozenset({"encoder", "imagined"})
PROMPT = "class name, in a style"
START = "noised image of the class"
_DOMAINS = ("an image of", "a real-world photo of", "a cartoon image of", "an oil painting of", "a sketch of")
_ADJECTIVES = ("", "colorful", "stylized", "high-contrast", "low-contrast", "posterized", "solarized")
_FILE = "latents.safetensors"


class Config(_editing.FromSource):
    """Redrawing, and how far latents move."""

    domains: tuple[str, ...] = Field(default=_DOMAINS, description="of prompts, one drawn for every row")
    adjectives: tuple[str, ...] = Field(default=(*_ADJECTIVES, "sheared", "bright", "dark"), description="the same")
    strength: float = Field(default=0.9, gt=0, le=1, description="how much of the schedule is denoised anew")
    sampler: Sampler = Field(default="ddim", description="DDIM, DPM-Solver++(2M) or PLMS")
    guidance_scale: Guidance = Field(default=50.0, description="the authors' scripts: 50, 8 or 5, by dataset; 1 = none")
    resize: Resize = Field(default="bicubic", description="how sources are fitted")
    rotation: float = Field(default=15.0, ge=0, le=180, description="an image is turned by up to so many degrees")
    mirror: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring an image")
    encoder: Annotated[str, Place(packaged=("tiny",))] = Field(
        default="openai/clip-vit-base-patch32", description="`tiny`, a folder or a Hub id of a CLIP model"
    )
    text: str = Field(default="This is a photo of a {name}", description="of the encoder's classes")
    group: int = Field(default=2, ge=1, le=64, description="images of one real image that are moved together")
    epsilon: float = Field(default=0.8, ge=0, description="how far a latent's values move at most")
    step: float = Field(default=0.1, ge=0, description="of an update of z and b")
    updates: int = Field(default=1, ge=0, le=1000, description="of z and b; 0 = they stay as drawn")

    @field_validator("domains", "adjectives")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("expected one or more texts")
        return value

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.steps(self.strength)
        return self

    @property
    def requirements(self) -> Requirements:
        """Steps that fit the schedule, and the encoder."""
        return Requirements(encoder=self.encoder, steps=super().requirements.steps)


class Draw(BaseModel):
    """turn: degrees, against the clock; mirrored; perturbation: the seed of z and b."""

    turn: float
    mirrored: bool
    perturbation: int


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images, its images in turn."""
    rows = list(_rows(cfg, table, spec))
    units = _units(cfg, table, spec, rows)
    return (row.model_copy(update={"adapters": (units[_image(row)].name,)}) for row in rows)


def _rows(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    groups = table.by_class()
    for label, count in _editing.counts(table, spec):
        for k in range(count if groups[label] else 0):
            yield _row(cfg, table, spec, RowKey(spec.seed, NAME, label, k), groups[label][k % len(groups[label])])


def _row(cfg: Config, table: SourceTable, spec: PlanSpec, key: RowKey, source: Source) -> PlanRow:
    words = key.choice("domain", cfg.domains), key.choice("adjective", cfg.adjectives)
    turn = round((2 * key.uniform("turn") - 1) * cfg.rotation, 6)
    mirrored = key.uniform("mirror") < cfg.mirror
    draw = Draw(turn=turn, mirrored=mirrored, perturbation=key.seed("perturbation"))
    return new_row(
        VERSION,
        key,
        spec,
        prompt=" ".join(" ".join((*words, table.prompt_names[key.class_id])).split()),
        draw=canonical(draw.model_dump()),
        **_editing.source_columns(source),
        **cfg.steps(cfg.strength),
    )


def _image(row: PlanRow) -> str:
    return image_key(row.source_ids[0], row.label)


def _units(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> Mapping[str, FitUnit]:
    """Real image -> the fit of all its rows. `steps`: U-Net rows that it takes."""
    of_image: dict[str, list[PlanRow]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.k)):
        of_image.setdefault(_image(row), []).append(row)
    shared = {
        "backbone": spec.backbone,
        "size": spec.size,
        "settings": cfg.model_dump(mode="json", exclude={"domains", "adjectives", "rotation", "mirror"}),
        "names": list(table.prompt_names),
    }
    return {
        image: FitUnit.of(
            "imagined",
            {
                **shared,
                "images": [image],
                "steps": sum(_editing.evaluations(cfg, row) for row in own),
                "rows": [[row.row_id, row.seed, row.prompt, row.draw] for row in own],
            },
        )
        for image, own in of_image.items()
    }


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """One for every real image that has rows."""
    return tuple(_units(cfg, table, spec, rows).values())


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Steps 3 and 4: the moved latents [c h w] of one real image's rows, by row id."""
    import torch

    from diffaug_datasets.models.imagination import Guide

    content = unit.content
    latents: dict[str, Tensor] = {}
    sums: dict[str, float] = {}
    source = ctx.source(content["images"][0].partition("/")[0])
    real = (ctx.backbone.preprocess(source, cfg.resize)[None] + 1) / 2
    with torch.no_grad():
        seen = ctx.pixel_features(real)[0]
    texts = ctx.text_features([cfg.text.replace("{name}", name) for name in content["names"]]).to(seen.device)
    rows = content["rows"]
    for begin in range(0, len(rows), cfg.group):
        part = rows[begin : begin + cfg.group]
        moved, found = _moved(part, cfg, ctx, source, Guide(ctx.pixel_features, texts, seen))
        latents |= {row[0]: latent for row, latent in zip(part, moved, strict=True)}
        sums = {name: sums.get(name, 0.0) + value * len(part) / len(rows) for name, value in found.items()}
    return FitFiles({_FILE: latents}, sums)


def _moved(
    rows: "Sequence[tuple[str, int, str, str]]", cfg: Config, ctx: Context, source: "Image", guide: "Guide"
) -> "tuple[Tensor, Mapping[str, float]]":
    """Latents [b c h w] of rows (id, seed, prompt, draw) of one real image, and the criteria before the last update."""
    import torch

    from diffaug_datasets.models.denoising import Conditions, guided_network, sampled, timesteps
    from diffaug_datasets.models.imagination import imagined
    from diffaug_datasets.numerics.schedule import add_noise

    backbone, draws = ctx.backbone, [Draw.model_validate_json(row[3]) for row in rows]
    conditions = Conditions(
        [row[2] for row in rows], [cfg.negative_prompt] * len(rows), [cfg.guidance_scale] * len(rows)
    )
    start = img2img_start(cfg.num_inference_steps, cfg.strength)
    label = timesteps(backbone, cfg.sampler, cfg.num_inference_steps)[max(start - 1, 0)]
    with torch.no_grad():
        turned = torch.stack([backbone.preprocess(_turned(source, draw, cfg, ctx), cfg.resize) for draw in draws])
        noise = torch.stack([torch.randn(backbone.latent_shape, generator=_stream(row[1])) for row in rows])
        clean = backbone.encode(turned)
        xt = add_noise(backbone.schedule, clean, noise.to(clean), [label] * len(rows))
        eps, steps = guided_network(backbone, conditions), cfg.num_inference_steps
        latents = sampled(backbone, eps, xt, cfg.sampler, steps, [start] * len(rows), seeds=[row[1] for row in rows])
    streams = [_stream(draw.perturbation) for draw in draws]
    scale = torch.stack([torch.rand(latents.shape[1], generator=stream) for stream in streams])
    bias = torch.stack([torch.randn(latents.shape[1], generator=stream) for stream in streams])
    moved, found = imagined(
        backbone, latents, guide, scale, bias, radius=cfg.epsilon, step=cfg.step, updates=cfg.updates
    )
    return moved.cpu(), found.measured()


def _stream(seed: int) -> "Generator":
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def _turned(source: "Image", draw: Draw, cfg: Config, ctx: Context) -> "Image":
    """The picture at the backbone's size, turned without smoothing on black, and mirrored."""
    from PIL import Image, ImageOps

    pixels = (ctx.backbone.preprocess(source, cfg.resize).permute(1, 2, 0) + 1) / 2
    fitted = ctx.image(pixels).rotate(draw.turn, resample=Image.Resampling.NEAREST)
    return ImageOps.mirror(fitted) if draw.mirrored else fitted


def evaluations(cfg: Config, row: PlanRow) -> int:
    """None: the fit of the row's image has made its latent."""
    return 0


def redraw(row: PlanRow, key: RowKey, cfg: Config) -> PlanRow:
    """A later attempt is the same: what is random has been spent in the fit."""
    return row


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Step 5."""
    import torch

    from diffaug_datasets.models.denoising import pictures

    return pictures(ctx.backbone, torch.stack([ctx.fit(row.adapters[0])[row.row_id] for row in rows]))

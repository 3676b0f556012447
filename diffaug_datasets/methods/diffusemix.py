"""DiffuseMix: half a real image beside half of its styled edit, under a little fractal (Islam et al. 2024).

Paper: "DiffuseMix: label-preserving data augmentation with diffusion models", CVPR 2024, arXiv 2405.14881.

1. a real image I of the class, and a style p                 `plan`, an image's styles in turn
2. I' = the image edited as "p" instructs (InstructPix2Pix)   `models.pix2pix.instructed`
3. H = (1 - M) I + M I', M half of the picture                `plan`, role `mask`; `_half`
4. A = (1 - lambda) H + lambda F, F a fractal, lambda 0.2     `plan`, role `fractal`; `numerics.fractals`
5. the label of I                                             hard

The paper draws M from four: the edit on the left, right, top or bottom. The authors' code
(khawar-islam/diffuseMix) has two, the edit always on the right or at the bottom, with a ramp of 20 of 256 pixels
between the halves (`flips`, `blend_width`), and instructs by the bare style, where the paper has a sentence around it
(`prompt`, at second hand). Guidance 4, 100 steps of Euler's ancestral sampler at 256 x 256, the image scale of 1.5 and
the nine styles are the code's, for the paper leaves them open. Departs from both in the fractals: theirs are
pictures from the web; here every row has one of its own, made by iterated function systems (arXiv 2110.03091), unless
`fractals` names a folder of yours. Departs from the code in rounding once, at the end, where it truncates twice, and in
keeping edits that are nearly white, which it drops. Where no InstructPix2Pix model is at hand, `editor: noised` edits
with any Stable Diffusion: the image noised to `strength` and denoised under the style (SDEdit, not the paper's).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from diffaug_datasets.methods import _editing
from diffaug_datasets.numerics.timesteps import img2img_start
from diffaug_datasets.plugin import (
    Context,
    Final,
    FitFiles,
    FitUnit,
    Generated,
    Guidance,
    MethodConfig,
    Place,
    PlanError,
    PlanRow,
    PlanSpec,
    Requirements,
    Resize,
    RowKey,
    Sampler,
    Source,
    SourceTable,
    StepCount,
    branches,
    canonical,
    fill,
    new_row,
    uint63,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

NAME = "diffusemix"
SLUG = "diffusemix"
VERSION = 1
TITLE = "DiffuseMix"
PAPER = "2405.14881"
PARITY = (
    "differs: fractals are made here or your own (the authors' are pictures from the web); one rounding, at the end"
)
N_SOURCES = 1
LABEL_RULE = "source"
PROMPT = "a style"
START = "noise, beside an image of the class"
UNSURE = {"prompt": "at second hand: the sentence of the paper; the authors' code has the bare style"}
_STYLES = ("Autumn", "snowy", "watercolor art", "sunset", "rainbow", "aurora", "mosaic", "ukiyo-e")
_MADE = "made"
_PICTURES = (".png", ".jpg", ".jpeg")
_CODE_SIDE = 256  # of the pictures that the ramp's width is stated for

Side = Literal["left", "right", "top", "bottom"]


class Config(MethodConfig):
    """Edits, halves and fractals."""

    styles: tuple[str, ...] = Field(default=(*_STYLES, "a sketch with crayon"), description="an image's, in turn")
    prompt: str = Field(default="A transformed version of image into {style}", description="{style}, {name} are filled")
    negative_prompt: str = Field(default="", description="prompt of the branches without text")
    editor: Literal["instruct", "noised"] = Field(
        default="instruct", description="InstructPix2Pix, or any Stable Diffusion that denoises the noised image"
    )
    num_inference_steps: int = Field(default=100, ge=2, le=999, description="Euler's ancestral; noised: DPM-Solver++")
    guidance_scale: Guidance = Field(default=4.0, description="towards the style; 1 = none")
    image_guidance_scale: float = Field(default=1.5, ge=1, le=1000, description="towards the image; instruct alone")
    strength: float = Field(default=0.6, gt=0, le=1, description="of an edit that is `noised`")
    resize: Resize = Field(default="bicubic", description="how sources are fitted")
    flips: bool = Field(default=True, description="the edit may be any half; false: right or bottom, as the code")
    blend_width: int = Field(default=0, ge=0, le=256, description="ramp between halves, pixels of 256; the code: 20")
    fractal_weight: float = Field(default=0.2, ge=0, le=1, description="lambda; 0 = no fractal")
    fractals: Annotated[str, Place(counts=False, packaged=(_MADE,), bare=True)] = Field(
        default=_MADE, description="`made`, or a folder of your own pictures (PNG, JPEG)"
    )

    @field_validator("styles")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(style.strip() for style in value):
            raise ValueError("expected one or more styles in words")
        return value

    @field_validator("prompt")
    @classmethod
    def _names_the_style(cls, value: str) -> str:
        if "{style}" not in value:
            raise ValueError("the prompt must contain {style}")
        return value

    @model_validator(mode="after")
    def _some_step(self) -> "Config":
        self.start()
        return self

    def idle(self) -> dict[str, str]:
        """What the other way of editing, guidance, or a blend with weight would read."""
        other = "strength" if self.editor == "instruct" else "image_guidance_scale"
        keys = {other: f"editor is {self.editor}"}
        if self.guidance_scale == 1 and (self.editor == "noised" or self.image_guidance_scale == 1):
            keys["negative_prompt"] = "nothing is guided"
        return keys if self.fractal_weight else keys | {"fractals": "fractal_weight is 0"}

    @property
    def sampler(self) -> Sampler:
        """Of edits that are `noised`."""
        return "dpm"

    @property
    def final(self) -> Final | None:
        """Where they end: as that sampler does."""
        return None

    @property
    def requirements(self) -> Requirements:
        """A backbone that edits by instruction, or steps that fit an ordinary one's schedule."""
        if self.editor == "instruct":
            return Requirements(editor=True)
        return Requirements(steps=(StepCount("num_inference_steps", "dpm", self.num_inference_steps),))

    def start(self) -> int:
        """The first step that runs."""
        return 0 if self.editor == "instruct" else img2img_start(self.num_inference_steps, self.strength)


class Draw(BaseModel):
    """mask: the half that the edit is; fractal: the seed of a made one, or the sha256 of a picture's file."""

    mask: Side
    fractal: int | str | None


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class that has images: its images in turn, each with all styles before any repeats."""
    files = tuple(_folder(cfg)) if cfg.fractals != _MADE and cfg.fractal_weight else ()
    adapters = (_unit(files, spec).name,) if files else ()
    groups = table.by_class()
    for label, count in _editing.counts(table, spec):
        for k in range(count if groups[label] else 0):
            key, source = RowKey(spec.seed, NAME, label, k), groups[label][k % len(groups[label])]
            style = _style(cfg, spec, source, k // len(groups[label]))
            yield new_row(
                VERSION,
                key,
                spec,
                prompt=fill(cfg.prompt.replace("{style}", style), table.prompt_names[label], table.metaclass, ""),
                negative_prompt=cfg.negative_prompt,
                num_inference_steps=cfg.num_inference_steps,
                start_step=cfg.start(),
                guidance_scale=cfg.guidance_scale,
                strength=1.0 if cfg.editor == "instruct" else cfg.strength,
                draw=canonical(_draw(cfg, key, files).model_dump()),
                adapters=adapters,
                **_editing.source_columns(source),
            )


def _style(cfg: Config, spec: PlanSpec, source: Source, turn: int) -> str:
    """The image's style at its so manieth turn; images begin at different ones."""
    first = uint63(f"{spec.seed}|{NAME}|{source.id}|{source.label}|style")
    return cfg.styles[(first + turn) % len(cfg.styles)]


def _draw(cfg: Config, key: RowKey, files: Sequence[str]) -> Draw:
    sides: tuple[Side, ...] = ("left", "right", "top", "bottom") if cfg.flips else ("right", "bottom")
    fractal = None if not cfg.fractal_weight else key.choice("fractal", files) if files else key.seed("fractal")
    return Draw(mask=key.choice("mask", sides), fractal=fractal)


def redraw(row: PlanRow, key: RowKey, cfg: Config) -> PlanRow:
    """A later attempt has other noise and another half; a made fractal too."""
    draw = Draw.model_validate_json(row.draw)
    files = (draw.fractal,) if isinstance(draw.fractal, str) else ()
    return row.model_copy(update={"seed": key.seed("noise"), "draw": canonical(_draw(cfg, key, files).model_dump())})


def _folder(cfg: Config) -> dict[str, Path]:
    """sha256 -> file of every picture right in the folder, sorted by digest.

    Raises:
        PlanError: there is no such folder, or no picture in it.
    """
    import hashlib

    folder = Path(cfg.fractals)
    files = [path for path in folder.glob("*") if path.suffix.lower() in _PICTURES and path.is_file()]
    if not files:
        raise PlanError(
            f"config.fractals: {cfg.fractals!r} is no folder with PNG or JPEG pictures right in it; name one, or say "
            "`made`."
        )
    return dict(sorted((hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in sorted(files)))


def _unit(files: Sequence[str], spec: PlanSpec) -> FitUnit:
    return FitUnit.of("fractals", {"files": list(files), "size": spec.size, "backbone": spec.backbone})


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """The pictures of a folder of fractals; nothing where they are made."""
    known = {Draw.model_validate_json(row.draw).fractal for row in rows if row.adapters}
    return (_unit(tuple(_folder(cfg)), spec),) if known else ()


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """The folder's pictures [H W 3], uint8, at the backbone's size, by digest.

    Raises:
        PlanError: the folder no longer holds what was planned with.
    """
    import torch

    files = _folder(cfg)
    if list(files) != unit.content["files"]:
        raise PlanError(
            f"config.fractals: {cfg.fractals!r} holds other pictures than the plan was made with; plan again."
        )
    levels = {name: ctx.backbone.preprocess(_picture(path), "bicubic") for name, path in files.items()}
    pictures = {name: ((x + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0) for name, x in levels.items()}
    return FitFiles({"fractals.safetensors": pictures})


def _picture(path: Path) -> "Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise PlanError(
            f"config.fractals: {str(path)!r} is no picture that can be read ({error}); take it out."
        ) from None


def evaluations(cfg: Config, row: PlanRow) -> int:
    """Three U-Net rows per step of an instructed edit, one without guidance; two of a noised one."""
    if cfg.editor == "noised":
        return branches(row) * (cfg.num_inference_steps - (row.start_step or 0))
    return _editing.instructed_evaluations(cfg, row)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """Steps 2 to 4 of a batch; an edit that is not finite is handed on as it is."""
    import torch

    sources = torch.stack([ctx.backbone.preprocess(ctx.source(row.source_ids[0]), cfg.resize) for row in rows])
    edits = _edits(rows, cfg, ctx, sources)
    made: list[Generated] = []
    for row, source, edit in zip(rows, sources, edits, strict=True):
        if bool(torch.isfinite(edit).all()):
            edit = _mixed(Draw.model_validate_json(row.draw), row, cfg, ctx, source, edit)
        made.append(Generated(edit))
    return made


def _edits(
    rows: Sequence[PlanRow], cfg: Config, ctx: Context, sources: "Float[Tensor, 'b 3 H W']"
) -> "Float[Tensor, 'b 3 H W']":
    """Step 2: pictures in [0, 1], rounded to grey levels as an image file is."""
    import torch

    from diffaug_datasets.models.denoising import edit, row_conditions, timesteps

    if cfg.editor == "instruct":
        made = _editing.instructed(rows, cfg, ctx, sources)
    else:
        starts, labels = [row.start_step or 0 for row in rows], timesteps(ctx.backbone, "dpm", cfg.num_inference_steps)
        edited = edit(ctx, rows, row_conditions(rows), cfg, [labels[s] for s in starts], starts)
        made = torch.stack([image.pixels.permute(2, 0, 1) for image in edited])
    return (made * 255).round() / 255


def _mixed(
    draw: Draw,
    row: PlanRow,
    cfg: Config,
    ctx: Context,
    source: "Float[Tensor, '3 H W']",
    edit: "Float[Tensor, '3 H W']",
) -> "Float[Tensor, 'H W 3']":
    """Steps 3 and 4, in [0, 1]; source in [-1, 1]."""
    import torch

    from diffaug_datasets.numerics.fractals import fractal

    original = ((source + 1) / 2).to(edit)
    height, width = original.shape[1:]
    weight = _half(draw.mask, height, width, cfg.blend_width).to(edit)
    mixed = ((1 - weight) * original + weight * edit).permute(1, 2, 0)
    if draw.fractal is None:
        return mixed
    if isinstance(draw.fractal, str):
        levels = ctx.fit(row.adapters[0])[draw.fractal]
    else:
        levels = torch.from_numpy(fractal(draw.fractal, height, width))
    return (1 - cfg.fractal_weight) * mixed + cfg.fractal_weight * levels.to(mixed) / 255


def _half(side: Side, height: int, width: int, blend_width: int) -> "Float[Tensor, 'h w']":
    """The weight of the edit: 1 on its side, 0 on the other, a straight ramp of so many of 256 pixels between."""
    import torch

    length = height if side in ("top", "bottom") else width
    ramp = round(blend_width * length / _CODE_SIDE)
    first = length // 2 - ramp // 2
    line = torch.cat([torch.zeros(first), torch.linspace(0, 1, ramp), torch.ones(length - first - ramp)])
    line = line.flip(0) if side in ("left", "top") else line
    return line[:, None].expand(height, width) if side in ("top", "bottom") else line[None].expand(height, width)

"""What a method is: a module that states facts, plans rows and makes the images of a batch.

A new method is one new file in `methods/`, or a module that an entry point of the group `diffaug_datasets.methods`
names. `discover_methods` finds both and reads each into a `Method`: what the engine asks of a method is a field of
that class, with a type and, where most methods have nothing to say, a default. What it asks of a method's parameters
is `MethodConfig.requirements`. What a method may ask of the engine is `Context`, and of the diffusion model
`DiffusionModel`. `method_facts` puts a method into words, for the table of all methods.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from diffaug_datasets.core.errors import DiffAugError, RecipeError, RunError
from diffaug_datasets.core.identity import RowKey, canonical, digest
from diffaug_datasets.core.learning import ConceptConfig, EmbeddingConfig, LoraConfig
from diffaug_datasets.core.models import place_of
from diffaug_datasets.core.rows import PlanRow, SoftLabel
from diffaug_datasets.core.settings import Settings
from diffaug_datasets.core.sources import Pool, PoolTable, Source, SourceTable
from diffaug_datasets.numerics.timesteps import Timeline

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor, device

    from diffaug_datasets.numerics.schedule import Schedule

ENTRY_POINTS = "diffaug_datasets.methods"

LabelRule = Literal["source", "target", "mixed"]
Need = Literal["concepts", "lora", "imagined", "inversions", "image_embeddings", "encoder", "pool"]
Sampler = Literal["dpm", "ddim", "plms"]
Final = Literal["zero", "alpha_bar_0"]
"""Where sampling ends: without noise, or at the level of label 0."""
Resize = Literal["crop", "bilinear", "bicubic", "lanczos"]
Guidance = Annotated[float, Field(ge=0, le=1000)]
"""Scale of classifier-free guidance in a method's `Config`: 1 = none; papers stay below 20."""
ARGUMENTS = {"plan": 3, "fits": 4, "fit": 3, "generate": 3, "evaluations": 2, "redraw": 3, "inversion_psnr": 4}
ARGUMENTS["inversion_facts"] = 4
LABEL_WORDS = {
    "source": "hard, the class of its real images",
    "target": "hard, the target class",
    "mixed": "soft, over source and target",
}
ELSEWHERE = "as `diffaug plan` says"
LEARNED = {
    "concepts": "tokens and LoRA",
    "lora": "LoRA",
    "imagined": "moved latents",
    "inversions": "inversions",
    "image_embeddings": "a condition per image",
}
FALLBACKS: Mapping[str, str] = MappingProxyType(
    {
        "noise_partner": "the class has one image: its partner is noise of the same norm",
        "self_noise": "the class has one image: it is turned towards noise by at most a quarter circle",
        "diff_aug": "the class has one image: it is edited instead of interpolated",
        "coincident_noise_partner": "the two inversions coincide: the partner is noise of the same norm",
        "poor_noise_partner": "a source was left out for its inversion: the partner is noise of the same norm",
        "antipodal_noise_partner": "the two inversions are opposite: the partner is noise of the same norm",
        "ada_skipped": "the target class has no image to compare with: the largest level is kept",
        "source_equals_target": "source and target look the same to the encoder: the largest level is kept",
        "no_partner": "the class has one image: its embedding is varied by noise alone",
    }
)
"""What the values of the column `fallback` mean."""


class StepCount(NamedTuple):
    """A number of steps that a person set: the key of `Config` that holds it, the sampler that takes them."""

    key: str
    sampler: Sampler
    steps: int


@dataclass(frozen=True)
class Requirements:
    """What a configured method needs of the engine; nothing, unless its `Config` says so.

    `encoder`: the image encoder's id, or the folder that holds it; the key of `Config` has this name too.
    `pool`: the place of the images that it may retrieve; the key of `Config` has this name too.
    `controlnet`: the folder of the ControlNet that steers it, '' where one is needed and none is named; the key of
    `Config` has this name too.
    `suffixes`: the texts that prompts may end with, the name of a shipped list, or `auto` for the dataset's own list.
    `top_confused`: take sources from that many classes, those most confused with the target; None = from all others.
    `steps`: what must fit the schedule of the backbone.
    `at_source_size`: whether pictures come back at the size of their sources, however large those are.
    `editor`: whether the backbone must be one that edits as a text instructs (InstructPix2Pix); others must not be.
    """

    encoder: str | None = None
    pool: str | None = None
    suffixes: str | tuple[str, ...] = ()
    top_confused: int | None = None
    steps: tuple[StepCount, ...] = ()
    at_source_size: bool = False
    editor: bool = False
    controlnet: str | None = None


class MethodConfig(Settings):
    """Base of every method's `Config`: the keys that a person may set under `config` in a recipe.

    A key that may name a file or folder has the type `Annotated[str, Place()]` (`core.models`); one that is added to a
    method whose plans are kept, `Annotated[..., Later()]` (`core.settings`).
    """

    @property
    def requirements(self) -> Requirements:
        """What these settings need of the engine."""
        return Requirements()


class NoDraw(BaseModel):
    """The `Draw` of a method whose draws all have columns of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class PlanSpec:
    """What a method may know when it plans, besides its own `Config` and the real images.

    `per_class`: rows per class; None = `per_image` rows per real image. `suffixes`: texts that a prompt may end with.
    `confused`: by class id, the classes that sources come from. `targets`: the class ids that get rows, None = all.
    `pool`: the images it may retrieve. `held_out`: digest of the test images that the run carries. `size`: (height,
    width) in pixels, None where the backbone's own is meant. `timeline`: its labels; Stable Diffusion's where the model
    is not on this machine yet.
    """

    seed: int
    backbone: str
    batch_size: int = 8
    per_image: float = 5.0
    per_class: int | None = None
    suffixes: tuple[str, ...] = ()
    confused: tuple[tuple[int, ...], ...] | None = None
    targets: tuple[int, ...] | None = None
    pool: PoolTable | None = None
    held_out: str | None = None
    size: tuple[int | None, int | None] = (None, None)
    timeline: Timeline = field(default_factory=Timeline)

    def count(self, images: float) -> int:
        """Rows of a class that has so many real images: `per_class`, else int(per_image * images)."""
        return self.per_class if self.per_class is not None else int(self.per_image * images)

    def wants(self, label: int) -> bool:
        """Whether the class of that id gets rows."""
        return not self.targets or label in self.targets


@dataclass(frozen=True)
class FitUnit:
    """Something learned or computed once for many rows, stored in `fits/<kind>-<digest>/`.

    `payload` is canonical JSON of everything that decides its content; its digest is the identity. `after`: the names
    of the fits that it needs.
    """

    kind: str
    payload: str
    after: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, payload: Mapping[str, object], after: Sequence[str] = ()) -> FitUnit:
        """The unit of a JSON-like payload."""
        return cls(kind, canonical(payload), tuple(after))

    @cached_property
    def name(self) -> str:
        """Folder name and what rows cite in `adapters`: kind and 16 hex digits."""
        return f"{self.kind}-{digest([self.kind, self.payload])[:16]}"

    @property
    def content(self) -> dict[str, Any]:
        """The payload, parsed."""
        parsed: dict[str, Any] = json.loads(self.payload)
        return parsed


@dataclass(frozen=True)
class FitFiles:
    """What a fit leaves: file name (`*.safetensors`) -> tensor name -> tensor, and numbers for the receipt."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    measured: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """One image: uint8 RGB [h, w, 3] or float in [0, 1] (NaN allowed: the worker judges it), and its measurements.

    `chosen` overrides planned columns that only generation can know (`strength`, `start_step`). `encoded`: the bytes
    of an image that was found, not made; they are stored as they are. `lacking`: why there is no image, in words.
    """

    pixels: Tensor
    measured: Mapping[str, object] = field(default_factory=dict)
    chosen: Mapping[str, object] = field(default_factory=dict)
    encoded: bytes | None = None
    lacking: str = ""


@runtime_checkable
class DiffusionModel(Protocol):
    """The diffusion model as methods see it. Latents, conditions and predicted noise are float32 on its device.

    `models.backbone.Backbone` is one.
    """

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""

    @property
    def device(self) -> device:
        """Where it computes."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one latent."""

    def preprocess(self, image: Image, resize: Resize) -> Float[Tensor, "3 H W"]:
        """A picture in [-1, 1] at the model's size in pixels, on the CPU."""

    def encode(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents of images in [-1, 1]: the posterior's mode, or its sample at standard normal `noise`."""

    def decode_float(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1]; what is not finite stays so."""

    def prompts(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        """The conditions of texts, each encoded alone."""

    def eps(
        self, xt: Float[Tensor, "b c h w"], t: float | Sequence[float], cond: Float[Tensor, "b s d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that it sees in xt at timestep label t: one network call of b rows."""

    def said(
        self, xt: Float[Tensor, "b c h w"], t: float | Sequence[float], cond: Float[Tensor, "b s d"]
    ) -> Float[Tensor, "b c h w"]:
        """The same as its schedule's `prediction` names it: eps, unless the schedule ends without signal."""

    def guided_eps(
        self,
        xt: Float[Tensor, "b c h w"],
        t: float | Sequence[float],
        cond: Float[Tensor, "b s d"],
        uncond: Float[Tensor, "b s d"],
        scale: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What `said` gives, under classifier-free guidance, one scale per row."""


class Context(Protocol):
    """What the engine lends a method while it generates or fits (`run.context.WorkContext`).

    `folder`: where a fit may keep checkpoints while it is made; what it returns is stored by the engine.
    """

    folder: Path

    @property
    def backbone(self) -> DiffusionModel:
        """The diffusion model of the recipe."""

    def image(self, pixels: Float[Tensor, "h w 3"]) -> Image:
        """The 8-bit picture of generated pixels in [0, 1]."""

    def features(self, images: Iterable[Image], normalise: bool = True) -> Float[Tensor, "n d"]:
        """Features of the method's encoder, seen in batches of the planned shape; of unit norm if `normalise`."""

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit-norm features of texts, by the same encoder."""

    def pixel_features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Unit-norm features of images in [0, 1], by the same encoder, differentiable."""

    def source(self, source_id: str) -> Image:
        """The real image of that id, RGB."""

    @property
    def controlnet(self) -> ControlNetModel:
        """The ControlNet that the recipe names in `config.controlnet`."""

    @property
    def pool(self) -> Pool:
        """The images that may be retrieved."""

    def held_out(self) -> Iterator[bytes]:
        """The encoded test images that the run carries: to keep away from, never to use."""

    def fit(self, name: str) -> Mapping[str, Tensor]:
        """All tensors of a finished fit, by name."""

    def use_concepts(self, name: str) -> None:
        """Install the tokens and adapters of a finished `concepts` fit into the backbone."""

    def noise(self, rows: Sequence[PlanRow]) -> Float[Tensor, "b c h w"]:
        """Standard normal latents, row i drawn from row i's seed alone."""

    def learn_concepts(
        self, images: Sequence[str], names: Mapping[int, str], cfg: ConceptConfig, *, metaclass: str, resize: Resize
    ) -> FitFiles:
        """Tokens of the classes of real images (`image_key`) and the LoRA they share. `names`: where tokens start."""

    def learn_lora(
        self, images: Sequence[str], prompts: Mapping[int, str], cfg: LoraConfig, *, resize: Resize
    ) -> FitFiles:
        """LoRA of U-Net and text encoder from real images (`image_key`) under the prompts of their classes."""

    def learn_embeddings(
        self, images: Sequence[str], cfg: EmbeddingConfig, *, resize: Resize, prompts: Mapping[int, str] | None = None
    ) -> FitFiles:
        """A condition [s d] for each real image of a group, by its `image_key`. `prompts`: of classes, to start at."""

    def report(self, step: int, total: int, loss: float) -> None:
        """Progress of a fit that the method makes itself."""


PlanFunction = Callable[[MethodConfig, SourceTable, PlanSpec], Iterable[PlanRow]]
FitsFunction = Callable[[MethodConfig, SourceTable, PlanSpec, Sequence[PlanRow]], tuple[FitUnit, ...]]
FitFunction = Callable[[FitUnit, MethodConfig, Context], FitFiles]
GenerateFunction = Callable[[Sequence[PlanRow], MethodConfig, Context], list[Generated]]
EvaluationsFunction = Callable[[MethodConfig, PlanRow], int]
RedrawFunction = Callable[[PlanRow, RowKey, MethodConfig], PlanRow]
InversionPsnrFunction = Callable[[FitUnit, Sequence[str], MethodConfig, Context], list[float]]
InversionFactsFunction = Callable[[FitUnit, Sequence[str], MethodConfig, Context], list[dict[str, float]]]


def learns_nothing(_cfg: MethodConfig, _table: SourceTable, _spec: PlanSpec, _rows: Sequence[PlanRow]) -> tuple[()]:
    """The `fits` of a method that declares none."""
    return ()


def _unplanned(unit: FitUnit, _cfg: MethodConfig, _ctx: Context) -> FitFiles:
    raise RunError(f"fit {unit.name}: this version of the method learns nothing; plan again.")


def other_noise(row: PlanRow, key: RowKey, _cfg: MethodConfig) -> PlanRow:
    """The `redraw` of a method that declares none: another noise seed."""
    return row.model_copy(update={"seed": key.seed("noise")})


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Method:
    """The facts and functions of a method, each under the name that its module gives it.

    `NAME`, `SLUG`: in recipes, and in names of configs. `VERSION`: raised with every change of its images.
    `TITLE`, `PAPER`: of the publication; its arXiv id. `PARITY`: how it stands to that. `N_SOURCES`: real images per
    row. `LABEL_RULE`: the hard label is the class of the sources, or the target's; `mixed` = a soft label over both.
    `Config`: its parameters. `plan`: the rows, a pure function of its arguments. `generate`: the images of a batch.
    `evaluations`: rows of one image through the U-Net, under all steps and branches of guidance, at batch shape 1.

    With defaults: `NEEDS`, some of the kinds that its type lists. `Draw`: what the column `draw` holds. `fits`: what
    the planned rows rest on and nothing else, whatever the rows' order, each after what it needs; `fit` makes one.
    `redraw`: the row at a later attempt. `inversion_psnr`: PSNR in dB of real images of a finished `inversions` fit
    against what their inversions give; `inversion_facts`: for each of them other columns of `core.rows.SetScores`.
    `FITS_BY_IMAGE`: kinds of fits whose tensors are named after real images and of which a row reads those of its own
    sources alone. `USUAL_LABELS`: whether plans decide on Stable Diffusion's labels (1000 timesteps, offset 1), so that
    a backbone with others is refused.
    `PROMPT`, `START`, `FILTER`: what it prompts with, denoises from and sorts out, in words for the table of methods.
    `UNSURE`: key of `Config` -> how it is known, where that is not from the publication or its code.

    `module`: where it was found. `page`: the module's docstring: title, numbered steps, what it departs from.
    """

    module: str
    page: str
    NAME: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    SLUG: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    VERSION: Annotated[int, Field(ge=1)]
    TITLE: str
    PAPER: str
    PARITY: Annotated[str, Field(pattern=r"^(matches|differs|reconstruction)\b")]
    N_SOURCES: Annotated[int, Field(ge=0)]
    LABEL_RULE: LabelRule
    Config: type[MethodConfig]
    plan: PlanFunction
    generate: GenerateFunction
    evaluations: EvaluationsFunction
    NEEDS: frozenset[Need] = frozenset()
    Draw: type[BaseModel] = NoDraw
    fits: FitsFunction = learns_nothing
    fit: FitFunction = _unplanned
    redraw: RedrawFunction = other_noise
    inversion_psnr: InversionPsnrFunction | None = None
    inversion_facts: InversionFactsFunction | None = None
    FITS_BY_IMAGE: frozenset[str] = frozenset()
    USUAL_LABELS: bool = False
    PROMPT: str = "-"
    START: str = "-"
    FILTER: str = "-"
    UNSURE: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, module: ModuleType) -> Method:
        """The method that a module is.

        Raises:
            RecipeError: a fact is missing, unknown or of another type, or a function takes other arguments.
        """
        known = {fact.name for fact in fields(cls)} - {"module", "page"}
        public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        stated = {name: value for name, value in public.items() if name in known or name.isupper()}
        stated.pop("TYPE_CHECKING", None)
        try:
            method = cls(module=module.__name__, page=inspect.getdoc(module) or "", **stated)
        except ValidationError as error:
            raise RecipeError(f"method {module.__name__}: {_fault(error)}.") from None
        if ("fit" in stated) != ("fits" in stated):
            raise RecipeError(f"method {module.__name__}: fits and fit go together; declare both or neither.")
        for name, count in ARGUMENTS.items():
            if name in stated and not _takes(stated[name], count):
                raise RecipeError(f"method {module.__name__}: {name} must take {count} arguments.")
        return method


def _takes(function: Callable[..., object], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"declares no {name}"
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} is no fact of a method; a constant of its own begins with an underscore"
    return f"{name}: got {first['input']!r}, {first['msg'][0].lower()}{first['msg'][1:]}"


@cache
def discover_methods() -> Mapping[str, Method]:
    """Name -> every shipped and plugged-in method.

    Raises:
        RecipeError: a module is no method, or two share a name or a slug; none ever replaces another.
    """
    package = importlib.import_module("diffaug_datasets.methods")
    names = [item.name for item in pkgutil.iter_modules(package.__path__) if not item.name.startswith("_")]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    modules += [point.load() for point in entry_points(group=ENTRY_POINTS)]
    methods = [Method.of(module) for module in modules]
    _check_unique("NAME", [(method.NAME, method.module) for method in methods])
    _check_unique("SLUG", [(method.SLUG, method.module) for method in methods])
    return {method.NAME: method for method in methods}


def _check_unique(fact: str, stated: Iterable[tuple[str, str]]) -> None:
    owners: dict[str, str] = {}
    for value, module in stated:
        if (owner := owners.setdefault(value, module)) is not module:
            raise RecipeError(f"methods {owner} and {module} have the same {fact} {value!r}; rename or uninstall one.")


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        RecipeError: there is none; names the known ones.
    """
    methods = discover_methods()
    if name not in methods:
        slugs = {known.SLUG: known.NAME for known in methods.values()}
        near = [slugs.get(word, word) for word in difflib.get_close_matches(name.casefold(), [*methods, *slugs], n=1)]
        guess = f"; did you mean {near[0]!r}?" if near else "."
        raise RecipeError(f"method: got {name!r}, expected one of {', '.join(sorted(methods))}{guess}")
    return methods[name]


def image_key(source_id: str, label: int) -> str:
    """How fits name a real image: `source id/class id`."""
    return f"{source_id}/{label}"


def image_of(key: str) -> tuple[str, int]:
    """The source id and class id of an `image_key`."""
    source_id, _, label = key.partition("/")
    return source_id, int(label)


def branches(row: PlanRow) -> int:
    """U-Net rows of one image and step: with and without the prompt, or one where guidance 1 needs only the first."""
    return 1 if row.guidance_scale == 1 else 2


def new_row(version: int, key: RowKey, spec: PlanSpec, **columns: object) -> PlanRow:
    """A generated row with a hard label: identity, seed and backbone filled in, the rest as given."""
    identity = {"method": key.method, "method_version": version, "row_id": key.row_id, "k": key.k}
    made = {"origin": "generated", "is_synthetic": True, "backbone": spec.backbone, "seed": key.seed("noise")}
    label = {"label": key.class_id, "soft_label": SoftLabel.hard(key.class_id)}
    return PlanRow.model_validate({**identity, **made, **label, **columns})


def local_keys(model: type[BaseModel]) -> set[str]:
    """Keys of a recipe or `Config` that say where data lies: what lies there has a digest, the place does not count."""
    marks = {name: place_of(model, name) for name in model.model_fields}
    return {name for name, mark in marks.items() if mark and not mark.counts}


@dataclass(frozen=True)
class MethodFacts:
    """A method in words. `cost`: U-Net rows of one image at the default settings, without what is learned before."""

    learned: str
    real_images: int
    prompt: str
    start: str
    label: str
    filter: str
    cost: str


def method_facts(method: Method) -> MethodFacts:
    """The facts of a method; `-` where its module declares none."""
    tokens_alone = _default_rank(method.Config) == 0
    learned = [
        "tokens" if need == "concepts" and tokens_alone else words
        for need, words in LEARNED.items()
        if need in method.NEEDS
    ]
    return MethodFacts(
        learned=", ".join(learned) or "-",
        real_images=method.N_SOURCES,
        prompt=method.PROMPT,
        start=method.START,
        label=LABEL_WORDS[method.LABEL_RULE],
        filter=method.FILTER,
        cost=cost(method),
    )


def _default_rank(config: type[BaseModel]) -> int | None:
    """Of the LoRA that a method learns; None where it learns no concepts."""
    concepts = config.model_fields.get("concepts")
    default = concepts.get_default(call_default_factory=True) if concepts else None
    return default.rank if isinstance(default, ConceptConfig) else None


def cost(method: Method) -> str:
    """U-Net rows of one image at the method's default settings: `50`, or `4 to 44` where images differ.

    Guidance takes two rows per step. Where a method has a key without a default, or plans nothing from invented images,
    that is left to `diffaug plan`.
    """
    if any(field.is_required() for field in method.Config.model_fields.values()):
        return ELSEWHERE
    try:
        counts = image_evaluations(method, method.Config())
    except DiffAugError:
        return ELSEWHERE
    if not counts:
        return ELSEWHERE
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def image_evaluations(method: Method, config: MethodConfig) -> Sequence[int]:
    """U-Net rows of each image that a method plans from invented photographs. Raises DiffAugError where it cannot."""
    names = tuple(f"class {i}" for i in range(4))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i in range(4) for j in range(4))
    images = SourceTable("invented", "train", names, names, "", sources)
    pool = PoolTable.of(f"{i:02x}" * 32 for i in range(100))
    spec = PlanSpec(seed=0, backbone="", per_image=5.0, suffixes=("in the sun.",), pool=pool)
    return [method.evaluations(config, row) for row in method.plan(config, images, spec)]


def fallback_text(fallback: str) -> str:
    """What a row's `fallback` means; the value itself where a plug-in method coined it."""
    return FALLBACKS.get(fallback, fallback)

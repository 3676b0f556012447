"""What a method is: a module that declares facts, draws a plan and makes the images of a batch.

A new method is one new file in `methods/` (or a module named by an entry point of the group
`diffaug_datasets.methods`); everything here is found by name at run time.

What a method is, for the table of all methods: facts that its module declares, and what a small plan of it costs.

Input on which a method's published code fails or goes on in silence, and what happens here instead.

`FALLBACKS` says in words what the column `fallback` holds; `CASES` is the whole list, for the docs and for a test.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field

from diffaug_datasets.core.errors import DiffAugError, RecipeError
from diffaug_datasets.core.identity import RowKey, canonical, digest
from diffaug_datasets.core.models import place_of
from diffaug_datasets.core.rows import PlanRow, SoftLabel
from diffaug_datasets.core.sources import Pool, PoolTable, Source, SourceTable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LabelRule = Literal["source", "target", "mixed"]
Guidance = Annotated[float, Field(ge=0, le=1000)]
"""Scale of classifier-free guidance in a method's `Config`: 1 = none; papers stay below 20."""


@dataclass(frozen=True)
class PlanSpec:
    """What a method may know when it plans, besides its own `Config` and the real images.

    `pool`: the images it may retrieve. `held_out`: digest of the test images that the run carries. `size`: (height,
    width) in pixels, None where the backbone's own is meant.
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

    def count(self, images: float) -> int:
        """Rows of a class that has so many real images: `per_class`, else int(per_image * images)."""
        return self.per_class if self.per_class is not None else int(self.per_image * images)


@dataclass(frozen=True)
class FitUnit:
    """Something learned or computed once for many rows, stored in `fits/<kind>-<digest>/`.

    `payload` is canonical JSON of everything that decides its content; its digest is the identity.
    """

    kind: str
    payload: str
    after: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, payload: Mapping[str, Any], after: Sequence[str] = ()) -> "FitUnit":
        """The unit of a JSON-like payload."""
        return cls(kind, canonical(payload), tuple(after))

    @property
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
    """What a fit leaves: safetensors files by name, and numbers for the receipt."""

    tensors: Mapping[str, Mapping[str, "Tensor"]]
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """One image: uint8 RGB [h, w, 3] or float in [0, 1] (NaN allowed: the worker judges it), and its measurements.

    `chosen` overrides planned columns that only generation can know (`strength`, `start_step`). `encoded`: the bytes
    of an image that was found, not made; they are stored as they are. `lacking`: why there is no image, in words.
    """

    pixels: "Tensor"
    measured: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    encoded: bytes | None = None
    lacking: str = ""


def at_source_size(config: BaseModel) -> bool:
    """Whether pictures come back at the size of their sources, however large those are."""
    return bool(getattr(config, "restore_size", False)) and getattr(config, "resize", None) != "crop"


class Context(Protocol):
    """What the worker lends a method while it generates or fits."""

    folder: Path

    @property
    def team(self) -> Any:
        """The processes that share a fit's batches (`models.team.Team`); mostly this one alone."""

    @property
    def backbone(self) -> Any:
        """The diffusion model (`models.backbone.Backbone`)."""

    def image(self, pixels: "Tensor") -> "Image":
        """The 8-bit picture of generated pixels (float [h, w, 3] in [0, 1])."""

    def features(self, images: Iterable["Image"], normalise: bool = True) -> "Tensor":
        """Features [n d] of the method's encoder, seen in batches of the planned shape; unit-norm unless told."""

    def text_features(self, texts: Sequence[str]) -> "Tensor":
        """Unit-norm features [n d] of texts, by the same encoder."""

    def source(self, source_id: str) -> "Image":
        """The real image of that id, RGB."""

    @property
    def pool(self) -> Pool:
        """The images that may be retrieved."""

    def held_out(self) -> Iterator[bytes]:
        """The encoded test images that the run carries: to keep away from, never to use."""

    def fit(self, name: str) -> Mapping[str, "Tensor"]:
        """All tensors of a finished fit."""

    def use_concepts(self, name: str) -> None:
        """Install the tokens and adapters of a finished `concepts` fit into the backbone."""

    def noise(self, rows: Sequence[PlanRow]) -> "Tensor":
        """Standard normal latents [b c h w], row i drawn from row i's seed alone."""

    def report(self, step: int, total: int, loss: float) -> None:
        """Progress of a fit."""


class Method(Protocol):
    """The facts and functions of a method module.

    `PARITY`: how it stands to the publication: begins with matches, differs or reconstruction.
    `LABEL_RULE`: the hard label is the class of the sources, or the target's; `mixed` = a soft label over both.
    A key of `Config` that may name a file or folder has the type `Annotated[str, Place()]` (`core.places`).
    `fits`: what the planned rows rest on and nothing else, whatever the rows' order; each after what it needs.
    `evaluations`: rows of one image through the U-Net, under all steps and branches of guidance, at batch shape 1.
    Optional: `FITS_BY_IMAGE`, kinds of fits whose tensors are named after
    real images and of which a row reads those of its own sources alone; `PROMPT`, `START`, `FILTER`, what it prompts
    with, denoises from and sorts out, in words for the table of methods; `USUAL_LABELS`, whether plans decide on
    Stable Diffusion's labels (1000 timesteps, offset 1), so that a backbone with others is refused.
    """

    NAME: str
    SLUG: str
    VERSION: int
    TITLE: str
    PAPER: str
    PARITY: str
    N_SOURCES: int
    LABEL_RULE: LabelRule
    NEEDS: frozenset[str]
    Config: type[BaseModel]
    Draw: type[BaseModel]

    plan: Callable[[Any, SourceTable, PlanSpec], Iterator[PlanRow]]
    fits: Callable[[Any, SourceTable, PlanSpec, Sequence[PlanRow]], tuple[FitUnit, ...]]
    fit: Callable[[FitUnit, Any, Context], FitFiles]
    generate: Callable[[Sequence[PlanRow], Any, Context], list[Generated]]
    evaluations: Callable[[Any, PlanRow], int]


def branches(row: PlanRow) -> int:
    """U-Net rows of one image and step: with and without the prompt, or one where guidance 1 needs only the first."""
    return 1 if row.guidance_scale == 1 else 2


def new_row(version: int, key: RowKey, spec: PlanSpec, **columns: Any) -> PlanRow:
    """A generated row with a hard label: identity, seed and backbone filled in, the rest as given."""
    identity = {"method": key.method, "method_version": version, "row_id": key.row_id, "k": key.k}
    made = {"origin": "generated", "is_synthetic": True, "backbone": spec.backbone, "seed": key.seed("noise")}
    label = {"label": key.class_id, "soft_label": SoftLabel.hard(key.class_id)}
    return PlanRow(**{**identity, **made, **label, **columns})


def local_keys(model: type[BaseModel]) -> set[str]:
    """Keys of a recipe or `Config` that say where data lies: what lies there has a digest, the place does not count."""
    marks = {name: place_of(model, name) for name in model.model_fields}
    return {name for name, mark in marks.items() if mark and not mark.counts}


def unsure_keys(method: Method) -> Mapping[str, str]:
    """Keys of a method's `Config` whose default or stated range is known from others or from memory alone, and how."""
    keys: Mapping[str, str] = getattr(method, "UNSURE", {})
    return keys


def redraw(method: Method, row: PlanRow, key: RowKey, config: Any) -> PlanRow:
    """The row at a later attempt: the method's own `redraw` if it has one, else another noise seed."""
    own = getattr(method, "redraw", None)
    return own(row, key, config) if own else row.model_copy(update={"seed": key.seed("noise")})


@cache
def discover_methods() -> Mapping[str, Method]:
    """Name -> module of every shipped and plugged-in method.

    Raises:
        RecipeError: two methods share a name or a slug; none ever replaces another.
    """
    package = importlib.import_module("diffaug_datasets.methods")
    names = [f"{package.__name__}.{item.name}" for item in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(name) for name in names]
    modules += [point.load() for point in entry_points(group="diffaug_datasets.methods")]
    methods: list[Method] = [module for module in modules if hasattr(module, "NAME")]
    for fact in ("NAME", "SLUG"):
        _check_unique(methods, fact)
    return {method.NAME: method for method in methods}


def _check_unique(methods: Sequence[Method], fact: Literal["NAME", "SLUG"]) -> None:
    owners: dict[str, Any] = {}
    for method in methods:
        owner = owners.setdefault(getattr(method, fact), method)
        if owner is not method:
            first, second = (getattr(module, "__name__", module.NAME) for module in (owner, method))
            raise RecipeError(
                f"methods {first} and {second} have the same {fact} {getattr(method, fact)!r}; rename or uninstall one."
            )


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        RecipeError: there is none; names the known ones.
    """
    methods = discover_methods()
    if name not in methods:
        raise RecipeError(f"method: got {name!r}, expected one of {', '.join(sorted(methods))}.")
    return methods[name]


LABELS = {
    "source": "hard, the class of its real images",
    "target": "hard, the target class",
    "mixed": "soft, over source and target",
}
ELSEWHERE = "as `diffaug plan` says"
LEARNED = {"concepts": "tokens and LoRA", "inversions": "inversions", "image_embeddings": "a condition an image"}


@dataclass(frozen=True)
class Family:
    """A method in words. `cost`: U-Net rows of one image at the default settings, without what is learned before."""

    learned: str
    real_images: int
    prompt: str
    start: str
    label: str
    filter: str
    cost: str


def family(method: Method) -> Family:
    """The facts of a method; `-` where its module declares none."""
    learned = ", ".join(LEARNED[need] for need in LEARNED if need in method.NEEDS)
    concepts = method.Config.model_fields.get("concepts")
    if concepts and getattr(concepts.get_default(call_default_factory=True), "rank", None) == 0:
        learned = learned.replace(LEARNED["concepts"], "tokens")
    prompt, start, rule = (getattr(method, name, "-") for name in ("PROMPT", "START", "FILTER"))
    return Family(learned or "-", method.N_SOURCES, prompt, start, LABELS[method.LABEL_RULE], rule, cost(method))


def cost(method: Method) -> str:
    """U-Net rows of one image at the method's default settings: `50`, or `4 to 44` where images differ.

    Guidance takes two rows a step. Where a method has a key without a default, or plans nothing from invented images,
    that is left to `diffaug plan`.
    """
    if any(field.is_required() for field in method.Config.model_fields.values()):
        return ELSEWHERE
    config = method.Config()
    try:
        counts = [method.evaluations(config, row) for row in method.plan(config, _images(), _spec())]
    except DiffAugError:
        return ELSEWHERE
    if not counts:
        return ELSEWHERE
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _images() -> SourceTable:
    """Four classes of four images that nobody has."""
    names = tuple(f"class {i}" for i in range(4))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i in range(4) for j in range(4))
    return SourceTable("invented", "train", names, names, "", sources)


def _spec() -> PlanSpec:
    pool = PoolTable.of(f"{i:02x}" * 32 for i in range(100))
    return PlanSpec(seed=0, backbone="", per_image=5.0, suffixes=("in the sun.",), pool=pool)


FALLBACKS: Mapping[str, str] = MappingProxyType(
    {
        "noise_partner": "the class has one image: its partner is noise of the same norm",
        "self_noise": "the class has one image: it is turned towards noise by at most a quarter circle",
        "diff_aug": "the class has one image: it is edited instead of interpolated",
        "coincident_noise_partner": "the two inversions coincide: the partner is noise of the same norm",
        "antipodal_noise_partner": "the two inversions are opposite: the partner is noise of the same norm",
        "ada_skipped": "the target class has no image to compare with: the largest level is kept",
        "source_equals_target": "source and target look the same to the encoder: the largest level is kept",
        "no_partner": "the class has one image: its embedding is varied by noise alone",
    }
)

CASES: Mapping[str, str] = MappingProxyType(
    {
        "one_image": "no pair: `single_image_policy` of diff_ii decides, diffusion_inversion varies by noise alone",
        "no_image": "refused, unless the method makes images of a class from its name or from other classes",
        "coincident_latents": "noise takes the partner's place; the row says so",
        "antipodal_latents": "noise takes the partner's place; the row says so",
        "cosine_above_one": "angles are computed in float64 and held inside [-1, 1]",
        "negative_cosine": "no special case",
        "unequal_norms": "kept as in the paper, an ellipse, unless diff_ii has `norm: geodesic`; norms are measured",
        "not_finite": "tried again with other seeds, then a failed row with its reason",
        "target_without_images": "genie plans it; genie_ada keeps its largest level",
        "source_equals_target": "genie_ada keeps its largest level",
        "tied_jumps": "genie_ada takes the first of the largest jumps",
        "class_names": "classes are ids; a name is only shown and prompted, and clashing names are refused",
        "small_class": "`on_small_class`: every image once and a warning, an error, or images drawn again",
        "odd_images": "turned upright and converted to RGB; an unreadable one is refused, or fails its rows alone",
        "dotted_stems": "images are known by the digest of their bytes, never by their file's name",
        "emptied_class": "a filter's `min_keep` keeps the best; without it, the class is named in a warning",
    }
)


def fallback_text(fallback: str) -> str:
    """What a row's `fallback` means; the value itself where a plug-in method coined it."""
    return FALLBACKS.get(fallback, fallback)

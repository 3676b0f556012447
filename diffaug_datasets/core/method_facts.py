"""A method in words, for the table of all methods and its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import BaseModel

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import Method, MethodConfig, PlanSpec
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable

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


@dataclass(frozen=True)
class MethodFacts:
    """A method in words. `cost`: U-Net rows of one image at the default settings, without what is learned before it."""

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
        counts, calls = image_evaluations(method, method.Config())
    except DiffAugError:
        return ELSEWHERE
    if not counts:
        return ELSEWHERE
    if calls and not any(counts):
        return f"{calls / len(counts):g} (in fits)"
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def image_evaluations(method: Method, config: MethodConfig) -> tuple[Sequence[int], int]:
    """U-Net rows of each image that a method plans from invented photographs, and those of the fits before.

    Raises:
        DiffAugError: it plans nothing from these.
    """
    names = tuple(f"class {i}" for i in range(4))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i in range(4) for j in range(4))
    images = SourceTable("invented", "train", names, names, "", sources)
    pool = PoolTable.of(f"{i:02x}" * 32 for i in range(100))
    spec = PlanSpec(seed=0, backbone="", per_image=5.0, suffixes=("in the sun.",), pool=pool)
    rows = list(method.plan(config, images, spec))
    counts = [method.evaluations(config, row) for row in rows]
    return counts, 0 if any(counts) else sum(unit.calls for unit in method.fits(config, images, spec, rows))


def fallback_text(fallback: str) -> str:
    """What a row's `fallback` means; the value itself where a plug-in method coined it."""
    return FALLBACKS.get(fallback, fallback)

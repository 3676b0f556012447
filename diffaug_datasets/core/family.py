"""What a method is, for the table of all methods: facts that its module declares, and what a small plan of it costs."""

from dataclasses import dataclass

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import Method, PlanSpec
from diffaug_datasets.core.pools import PoolTable
from diffaug_datasets.core.sources import Source, SourceTable

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

"""A recipe for images of one's own, suggested from what they are: every key with a line on why.

The number of images decides method and counts: few per class, a long tail, or plenty. What this machine has decides the
diffusion model: Stable Diffusion 1.5 needs a GPU; without one only the packaged model runs, which has seen small
pictures of clothes and nothing else, so that it makes a trial of the way and no training images.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import DEFAULT_ID, ORACLE, ORACLE_PACKAGE, TINY, BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.inspect import NO_TEST, Inspection
from diffaug_datasets.planning.prepare import check_models
from diffaug_datasets.planning.price import image_seconds
from diffaug_datasets.sources.real import OWN_IMAGES, discover_builders

FEW = 20  # images of the middle class up to which a set counts as few-shot, as `targets: few` does
TAIL = 10  # the largest class, in times of the smallest, from which on a set has a long tail
LEAST_GPU_BYTES = 5 << 30  # for Stable Diffusion 1.5 in float16 at 512 pixels, a batch of 2
BATCHES = ((20 << 30, 8), (10 << 30, 4), (0, 2))  # bytes of GPU memory from which on so many images fit at once
TRIAL_IMAGES = 2  # per class, of a model that cannot show the classes
TAIL_IMAGES = (20, 100)  # per class of a long tail, at least and at most
SMALL_BATCH = 8
SHARD_SECONDS = 60  # of work that a stop may cost
GENERIC = frozenset(  # plurals that say no more than that there are pictures
    (
        *("photos", "images", "pictures", "pics", "datasets", "samples", "files", "classes", "downloads", "species"),
        *("things", "series", "frames", "crops", "folders"),
    )
)

GIVEN = "chosen by you, when `diffaug new` was called"

Kind = Literal["few", "tail", "plenty"]


@dataclass(frozen=True)
class Machine:
    """What images can be made with here. `gpu`: its name, or ''; `gpu_bytes`: its memory.

    `has_encoder`: whether the weights of the extra `oracle` are installed, which tell photographs apart.
    """

    gpu: str = ""
    gpu_bytes: int = 0
    has_encoder: bool = False

    @property
    def has_room(self) -> bool:
        """Whether Stable Diffusion 1.5 runs here in a time that anybody waits for."""
        return self.gpu_bytes >= LEAST_GPU_BYTES


@dataclass(frozen=True)
class Suggested:
    """Keys of a recipe in the order of its file, and for some of them one line on why. `kind`: by the counts."""

    content: Mapping[str, object]
    reasons: Mapping[str, str]
    kind: Kind


def this_machine() -> Machine:
    """The first GPU that torch sees; none where torch is not installed."""
    has_encoder = find_spec(ORACLE_PACKAGE) is not None
    if find_spec("torch") is None:
        return Machine(has_encoder=has_encoder)
    import torch

    if not torch.cuda.is_available():
        return Machine(has_encoder=has_encoder)
    return Machine(torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory, has_encoder)


def suggest(found: Inspection, machine: Machine, backbone: str | None = None) -> Suggested:
    """Every key that a recipe for these images needs. `backbone`: a folder or Hub id that somebody chose."""
    kind = kind_of(list(found.counts.values()))
    metaclass = guess_metaclass(found.name, found.phrases)
    spec, model_why = _backbone(machine, backbone)
    method, config, method_why = _method(found, kind, machine, spec, backbone)
    counts, count_why = _counts(found, kind, spec)
    total = sum(found.counts.values())
    content: dict[str, object] = {
        "builder": OWN_IMAGES,
        "source": found.source,
        "name": config_stem(found.name),
        "title": title_of(found.name),
        "licence": found.licence,
        "citation": None,
        "homepage": None,
        "metaclass": metaclass,
        "classes": {label: phrase.text for label, phrase in found.phrases.items()},
        "protocol": "full",
        "method": method,
        **({"config": config} if config else {}),
        **counts,
        "backbone": spec,
        "batch_size": _batch_size(machine, spec),
        "seed": 0,
        **({"scores": {"encoder": ORACLE}} if machine.has_encoder and spec["id"] != TINY else {}),
    }
    reasons = {
        "name": "config names begin with it",
        "title": "for people: card, report",
        "licence": _licence_why(found),
        "citation": "BibTeX or a line, if there is something to cite",
        "homepage": "an address, if there is one",
        "metaclass": "what all classes are, from the folder's name; prompts say it"
        if metaclass
        else "what all classes are, if that is one word (bird); prompts say it",
        "protocol": f"all {total:,} training images; 5shot, lt100 or 10pct would draw a part",
        "method": method_why,
        "backbone": model_why,
        "batch_size": "images at once, part of the plan: fix it before a long run",
        next(iter(counts)): count_why,
    }
    if found.test_counts is None:
        reasons["source"] = NO_TEST
    if "scores" in content:
        reasons["scores"] = "says how often images show their class, by weights that are installed here"
    return Suggested({**content, **_cleaning(found, reasons)}, reasons, kind)


def shard_rows(recipe: Recipe, machine: Machine) -> int | None:
    """Images per shard so that one takes about a minute here: whole batches, at least one; None where the default does.

    A shard that is stopped is made again, so its time is what a stop costs.
    """
    seconds = image_seconds(recipe, on_gpu=bool(machine.gpu))
    usual = Recipe.model_fields["shard_rows"].default
    if seconds is None or seconds * usual <= SHARD_SECONDS:
        return None
    return max(1, int(SHARD_SECONDS / seconds) // recipe.batch_size) * recipe.batch_size


def kind_of(counts: Sequence[int]) -> Kind:
    """Few images per class, a long tail, or plenty."""
    if max(counts) > FEW and max(counts) >= TAIL * min(counts):
        return "tail"
    return "few" if median(counts) <= FEW else "plenty"


def config_stem(name: str) -> str:
    """What config names begin with: letters, digits and underscores, and no dataset of this package.

    >>> config_stem("My photos (2024)"), config_stem("Löwenzahn & Co"), config_stem("花")
    ('my_photos_2024', 'lowenzahn_co', 'photos')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    stem = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40].strip("_") or "photos"
    return f"my_{stem}" if stem in discover_builders() else stem


def title_of(name: str) -> str:
    """ "my_photos" -> "My photos"."""
    words = " ".join(re.sub(r"[_\s]+", " ", name).split())[:200] or "Photographs"
    return words[:1].upper() + words[1:]


def guess_metaclass(name: str, phrases: Mapping[str, object]) -> str:
    """ "birds20" -> "bird", where a name is one plural and says more than that these are pictures; else ''."""
    word = re.sub(r"[\W\d_]+$", "", name.casefold())
    if not re.fullmatch(r"[a-z]{3,20}s", word) or word in GENERIC or word in phrases or word.endswith("ss"):
        return ""
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-2] if re.search(r"(?:ch|sh|x|ss|z)es$", word) else word[:-1]


def _licence_why(found: Inspection) -> str:
    if found.licence:
        return "as the images state it"
    return "the Hub's id, such as cc-by-4.0, where the images are yours to give: needed to publish them"


def _backbone(machine: Machine, given: str | None) -> tuple[dict[str, object], str]:
    dtype = "float16" if machine.has_room else "float32"
    if given is not None:
        return {"id": given, "dtype": dtype}, GIVEN
    if machine.has_room:
        why = f"this machine has a {machine.gpu} with {machine.gpu_bytes / 2**30:.0f} GiB"
        return {"id": DEFAULT_ID, "dtype": dtype, "height": 512, "width": 512}, why
    has = f"a {machine.gpu} with too little memory" if machine.gpu else "no GPU that torch sees"
    return {"id": TINY, "dtype": dtype}, (
        f"a trial only: this machine has {has}, and this packaged model knows 32-pixel clothes, not your classes; on a "
        f"GPU: {{id: {DEFAULT_ID}, dtype: float16, height: 512, width: 512}}"
    )


def _method(
    found: Inspection, kind: Kind, machine: Machine, spec: Mapping[str, object], given: str | None
) -> tuple[str, dict[str, object], str]:
    """The first method that suits the counts and that the model can run."""
    smallest, largest = min(found.counts.values()), max(found.counts.values())
    middle = round(median(found.counts.values()))
    from_photos = "begins with a photo of the class itself, so its images stay near to it"
    wanted: list[tuple[str, dict[str, object], str]] = []
    if kind == "few":
        if machine.has_room and smallest > 1 and given is None:
            why = f"few images ({middle} in the middle class): learns each class from its own; takes hours"
            wanted.append(("diff_ii", {"split_ratio": 0.3 if middle < 8 else 0.1}, why))
        wanted.append(("img2img", {"strength": 0.5}, f"few images ({middle} in the middle class): {from_photos}"))
    elif kind == "tail":
        if not found.nameless:
            why = f"a long tail ({smallest} to {largest} per class): small classes get images made from those of others"
            wanted.append(("genie", {"ratio": 0.8}, why))
        wanted.append(("img2img", {"strength": 0.7}, f"a long tail ({smallest} to {largest} per class): {from_photos}"))
    else:
        why = f"plenty ({middle} in the middle class): {from_photos}"
        wanted.append(("img2img", {"strength": 0.5}, why))
    for method, config, why in wanted[:-1]:
        try:
            check_models(Recipe.from_dict({"builder": OWN_IMAGES, "method": method, "backbone": spec}))
        except BackboneError:
            continue
        return method, config, why
    return wanted[-1]


def _counts(found: Inspection, kind: Kind, spec: Mapping[str, object]) -> tuple[dict[str, object], str]:
    """`per_class` or `per_image`, and why."""
    if spec["id"] == TINY:
        return {"per_class": TRIAL_IMAGES}, "a trial; raise it with another backbone"
    if kind == "few":
        return {"per_image": 5}, "synthetic images per real one, as papers on few images have it"
    if kind == "tail":
        count = min(max(TAIL_IMAGES[0], round(median(found.counts.values()))), TAIL_IMAGES[1])
        return {"per_class": count}, "synthetic images per class, the same for small and large ones"
    return {"per_image": 1}, "synthetic images per real one; plenty of real ones need few beside them"


def _batch_size(machine: Machine, spec: Mapping[str, object]) -> int:
    if not machine.has_room or spec["id"] == TINY:
        return SMALL_BATCH
    return next(size for least, size in BATCHES if machine.gpu_bytes >= least)


def _cleaning(found: Inspection, reasons: dict[str, str]) -> dict[str, object]:
    """Keys that leave out what cannot be used, each with its reason in `reasons`."""
    keys: dict[str, object] = {}
    if found.real.skipped:
        keys["on_bad_image"] = "skip"
        count = len(found.real.skipped)
        reasons["on_bad_image"] = (
            "1 image cannot be decoded and is left out"
            if count == 1
            else f"{count:,} images cannot be decoded and are left out"
        )
    if found.partial:
        keys["partial"] = True
        reasons["partial"] = "leaves out classes without an image that can be used, and links"
    if found.doubled:
        keys["without"] = list(found.doubled)
        reasons["without"] = (
            f"nothing is drawn from these {len(found.doubled):,} training images: the same bytes are in the test "
            "split or in another class"
        )
    return keys


def backbone_id(given: str | None) -> str | None:
    """A backbone as a person names it here: a folder's absolute path, or the id as it is."""
    if given is None:
        return None
    return str(BackboneSpec.model_validate({"id": given}, context={"folder": Path()}).id)

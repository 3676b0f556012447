"""What a plan will cost, before anything is spent: rows, bytes, network evaluations, time, memory.

Counts follow from the plan alone. Bytes and seconds are estimates, from the size of the network, as its files state it
without torch, and from the headers of a few real images.
"""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from diffaug_datasets.core import memory
from diffaug_datasets.core.errors import DiffAugError, RunError
from diffaug_datasets.core.family import discover_families
from diffaug_datasets.core.images import PIXEL_BYTES, RGB_BYTES, pixels_of, reading_bytes
from diffaug_datasets.core.method_facts import image_evaluations
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.plan import Plan, of_split
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.families.parts.diffusers_folders import read_header_of
from diffaug_datasets.models.model_folder import check_backbone
from diffaug_datasets.numerics.inverters import is_paired
from diffaug_datasets.planning.prepare import Prepared
from diffaug_datasets.planning.store_requests import store_requests
from diffaug_datasets.run.context import FIT_BYTES, SOURCE_BYTES
from diffaug_datasets.run.shards import BATCH_BYTES, BATCH_ROWS
from diffaug_datasets.run.work import fit_evaluations, fit_work, shard_evaluations

FLOP_PER_PARAMETER = 0.23  # and latent position: 860M x 64 x 64 gives the 0.8 TFLOP of one Stable Diffusion 1.5 row
CPU_FLOPS = 20e9  # of one worker thread
ANCHOR = 31.4  # guided steps a second: Stable Diffusion 1.5 at 512 pixels, batch 1, A100, SDPA, a published figure
GPU_FLOPS = ANCHOR * 2 * FLOP_PER_PARAMETER * 860_000_000 * 64 * 64  # of that device: two rows of 0.8 TFLOP a step
OVERHEAD = 1.5e-3  # seconds per row and evaluation on a CPU that small networks spend outside arithmetic
ROW_BYTES = 3_000  # of the columns beside the image
ACTIVATION_BYTES = 4_096  # per pixel and batch row, float32
LATENT_BYTES = 16  # per latent position, float32
LIBRARY_BYTES = 600_000_000  # of a worker that holds no model yet
PLANNING_BYTES = 250_000_000  # of a process that plans, beside the images
BATCH_COPIES = 3  # of a record batch, while it is written
SAMPLE = 32  # real images whose headers are read, spread evenly
LARGEST = 8  # and those of most bytes
SPARE = 1.1
ASSUMPTION = (
    f"assumed, not measured: {ANCHOR} guided steps a second of Stable Diffusion 1.5 at 512 pixels (A100, batch 1, "
    "SDPA, a published figure), other networks by their arithmetic"
)


@dataclass(frozen=True)
class Network:
    """A backbone's size: parameters of the U-Net and of all parts, pixels per latent position, trained latent side.

    `measured` is False where the weights are not on this machine and Stable Diffusion 1.x is assumed.
    """

    parameters: int = 860_000_000
    total: int = 1_066_000_000
    factor: int = 8
    side: int = 64
    measured: bool = False


@dataclass(frozen=True)
class Price:
    """The cost of a plan. Bytes and seconds are estimates; everything else is counted.

    Bytes: `bytes_needed` and `bytes_free` of the run folder's disk, `memory_per_worker` and `memory_to_plan` of one
    process, `memory_free` of this machine (None where it does not say). `seconds_cpu` is with `workers` of `threads`
    threads here, `seconds_gpu` (and `gpu_hours`) with one device, see `assumption`. `store_writes`, `store_listings`
    and `store_reads`: requests where the run lies in an object store, see `store_requests`. `weights_here`: the network
    was measured, not assumed.

    `evaluations` are rows that the U-Net computes, as receipts count them where nothing is made twice: also the `idle`
    ones, which fill a short batch up to the planned shape or wait in it for a later start step. A training step counts
    its images once. Pictures of a training, for the report, are drawn beside it and count nowhere.
    """

    name: str
    plan_id: str
    images_per_class: dict[str, int]
    real: int
    test: int
    rows: int
    shards: int
    batch_size: int
    fits: dict[str, int]
    bytes_needed: int
    bytes_free: int
    memory_per_worker: int
    memory_to_plan: int
    memory_free: int | None
    evaluations: int
    idle: int
    fit_evaluations: int
    flop_per_evaluation: float
    weights_here: bool
    workers: int
    threads: int
    seconds_cpu: float
    seconds_gpu: float
    gpu_hours: float
    store_writes: int
    store_listings: int
    store_reads: int
    assumption: str
    warnings: tuple[str, ...]

    def check(self, folder: Path) -> None:
        """Refuse a run that the disk of its folder has no room for.

        Raises:
            RunError: the disk lacks room; says how much is needed and free.
        """
        if self.bytes_needed > self.bytes_free:
            raise RunError(
                f"{folder}: the run needs about {decimal(self.bytes_needed)}, the disk has "
                f"{decimal(self.bytes_free)} free; free space, plan fewer images, or give --run on another disk."
            )


@dataclass(frozen=True)
class Photos:
    """The real images of a plan: how many, their encoded bytes, and pixels, known from a few of them.

    `encoded`: bytes of all; `largest`: of the largest; `pixels`: of all, estimated; `most_pixels`: of the largest seen.
    """

    count: int
    encoded: int
    largest: int
    pixels: int
    most_pixels: int

    @classmethod
    def of(cls, prepared: Prepared) -> "Photos":
        """Pixels as the headers of a few state them: some spread evenly, and those of most bytes."""
        places = prepared.real_places()
        sizes = [prepared.real.table(split).sources[index].size for split, index in places]
        largest = sorted(range(len(places)), key=lambda i: -sizes[i])[:LARGEST]
        spread = range(0, len(places), max(1, len(places) // SAMPLE))[:SAMPLE]
        pixels = {i: pixels_of(prepared.real.read(*places[i])) for i in {*spread, *largest}}
        mean = sum(pixels[i] for i in spread) / max(1, len(spread))
        most = max(pixels.values(), default=0)
        return cls(len(places), sum(sizes), max(sizes, default=0), int(mean * len(places)), most)


def price(prepared: Prepared, folder: Path, photos: Photos | None = None) -> Price:
    """What the plan of a recipe will cost in a run folder (which need not exist). `photos`: of images not here."""
    recipe, plan = prepared.recipe, prepared.plan
    network, photos = network_of(recipe.backbone), photos or Photos.of(prepared)
    height, width = _size(recipe.backbone, network)
    flop = _flop(recipe.backbone, network)
    evaluations, idle = map(sum, zip(*shard_evaluations(recipe, plan).values(), strict=True))
    workers = max(1, min(cores() // recipe.threads, len(plan.shards())))
    of_worker, to_plan = _memory_of_worker(prepared, network, height * width, photos), _memory_to_plan(photos)
    kinds, per_class = list(dict.fromkeys(unit.kind for unit in plan.fits)), plan.images_per_class()
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    warnings = (*plan.header.warnings, *prepared.real.survey.warnings, *_memory_warnings(of_worker * workers, to_plan))
    seconds_gpu = (evaluations + sum(map(fit_work, plan.fits))) * flop / GPU_FLOPS
    asked = store_requests(recipe, plan, seconds_gpu)
    return Price(
        name=plan.header.name,
        plan_id=plan.id,
        images_per_class={name: per_class[name] for name in plan.header.class_names},
        real=len(of_split(plan.real, "train")),
        test=len(of_split(plan.real, "test")),
        rows=len(plan.rows),
        shards=len(plan.shards()),
        batch_size=recipe.batch_size,
        fits={kind: sum(unit.kind == kind for unit in plan.fits) for kind in kinds},
        bytes_needed=_bytes_needed(prepared, height * width, photos, workers),
        bytes_free=shutil.disk_usage(there).free,
        memory_per_worker=of_worker,
        memory_to_plan=to_plan,
        memory_free=memory_free(),
        evaluations=evaluations,
        idle=idle,
        fit_evaluations=sum(map(fit_evaluations, plan.fits)),
        flop_per_evaluation=flop,
        weights_here=network.measured,
        workers=workers,
        threads=recipe.threads,
        seconds_cpu=_seconds(plan, evaluations, workers, flop / (CPU_FLOPS * recipe.threads) + OVERHEAD),
        seconds_gpu=seconds_gpu,
        gpu_hours=round(seconds_gpu / 3600, 3),
        store_writes=asked.writes,
        store_listings=asked.listings,
        store_reads=asked.reads,
        assumption=ASSUMPTION,
        warnings=warnings,
    )


def network_of(spec: BackboneSpec) -> Network:
    """The size of a backbone, from its files' headers where they are on this machine."""
    folder = find_backbone(spec).folder
    if folder is None:
        return Network()
    facts = check_backbone(spec.model_copy(update={"height": None, "width": None}))
    if facts is None or facts.latent_shape is None or facts.height is None:
        return Network()
    parts = discover_families()[facts.family].PARTS
    weights = {part: read_header_of(folder, part, stem, spec, False) for part, stem in parts.items()}
    counts = {part: sum(math.prod(e.shape) for e in (tensors or {}).values()) for part, tensors in weights.items()}
    if not all(counts.values()):
        return Network()
    side = facts.latent_shape[1]
    return Network(counts[next(iter(parts))], sum(counts.values()), facts.height // side, side, measured=True)


def image_seconds(recipe: Recipe, on_gpu: bool) -> float | None:
    """About how long one worker takes for one image; None where the method does not say what an image takes."""
    try:
        counts, fits = image_evaluations(recipe.method_definition, recipe.method_config)
    except DiffAugError:
        return None
    flop, each = _flop(recipe.backbone, network_of(recipe.backbone)), (sum(counts) + fits) / max(1, len(counts))
    return each * (flop / GPU_FLOPS if on_gpu else flop / (CPU_FLOPS * recipe.threads) + OVERHEAD) or None


def _size(spec: BackboneSpec, network: Network) -> tuple[int, int]:
    """Height and width of the images that it makes, in pixels."""
    trained = network.side * network.factor
    return spec.height or trained, spec.width or trained


def _flop(spec: BackboneSpec, network: Network) -> float:
    """Of one evaluation of one image."""
    height, width = _size(spec, network)
    return FLOP_PER_PARAMETER * network.parameters * (height // network.factor) * (width // network.factor)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_free() -> int | None:
    """Bytes of memory that are available now; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None


def _seconds(plan: Plan, evaluations: int, workers: int, each: float) -> float:
    """Stage after stage; a stage of one unit keeps one worker busy, however many there are. `each`: per evaluation."""
    stages: dict[str, list[int]] = {}
    for unit in plan.fits:
        stages.setdefault(unit.kind, []).append(fit_work(unit))
    fits = sum(sum(work) * each / min(workers, len(work)) for work in stages.values())
    return fits + evaluations * each / workers


def _memory_warnings(of_workers: int, to_plan: int) -> Iterator[str]:
    free = memory_free()
    if free is not None and of_workers > free:
        needed = decimal(of_workers)
        yield f"memory: CPU workers need about {needed}, {decimal(free)} is free here; use fewer, or a GPU."
    if free is not None and to_plan > free:
        yield f"memory: planning needs about {decimal(to_plan)}, {decimal(free)} is free here; use another machine."


def _memory_of_worker(prepared: Prepared, network: Network, pixels: int, photos: Photos) -> int:
    """Bytes of libraries, weights, a batch in the network, decoded sources, inversions, pictures of two batches, and of
    rows on their way to the disk. `pixels`: of an image that the network makes.
    """
    recipe = prepared.recipe
    width = 4 if recipe.backbone.dtype == "float32" else 2
    model = network.total * width + recipe.batch_size * pixels * ACTIVATION_BYTES * width // 4
    sources = min(SOURCE_BYTES, RGB_BYTES * photos.pixels) + reading_bytes(photos.largest, photos.most_pixels)
    units = [unit.content for unit in prepared.plan.fits if unit.kind == "inversions"]
    inverted = sum(len(unit["images"]) * (1 + (is_paired(unit.get("inverter", "ddim")))) for unit in units)
    fits = min(FIT_BYTES, inverted * LATENT_BYTES * pixels // network.factor**2)
    made = photos.most_pixels if recipe.method_config.requirements.at_source_size else pixels
    encoded = made * PIXEL_BYTES[recipe.image_format]
    pictures = 2 * recipe.batch_size * (3 * made + encoded) + RGB_BYTES * 2 * made
    written = BATCH_COPIES * max(encoded, min(BATCH_BYTES, BATCH_ROWS * encoded))
    return int(LIBRARY_BYTES + model + sources + fits + pictures + written)


def _memory_to_plan(photos: Photos) -> int:
    window = min(memory.WINDOW_BYTES, reading_bytes(photos.encoded, photos.pixels))
    read = max(window, reading_bytes(photos.largest, photos.most_pixels))
    written = BATCH_COPIES * min(photos.encoded, max(BATCH_BYTES, photos.largest))
    return PLANNING_BYTES + read + photos.largest + written


def _bytes_needed(prepared: Prepared, pixels: int, photos: Photos, workers: int) -> int:
    """Of all rows, twice where filters write what is kept anew, and of the shards that workers have in hand."""
    recipe, rows = prepared.recipe, len(prepared.plan.rows)
    made = photos.pixels / max(1, photos.count) if recipe.method_config.requirements.at_source_size else pixels
    row = made * PIXEL_BYTES[recipe.image_format] + ROW_BYTES
    kept_twice = 2 if recipe.filters else 1
    in_hand = workers * max(len(shard.rows) for shard in prepared.plan.shards())
    real = photos.encoded + photos.count * ROW_BYTES
    return int(SPARE * ((rows * kept_twice + in_hand) * row + real))

"""What a plan will cost, before anything is spent: rows, bytes, network evaluations, time, memory. Needs no torch."""

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaug_datasets.core import memory as bounded
from diffaug_datasets.core.errors import BackboneError, RunError
from diffaug_datasets.core.images import PIXEL_BYTES, RGB_BYTES, pixels_of, reading_bytes
from diffaug_datasets.core.method import FitUnit, at_source_size
from diffaug_datasets.core.models import BackboneSpec, backbone_revision, hub_cache, local_folder, resolve
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.prepare import Prepared, real_places
from diffaug_datasets.run.generation import FIT_BYTES, SOURCE_BYTES
from diffaug_datasets.run.shards import BATCH_BYTES, BATCH_ROWS

FLOP_A_PARAMETER = 0.23  # and latent position: 860M x 64 x 64 gives the 0.8 TFLOP of one Stable Diffusion 1.5 row
CPU_FLOPS = 20e9  # a worker thread
GPU_FLOPS = 80e12  # one device
OVERHEAD = 1.5e-3  # seconds of a row and evaluation on a CPU that small networks spend outside arithmetic
TRAINING = 3  # a step back costs two steps forward
ROW_BYTES = 3_000  # of the columns beside the image
ACTIVATION_BYTES = 4_096  # a pixel and batch row, float32
LATENT_BYTES = 16  # a latent position, float32
LIBRARY_BYTES = 600_000_000  # of a worker that holds no model yet
PLANNING_BYTES = 250_000_000  # of a process that plans, beside the images
BATCH_COPIES = 3  # of a record batch, while it is written
SAMPLE = 32
LARGEST = 8
SPARE = 1.1


@dataclass(frozen=True)
class Network:
    """A backbone's size: parameters of the U-Net and of all parts, pixels a latent position, trained latent side.

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

    `evaluations` are rows that the U-Net computes, as receipts count them where nothing is made twice: also the `idle`
    ones, which fill a short batch up to the planned shape or wait in it for a later start step. A training step counts
    its images once. Pictures of a training, for the report, are drawn beside it and count nowhere.
    """

    name: str
    plan_id: str
    images_a_class: dict[str, int]
    real: int
    test: int
    rows: int
    shards: int
    batch_size: int
    fits: dict[str, int]
    bytes_needed: int
    bytes_free: int
    memory_a_worker: int
    memory_to_plan: int
    memory_free: int | None
    evaluations: int
    idle: int
    fit_evaluations: int
    flop_a_evaluation: float
    weights_here: bool
    workers: int
    threads: int
    seconds_cpu: float
    seconds_gpu: float
    warnings: tuple[str, ...]

    def check(self, folder: Path) -> None:
        """Raises RunError where the disk lacks room."""
        if self.bytes_needed > self.bytes_free:
            raise RunError(
                f"{folder}: the run needs about {size(self.bytes_needed)}, the disk has {size(self.bytes_free)} free; "
                "free space, plan fewer images, or give --run on another disk."
            )


def size(count: float) -> str:
    """Bytes for people: `1.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def price(prepared: Prepared, folder: Path) -> Price:
    """What the plan of a recipe will cost in a run folder (which need not exist)."""
    recipe, plan = prepared.recipe, prepared.plan
    network = network_of(recipe.backbone)
    height, width = _pixels(recipe.backbone, network)
    flop = FLOP_A_PARAMETER * network.parameters * (height // network.factor) * (width // network.factor)
    evaluations, idle = _evaluations(recipe, plan)
    work = evaluations + sum(map(_fit_work, plan.fits))
    workers = cpu_workers(recipe, plan)
    photos = _photos(prepared)
    memory, to_plan = _memory_a_worker(prepared, network, height * width, photos), _memory_to_plan(photos)
    return Price(
        name=plan.header.name,
        plan_id=plan.id,
        images_a_class={name: plan.images_a_class()[name] for name in plan.header.class_names},
        real=sum(row.split == "train" for row in plan.real),
        test=sum(row.split == "test" for row in plan.real),
        rows=len(plan.rows),
        shards=len(plan.shards()),
        batch_size=recipe.batch_size,
        fits={kind: sum(unit.kind == kind for unit in plan.fits) for kind in dict.fromkeys(u.kind for u in plan.fits)},
        bytes_needed=_bytes_needed(prepared, height * width, photos, workers),
        bytes_free=shutil.disk_usage(existing(folder)).free,
        memory_a_worker=memory,
        memory_to_plan=to_plan,
        memory_free=memory_free(),
        evaluations=evaluations,
        idle=idle,
        fit_evaluations=sum(map(_fit_evaluations, plan.fits)),
        flop_a_evaluation=flop,
        weights_here=network.measured,
        workers=workers,
        threads=recipe.threads,
        seconds_cpu=_seconds(plan, evaluations, workers, flop / (CPU_FLOPS * recipe.threads) + OVERHEAD),
        seconds_gpu=work * flop / GPU_FLOPS,
        warnings=(
            plan.header.warnings + prepared.real.survey.warnings + tuple(_memory_warning(memory * workers, to_plan))
        ),
    )


def _seconds(plan: Plan, evaluations: int, workers: int, each: float) -> float:
    """Stage after stage; a stage of one unit keeps one worker busy, however many there are."""
    kinds = {kind: [u for u in plan.fits if u.kind == kind] for kind in dict.fromkeys(u.kind for u in plan.fits)}
    fits = sum(sum(map(_fit_work, units)) * each / min(workers, len(units)) for units in kinds.values())
    return fits + evaluations * each / workers


def _evaluations(recipe: Recipe, plan: Plan) -> tuple[int, int]:
    """U-Net rows of all shards, and how many of them are idle: every batch has its planned shape, and its longest row
    decides how often the network is called.
    """
    config, size = recipe.method_config, recipe.batch_size
    batches = [batch for shard in plan.shards() for batch in shard.batches(size)]
    costs = [[recipe.module.evaluations(config, row) for row in batch if row] for batch in batches]
    computed = sum(size * max(rows) for rows in costs)
    return computed, computed - sum(map(sum, costs))


def _fit_evaluations(unit: FitUnit) -> int:
    """U-Net rows of a fit, as its payload tells: training steps times batch, or steps times images; else none."""
    content: dict[str, Any] = unit.content
    if training := _training(unit):
        return int(training["steps"]) * int(training.get("batch", 1))
    return int(content.get("steps", 0)) * len(content.get("images", ()))


def _fit_work(unit: FitUnit) -> int:
    """What a fit takes, in evaluations without gradients."""
    return _fit_evaluations(unit) * (TRAINING if _training(unit) else 1)


def _training(unit: FitUnit) -> dict[str, Any] | None:
    """The settings of a fit that is trained."""
    config = unit.content.get("config")
    return config if isinstance(config, dict) and "steps" in config else None


def cpu_workers(recipe: Recipe, plan: Plan) -> int:
    """Workers that this machine's cores serve at once, never more than shards."""
    return max(1, min(cores() // recipe.threads, len(plan.shards())))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))


def memory_free() -> int | None:
    """Bytes of memory that are available now; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _memory_warning(of_workers: int, to_plan: int) -> Iterator[str]:
    free = memory_free()
    if free is not None and of_workers > free:
        yield f"memory: CPU workers need about {size(of_workers)}, {size(free)} is free here; use fewer, or a GPU."
    if free is not None and to_plan > free:
        yield f"memory: planning needs about {size(to_plan)}, {size(free)} is free here; use another machine."


@dataclass(frozen=True)
class Photos:
    """The real images of a plan: how many, their encoded bytes, and pixels of all and of the largest, from a few."""

    count: int
    encoded: int
    largest: int
    pixels: int
    most_pixels: int


def _photos(prepared: Prepared) -> Photos:
    """Pixels as the headers of a few state them: some spread evenly, and those of most bytes."""
    places = list(real_places(prepared).values())
    sizes = [prepared.real.table(split).sources[index].size for split, index in places]
    largest = sorted(range(len(places)), key=lambda i: -sizes[i])[:LARGEST]
    spread = range(0, len(places), max(1, len(places) // SAMPLE))[:SAMPLE]
    pixels = {i: pixels_of(prepared.real.read(*places[i])) for i in {*spread, *largest}}
    mean = sum(pixels[i] for i in spread) / max(1, len(spread))
    most = max(pixels.values(), default=0)
    return Photos(len(places), sum(sizes), max(sizes, default=0), int(mean * len(places)), most)


def _memory_a_worker(prepared: Prepared, network: Network, pixels: int, photos: Photos) -> int:
    """Libraries, weights, a batch in the network, decoded sources, inversions, pictures of two batches, rows on their
    way to the disk.
    """
    recipe = prepared.recipe
    width = 4 if recipe.backbone.dtype == "float32" else 2
    model = network.total * width + recipe.batch_size * pixels * ACTIVATION_BYTES * width // 4
    sources = min(SOURCE_BYTES, RGB_BYTES * photos.pixels) + reading_bytes(photos.largest, photos.most_pixels)
    inverted = sum(len(unit.content["images"]) for unit in prepared.plan.fits if unit.kind == "inversions")
    fits = min(FIT_BYTES, inverted * LATENT_BYTES * pixels // network.factor**2)
    made = photos.most_pixels if at_source_size(recipe.method_config) else pixels
    encoded = made * PIXEL_BYTES[recipe.image_format]
    pictures = 2 * recipe.batch_size * (3 * made + encoded) + RGB_BYTES * 2 * made
    written = BATCH_COPIES * max(encoded, min(BATCH_BYTES, BATCH_ROWS * encoded))
    return int(LIBRARY_BYTES + model + sources + fits + pictures + written)


def _memory_to_plan(photos: Photos) -> int:
    window = min(bounded.WINDOW_BYTES, reading_bytes(photos.encoded, photos.pixels))
    read = max(window, reading_bytes(photos.largest, photos.most_pixels))
    written = BATCH_COPIES * min(photos.encoded, max(BATCH_BYTES, photos.largest))
    return PLANNING_BYTES + read + photos.largest + written


def _bytes_needed(prepared: Prepared, pixels: int, photos: Photos, workers: int) -> int:
    """Of all rows, twice where filters write what is kept anew, and of the shards that workers have in hand."""
    recipe, rows = prepared.recipe, len(prepared.plan.rows)
    made = photos.pixels / max(1, photos.count) if at_source_size(recipe.method_config) else pixels
    row = made * PIXEL_BYTES[recipe.image_format] + ROW_BYTES
    kept_twice = 2 if recipe.filters else 1
    in_hand = workers * max(len(shard.rows) for shard in prepared.plan.shards())
    real = photos.encoded + photos.count * ROW_BYTES
    return int(SPARE * ((rows * kept_twice + in_hand) * row + real))


def _pixels(spec: BackboneSpec, network: Network) -> tuple[int, int]:
    trained = network.side * network.factor
    return spec.height or trained, spec.width or trained


def network_of(spec: BackboneSpec) -> Network:
    """The size of a backbone, from its files' headers where they are on this machine."""
    folder = _folder(spec)
    try:
        if folder is None:
            return Network()
        unet, vae = (json.loads((folder / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
        counts = {part: _parameters(folder / part, spec.variant) for part in ("unet", "vae", "text_encoder")}
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return Network(counts["unet"], sum(counts.values()), factor, int(unet["sample_size"]), measured=True)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return Network()


def _folder(spec: BackboneSpec) -> Path | None:
    spec = resolve(spec)
    if folder := local_folder(spec):
        return folder
    try:
        snapshot = hub_cache() / f"models--{spec.id.replace('/', '--')}" / "snapshots" / backbone_revision(spec)
    except BackboneError:
        return None
    return snapshot if snapshot.is_dir() else None


def _parameters(folder: Path, variant: str | None) -> int:
    """Of one part: the shapes in the headers of its safetensors files."""
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(ending)]
    plain = [path for path in files if variant or path.name.count(".") == 1]
    if not plain:
        raise OSError(f"{folder}: no weights")
    return sum(_header_count(path) for path in plain)


def _header_count(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)

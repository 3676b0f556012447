"""Whether a card holds a plan, and which switches of the profile make it fit: computed from configurations alone.

Bytes are estimates. Weights are counted. A U-Net's row keeps the skips of the way down and works on the maps of one
level, many where that attends (its feed-forward is eight times as wide, and gated); where it learns, every layer's maps
stay until the way back. The VAE works on a few maps at the picture's full size. Numbers of maps are those that
`scripts/measure_memory.py` counts in Stable Diffusion 1.5; none of it was compared with a card yet.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rich.filesize import decimal

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.families.parts.diffusers_folders import read_header_of
from diffaug_datasets.families.stable_diffusion import NAME, PARTS
from diffaug_datasets.models.model_folder import check_backbone
from diffaug_datasets.planning.prepare import Prepared

CONTEXT_BYTES = 700_000_000  # of a GPU's driver, libraries and their workspaces
SPARE = 1.1  # what an allocator loses between blocks
VAE_MAPS = 4  # maps of twice the first width at full size that decoding holds at once; 3 were counted
ATTENDED_MAPS, PLAIN_MAPS = 28, 12  # maps of the level that is worked on beside the skips
LEARNED_MAPS, PLAIN_LEARNED_MAPS = 50, 20  # that a layer keeps for the way back: of attention and its projections too
KEPT_SHARE = 0.3  # of those where activations are computed again, if no block alone has more
TILE = 512  # pixels of a side that the VAE sees at once, in tiles
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Shape:
    """What memory follows from: widths by level, layers a level, parameters by network, pixels per latent position.

    `attended`: whether a level of the U-Net attends.
    """

    unet_widths: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_layers: int = 2
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    parameters: tuple[int, int, int] = (860_000_000, 84_000_000, 123_000_000)  # U-Net, VAE, text encoder
    factor: int = 8
    attended: tuple[bool, ...] = (True, True, True, False)


def shape_of(spec: BackboneSpec) -> Shape:
    """The shape of a backbone as its configurations state it; Stable Diffusion 1.5's where they are not here."""
    folder = find_backbone(spec).folder
    if folder is None:
        return Shape()
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
        found = {part: read_header_of(folder, part, stem, spec, False) or {} for part, stem in PARTS.items()}
        counts = {part: sum(math.prod(entry.shape) for entry in tensors.values()) for part, tensors in found.items()}
        layers = unet.get("layers_per_block", 2)
        return Shape(
            tuple(map(int, unet["block_out_channels"])),
            int(max(layers) if isinstance(layers, list) else layers),
            tuple(map(int, vae["block_out_channels"])),
            (counts["unet"], counts["vae"], counts["text_encoder"]),
            1 << (len(vae["block_out_channels"]) - 1),
            tuple("Attn" in str(kind) for kind in unet["down_block_types"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Shape()


class Work(NamedTuple):
    """How much is seen at once: pixels of an image, rows of a batch, bytes of a number, images of a training step."""

    height: int
    width: int
    rows: int
    bytes: int
    learned: int = 0
    learned_side: int | None = None


class Need(NamedTuple):
    """Bytes at most: while images are made, and while something is learned (0 where nothing is)."""

    generate: int
    fit: int

    @property
    def most(self) -> int:
        """The larger."""
        return max(self)


def read_bytes(text: str) -> int:
    """A number of bytes such as `8GB` or `7.5 GiB`.

    Raises:
        RecipeError: it is none.
    """
    plain = text.strip().lower().replace(" ", "")
    number, unit = plain.rstrip("bgikm"), plain[len(plain.rstrip("bgikm")) :]
    try:
        value = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        value = 0.0
    if not 10**6 <= value < 10**15:
        raise RecipeError(f"--memory: got {text!r}, expected the memory of a card, such as 8GB or 7.5GiB.")
    return int(value)


def need(shape: Shape, work: Work, profile: Profile) -> Need:
    """Bytes that a device holds at most under a profile."""
    unet, vae, _ = (count * work.bytes for count in shape.parameters)
    text = shape.parameters[2] * 4  # run in float32
    weights = max(unet, vae, text) if profile.offload else unet + vae + text
    seen = 1 if profile.vae_slicing else work.rows
    tile = min(work.height, TILE) * min(work.width, TILE) if profile.vae_tiling else work.height * work.width
    pictures = seen * tile * 2 * shape.vae_widths[0] * VAE_MAPS * work.bytes
    latents = 2 * work.rows * unet_row(shape, work.height, work.width) * work.bytes
    images = work.rows * work.height * work.width * 3 * 4 * 2
    generate = weights + max(pictures, latents) + images
    fit = 0
    if work.learned:
        sides = (work.learned_side or work.height, work.learned_side or work.width)
        kept = unet_checkpointed(shape, *sides) if profile.checkpointing else unet_learned(shape, *sides)
        fit = int(unet + vae + text + work.learned * kept * work.bytes)
    return Need(int(SPARE * generate) + CONTEXT_BYTES, int(SPARE * fit) + CONTEXT_BYTES * bool(fit))


def unet_row(shape: Shape, height: int, width: int) -> int:
    """Numbers that the U-Net holds at most for one row: the skips, and maps of the level that is worked on."""
    levels = _level(shape, height, width)
    works = [ATTENDED_MAPS if attends else PLAIN_MAPS for attends in shape.attended]
    return sum(levels) * (shape.unet_layers + 1) + max(maps * size for maps, size in zip(works, levels, strict=False))


def unet_learned(shape: Shape, height: int, width: int) -> int:
    """Numbers that the U-Net keeps for one image's way back: of every layer down, and one more a level up."""
    return sum(_layers_learned(shape, height, width)) * (2 * shape.unet_layers + 1)


def unet_checkpointed(shape: Shape, height: int, width: int) -> float:
    """The same where blocks are computed again on the way back: a share of it, and no less than the largest block."""
    largest = max(_layers_learned(shape, height, width)) * (shape.unet_layers + 1)
    return max(KEPT_SHARE * unet_learned(shape, height, width), largest)


def _layers_learned(shape: Shape, height: int, width: int) -> list[int]:
    """Numbers that a layer of every level keeps."""
    levels = _level(shape, height, width)
    maps = [LEARNED_MAPS if attends else PLAIN_LEARNED_MAPS for attends in shape.attended]
    return [count * size for count, size in zip(maps, levels, strict=False)]


def _level(shape: Shape, height: int, width: int) -> list[int]:
    return [_positions(shape, height, width, i) * channels for i, channels in enumerate(shape.unet_widths)]


def _positions(shape: Shape, height: int, width: int, level: int) -> int:
    scale = shape.factor << level
    return max(1, height // scale) * max(1, width // scale)


@dataclass(frozen=True)
class Verdict:
    """What a card of so many bytes makes of a plan: the bytes needed, and switches that make it fit.

    `switches`: none where it fits as it is; None where nothing helps. `rows`: the batch that fits with them, smaller
    than the plan's where the switches alone are not enough.
    """

    memory: int
    needed: Need
    switches: tuple[str, ...] | None
    rows: int


def work_of(prepared: Prepared, shape: Shape) -> Work:
    """What a plan asks of a card at once."""
    recipe = prepared.recipe
    narrow = recipe.backbone.dtype != "float32" or not recipe.profile.is_exact
    native = _native(recipe.backbone) * shape.factor
    height, width = recipe.backbone.height or native, recipe.backbone.width or native
    configs = [c for unit in prepared.plan.fits if isinstance(c := unit.content.get("config"), dict)]
    trained = [c for c in configs if "batch" in c]
    learned = max((int(c["batch"]) for c in trained), default=0)
    side = max((int(c.get("resolution") or height) for c in trained), default=None)
    return Work(height, width, recipe.batch_size, 2 if narrow else 4, learned, side)


def card_line(prepared: Prepared, memory: int | None) -> str:
    """In words, whether a card of so many bytes holds a plan, and what makes it fit; '' where no card is known."""
    if memory is None:
        return ""
    facts = check_backbone(prepared.recipe.backbone)
    if facts is not None and facts.family != NAME:
        return (
            f"{decimal(memory)}: whether it fits is estimated for Stable Diffusion 1.x and 2.x alone, not {facts.kind}"
        )
    shape, profile = shape_of(prepared.recipe.backbone), prepared.recipe.profile
    found = judge(shape, work_of(prepared, shape), profile, memory)
    of_fits = f", {decimal(found.needed.fit)} while something is learned" if found.needed.fit else ""
    needed = f"{decimal(memory)}: about {decimal(found.needed.generate)} needed while images are made{of_fits}"
    if found.switches is None:
        return f"{needed}; no switch makes it fit: take another dtype, a smaller height and width, or another card"
    if not found.switches and found.rows == prepared.recipe.batch_size:
        return f"{needed}; it fits"
    made = [f"--set profile.{name}=true" for name in found.switches]
    made += [f"--set batch_size={found.rows}"] if found.rows < prepared.recipe.batch_size else []
    return f"{needed}; it fits with {' '.join(made)}"


def card_at_hand() -> int | None:
    """Bytes of memory of this machine's smallest GPU, as nvidia-smi states it; None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(2**20 * min(int(line) for line in answer.split()))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _native(spec: BackboneSpec) -> int:
    folder = find_backbone(spec).folder
    try:
        side = json.loads((folder / "unet" / "config.json").read_text("utf-8"))["sample_size"] if folder else 64
        return int(max(side) if isinstance(side, list) else side)
    except (OSError, ValueError, KeyError, TypeError):
        return 64


def judge(shape: Shape, work: Work, profile: Profile, memory: int) -> Verdict:
    """The fewest switches, the cheapest first, that make a plan fit; then a smaller batch with all of them."""
    wanted = need(shape, work, profile)
    for names in _choices(profile, learns=bool(work.learned)):
        tried = profile.model_copy(update=dict.fromkeys(names, True))
        if need(shape, work, tried).most <= memory:
            return Verdict(memory, wanted, names, work.rows)
    every = max(_choices(profile, learns=bool(work.learned)), key=len)
    tried = profile.model_copy(update=dict.fromkeys(every, True))
    rows = work.rows
    while rows > 1:
        rows //= 2
        if need(shape, work._replace(rows=rows), tried).most <= memory:
            return Verdict(memory, wanted, every, rows)
    return Verdict(memory, wanted, None, work.rows)


def _choices(profile: Profile, *, learns: bool) -> Iterator[tuple[str, ...]]:
    """Sets of switches that are not on yet, in the order of what they cost."""
    of_pictures = ((), ("vae_slicing",), ("vae_slicing", "vae_tiling"), ("vae_slicing", "offload"))
    of_fits = ((), ("checkpointing",)) if learns else ((),)
    everything = ("vae_slicing", "vae_tiling", "offload")
    for pictures in (*of_pictures, everything):
        for fits in of_fits:
            yield tuple(name for name in (*pictures, *fits) if not getattr(profile, name))

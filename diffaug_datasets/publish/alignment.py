"""Copies of images found without a network, also mirrored or cropped: by aligning their grey pixels.

Every image is laid over the others at a grid of crops, as it is and mirrored; the few likest pairs are then aligned
finely, and the correlation of the grey pixels decides. The limits were set on Fashion-MNIST (`docs/measured.md`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

COARSE, FINE = 20, 32
SAME, ALIGNED, PAIRS, BLOCK = 0.995, 0.99, 3, 100
SCALES, PLACES = (0.9, 0.8), (0.0, 0.5, 1.0)
Pictures = Mapping[str, Image.Image]
Vector = npt.NDArray[np.float32]


class Crop(NamedTuple):
    """A part of an image: its share of width and height, and where it lies between the edges, from 0 to 1."""

    scale: float
    x: float
    y: float


CROPS = (Crop(1.0, 0.0, 0.0), *(Crop(s, x, y) for s in SCALES for x in PLACES for y in PLACES))


class Copy(NamedTuple):
    """A source that shows a known image, or a crop of it; `correlation` of their grey pixels is 1 for the same ones."""

    source: str
    original: str
    mirrored: bool
    correlation: float


def find_copies(sources: Pictures, originals: Pictures) -> Iterator[Copy]:
    """For each source that shows one of the originals, the likest; neither may be empty."""
    names = list(originals)
    for name, pairs in zip(sources, _likest(sources, originals), strict=True):
        source = sources[name]
        tried = (_copy(name, source, names[pair.place], originals[names[pair.place]], pair) for pair in pairs)
        best = max((copy for copy in tried if copy), key=lambda copy: copy.correlation, default=None)
        if best:
            yield best


@dataclass(frozen=True)
class Pair:
    """An original that a source looks like at the coarse size."""

    place: int
    likeness: float
    mirrored: bool
    crop: Crop


def _likest(sources: Pictures, originals: Pictures) -> list[list[Pair]]:
    """Of every source the few likest originals, compared in blocks."""
    rows = np.stack([_vector(picture, CROPS[0], COARSE) for picture in sources.values()])
    kept: list[list[Pair]] = [[] for _ in rows]
    pictures, begin = iter(originals.values()), 0
    while begin < len(originals):
        views = np.stack([view for picture in islice(pictures, BLOCK) for view in _views(picture)])
        likeness = (rows @ views.T).reshape(len(rows), -1, 2 * len(CROPS))
        for place, table in enumerate(likeness):
            best = table.max(1)
            near = [_pair(begin + int(i), table[i]) for i in np.argsort(-best)[:PAIRS]]
            kept[place] = sorted([*kept[place], *near], key=lambda pair: -pair.likeness)[:PAIRS]
        begin += BLOCK
    return kept


def _pair(place: int, likeness: Vector) -> Pair:
    mirrored, crop = divmod(int(likeness.argmax()), len(CROPS))
    return Pair(place, float(likeness.max()), bool(mirrored), CROPS[crop])


def _views(picture: Image.Image) -> Iterator[Vector]:
    """All crops as they are, then the same crops of the mirrored image."""
    grey = picture.convert("L")
    found = {crop: _vector(grey, crop, COARSE) for crop in CROPS}
    yield from found.values()
    for crop in CROPS:
        opposite = found.get(crop._replace(x=1 - crop.x), found[crop])
        yield opposite.reshape(COARSE, COARSE)[:, ::-1].ravel()


def _vector(picture: Image.Image, crop: Crop, side: int) -> Vector:
    """Grey pixels of a crop [side * side], mean 0 and norm 1; zeros for a flat crop."""
    width, height = picture.size
    wide, high = width * crop.scale, height * crop.scale
    left, top = crop.x * (width - wide), crop.y * (height - high)
    box = (left, top, min(left + wide, width), min(top + high, height))
    small = picture.convert("L").resize((side, side), Image.Resampling.BILINEAR, box=box)
    values = np.asarray(small, dtype=np.float32).ravel()
    centred: Vector = values - values.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 1e-3 else centred * 0


def _copy(name: str, source: Image.Image, other: str, picture: Image.Image, pair: Pair) -> Copy | None:
    turned = ImageOps.mirror(picture) if pair.mirrored else picture
    aligned = _aligned(_vector(source, CROPS[0], FINE), turned, pair.crop)
    whole = pair.likeness if pair.crop == CROPS[0] else 0.0
    if aligned < ALIGNED and whole < SAME:
        return None
    return Copy(name, other, pair.mirrored, max(aligned, whole))


def _aligned(wanted: Vector, picture: Image.Image, crop: Crop) -> float:
    """The largest correlation around a crop, by steps that are halved."""
    best, steps = float(wanted @ _vector(picture, crop, FINE)), Crop(0.04, 0.25, 0.25)
    for _ in range(5):
        for _ in range(4):
            tried = [(float(wanted @ _vector(picture, near, FINE)), near) for near in _around(crop, steps)]
            value, near = max(tried)
            if value <= best:
                break
            best, crop = value, near
        steps = Crop(*(step / 2 for step in steps))
    return best


def _around(crop: Crop, steps: Crop) -> Iterator[Crop]:
    for axis in range(3):
        for sign in (-1, 1):
            moved = [
                value + sign * step * (place == axis)
                for place, (value, step) in enumerate(zip(crop, steps, strict=True))
            ]
            yield Crop(min(max(moved[0], 0.7), 1.0), min(max(moved[1], 0.0), 1.0), min(max(moved[2], 0.0), 1.0))

"""Whether test images are among the real images of a run: as the same bytes, the same pixels, or a near copy.

A near copy is found without a network: every test image, also mirrored, is laid over a source at a grid of crops; the
best few pairs are then aligned finely, and the correlation of their grey pixels decides. The limits were set on
Fashion-MNIST, where 2 of 2,000 training images are taken for one of 1,000 test images (`docs/measured.md`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from diffaug_datasets.core.images import decode_image, pixel_sha256, source_id

VERSION = 1
COARSE, FINE = 20, 32
SAME, ALIGNED, PAIRS, BLOCK = 0.995, 0.99, 3, 100
SCALES, PLACES = (0.9, 0.8), (0.0, 0.5, 1.0)
Vector = npt.NDArray[np.float32]


class Crop(NamedTuple):
    """A part of an image: its share of width and height, and where it lies between the edges, from 0 to 1."""

    scale: float
    x: float
    y: float


CROPS = (Crop(1.0, 0.0, 0.0), *(Crop(s, x, y) for s in SCALES for x in PLACES for y in PLACES))


@dataclass(frozen=True)
class Leak:
    """A real image that shows a test image; `likeness` is a correlation, 1 for the same pixels."""

    source: str
    test: str
    how: str
    likeness: float

    def __str__(self) -> str:
        return f"{self.source[:16]} is test image {self.test[:16]} ({self.how}, {self.likeness:.3f})"


def find_leaks(sources: Mapping[str, bytes], test: Mapping[str, bytes]) -> list[Leak]:
    """For each source (id -> encoded bytes) that shows a test image, the likest one."""
    bytes_of = {source_id(data): name for name, data in test.items()}
    pictures = {name: decode_image(data, name[:12]) for name, data in test.items()}
    pixels_of = {pixel_sha256(picture): name for name, picture in pictures.items()}
    found, rest = [], {}
    for name, data in sources.items():
        picture = decode_image(data, name[:12])
        if source_id(data) in bytes_of:
            found.append(Leak(name, bytes_of[source_id(data)], "same bytes", 1.0))
        elif (digest := pixel_sha256(picture)) in pixels_of:
            found.append(Leak(name, pixels_of[digest], "same pixels", 1.0))
        else:
            rest[name] = picture
    return [*found, *_near(rest, pictures)] if test else found


def _near(sources: Mapping[str, Image.Image], test: Mapping[str, Image.Image]) -> Iterator[Leak]:
    names = list(test)
    for name, pairs in _likest(list(sources.items()), list(test.values())):
        leaks = (_leak(name, sources[name], names[pair.place], test[names[pair.place]], pair) for pair in pairs)
        best = max((leak for leak in leaks if leak), key=lambda leak: leak.likeness, default=None)
        if best:
            yield best


@dataclass(frozen=True)
class Pair:
    """A test image that a source looks like at the coarse size."""

    place: int
    likeness: float
    mirrored: bool
    crop: Crop


def _likest(sources: Sequence[tuple[str, Image.Image]], test: Sequence[Image.Image]) -> list[tuple[str, list[Pair]]]:
    """Of every source the few likest test images, compared in blocks."""
    if not sources:
        return []
    rows = np.stack([_vector(picture, CROPS[0], COARSE) for _, picture in sources])
    kept: list[list[Pair]] = [[] for _ in sources]
    for begin in range(0, len(test), BLOCK):
        views = np.stack([view for picture in test[begin : begin + BLOCK] for view in _views(picture)])
        likeness = (rows @ views.T).reshape(len(rows), -1, 2 * len(CROPS))
        for place, table in enumerate(likeness):
            best = table.max(1)
            near = [_pair(begin + int(i), table[i]) for i in np.argsort(-best)[:PAIRS]]
            kept[place] = sorted([*kept[place], *near], key=lambda pair: -pair.likeness)[:PAIRS]
    return [(name, pairs) for (name, _), pairs in zip(sources, kept, strict=True)]


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


def _leak(name: str, source: Image.Image, other: str, picture: Image.Image, pair: Pair) -> Leak | None:
    turned = ImageOps.mirror(picture) if pair.mirrored else picture
    aligned = _aligned(_vector(source, CROPS[0], FINE), turned, pair.crop)
    whole = pair.likeness if pair.crop == CROPS[0] else 0.0
    if aligned < ALIGNED and whole < SAME:
        return None
    how = "mirrored copy" if pair.mirrored else "near copy"
    return Leak(name, other, how, round(max(aligned, whole), 4))


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

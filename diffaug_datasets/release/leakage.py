"""Whether test images are among the real images of a run: exactly, or as copies that were encoded, turned or cut anew.

Four grounds, each enough alone: the same bytes or pixels; grey pixels that align (mirrored and cropped copies too); a
perceptual hash nearby (re-encoded copies); the same place in the space of an encoder. The limits were set on
Fashion-MNIST so that hardly an image that is no copy is taken for one (`docs/measured.md`). Every encoder has cosines
of its own: with another one than the packaged, 0.999 errs to the side of silence, and the other grounds remain.

Copies of images found without a network, also mirrored or cropped: by aligning their grey pixels.

Every image is laid over the others at a grid of crops, as it is and mirrored; the few likest pairs are then aligned
finely, and the correlation of the grey pixels decides. The limits were set on Fashion-MNIST (`docs/measured.md`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffaug_datasets.core.images import decode_image, perceptual_hash, pixel_sha256, source_id

COARSE, FINE = 20, 32
SAME, ALIGNED, PAIRS, VIEWS_AT_ONCE = 0.995, 0.99, 3, 100
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
        views = np.stack([view for picture in islice(pictures, VIEWS_AT_ONCE) for view in _views(picture)])
        likeness = (rows @ views.T).reshape(len(rows), -1, 2 * len(CROPS))
        for place, table in enumerate(likeness):
            best = table.max(1)
            near = [_pair(begin + int(i), table[i]) for i in np.argsort(-best)[:PAIRS]]
            kept[place] = sorted([*kept[place], *near], key=lambda pair: -pair.likeness)[:PAIRS]
        begin += VIEWS_AT_ONCE
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


VERSION = 2
FREQUENCIES = 16  # along each axis: a hash of 256 bits
DIFFERENT_BITS = 20
COSINE = 0.999
SOURCES_AT_ONCE = 256  # sources compared at once
Value = TypeVar("Value", covariant=True)
Encoded = Mapping[str, bytes]
Vectors = NDArray[np.float32]
Features = Callable[[Iterable[Image.Image]], Vectors]  # unit norm [n d] of pictures that are taken one by one


@dataclass(frozen=True)
class Leak:
    """A real image that shows a test image, and every ground to say so."""

    source: str
    test: str
    grounds: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source[:16]} is test image {self.test[:16]} ({'; '.join(self.grounds)})"


class Sign(NamedTuple):
    """What speaks for a source showing a test image."""

    source: str
    test: str
    ground: str


class Lazily(Mapping[str, Value]):
    """Values that are made whenever they are asked for, so that a large split is never in memory whole."""

    def __init__(self, keys: Iterable[str], make: Callable[[str], Value]) -> None:
        self._keys, self._make = dict.fromkeys(keys), make

    def __getitem__(self, key: str) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def find_leaks(sources: Encoded, test: Encoded, features: Features | None = None) -> list[Leak]:
    """Every pair of a source and a test image (id -> encoded bytes) that a ground speaks for, in the sources' order.

    Without `features` no encoder is asked. A source that is a test image exactly is compared no further.

    Raises:
        SourceError: an image cannot be read.
    """
    found = list(_exact(sources, test))
    known = {sign.source for sign in found}
    rest = Lazily((name for name in sources if name not in known), lambda name: decode_image(sources[name], name[:12]))
    originals = Lazily(test, lambda name: decode_image(test[name], name[:12]))
    if rest and originals:
        found += [*_aligned_signs(rest, originals), *_hashed(rest, originals)]
        found += _encoded(rest, originals, features) if features else ()
    return _gathered(found, list(sources))


def _gathered(signs: Iterable[Sign], order: Sequence[str]) -> list[Leak]:
    grounds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sign in signs:
        grounds[sign.source, sign.test].append(sign.ground)
    place = {name: number for number, name in enumerate(order)}
    return sorted((Leak(*pair, tuple(said)) for pair, said in grounds.items()), key=lambda leak: place[leak.source])


def _exact(sources: Encoded, test: Encoded) -> Iterator[Sign]:
    bytes_of, pixels_of = {}, {}
    for name, data in test.items():
        bytes_of[source_id(data)] = pixels_of[_pixels(data, name)] = name
    for name, data in sources.items():
        if other := bytes_of.get(source_id(data)):
            yield Sign(name, other, "same bytes")
        elif other := pixels_of.get(_pixels(data, name)):
            yield Sign(name, other, "same pixels")


def _pixels(data: bytes, name: str) -> str:
    return pixel_sha256(decode_image(data, name[:12]))


def _aligned_signs(sources: Pictures, originals: Pictures) -> Iterator[Sign]:
    for copy in find_copies(sources, originals):
        how = "mirrored copy" if copy.mirrored else "near copy"
        yield Sign(copy.source, copy.original, f"{how}, correlation {copy.correlation:.4f}")


def _hashed(sources: Pictures, originals: Pictures) -> Iterator[Sign]:
    bits = FREQUENCIES**2
    for source, other, cosine in _nearest(sources, originals, _signs):
        different = round((1 - cosine) * bits / 2)
        if different <= DIFFERENT_BITS:
            yield Sign(source, other, f"perceptual hash, {different} of {bits} bits differ")


def _signs(images: Iterable[Image.Image]) -> Vectors:
    """The hashes as vectors of unit norm, so that their cosine counts the bits that differ."""
    bits = np.stack([perceptual_hash(image, FREQUENCIES) for image in images])
    return np.where(bits, 1 / FREQUENCIES, -1 / FREQUENCIES).astype(np.float32)


def _encoded(sources: Pictures, originals: Pictures, features: Features) -> Iterator[Sign]:
    for source, other, cosine in _nearest(sources, originals, features):
        if cosine >= COSINE:
            yield Sign(source, other, f"embedding, cosine {cosine:.4f}")


def _nearest(sources: Pictures, originals: Pictures, vectors: Features) -> Iterator[tuple[str, str, float]]:
    """(source, nearest original, their cosine) for each source, as it is or mirrored."""
    names, pool, waiting = list(originals), vectors(originals.values()), iter(sources)
    while block := list(islice(waiting, SOURCES_AT_ONCE)):
        seen = vectors(way for name in block for way in _both_ways(sources[name]))
        for name, both in zip(block, seen.reshape(len(block), 2, -1), strict=True):
            cosines = (both @ pool.T).max(0)
            place = int(cosines.argmax())
            yield name, names[place], float(cosines[place])


def _both_ways(picture: Image.Image) -> Iterator[Image.Image]:
    yield picture
    yield ImageOps.mirror(picture)

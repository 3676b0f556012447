"""Whether test images are among the real images of a run: exactly, or as copies that were encoded, turned or cut anew.

Four grounds, each enough alone: the same bytes or pixels; grey pixels that align (mirrored and cropped copies too); a
perceptual hash nearby (re-encoded copies); the same place in the space of an encoder. Only the last needs a model.
For the alignment every image is laid over the others at a grid of crops, as it is and mirrored; the few pairs that are
most alike are then aligned finely, and the correlation of the grey pixels decides.

The limits were set on Fashion-MNIST so that hardly an image that is no copy is taken for one (`docs/measured.md`).
Every encoder has cosines of its own: with another one than the packaged, 0.999 errs to the side of silence, and the
other grounds remain.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffaug_datasets.core.images import decode_image, perceptual_hash, pixel_sha256, source_id
from diffaug_datasets.core.memory import ByteCache

VERSION = 2
FREQUENCIES = 16  # along each axis: a hash of 256 bits
DIFFERENT_BITS = 20
COSINE = 0.999
SOURCES_AT_ONCE = 256  # sources compared at once
COARSE, FINE = 20, 32  # sides in pixels of the grey images that are laid over each other, then aligned
SAME, ALIGNED = 0.995, 0.99  # correlations from which whole images and aligned crops are copies
PAIRS, VIEWS_AT_ONCE = 3, 100
SCALES, PLACES = (0.9, 0.8), (0.0, 0.5, 1.0)
LOOKS_BYTES = 256 << 20
Value = TypeVar("Value", covariant=True)
Encoded = Mapping[str, bytes]
Pictures = Mapping[str, Image.Image]
Vector = NDArray[np.float32]
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


class Crop(NamedTuple):
    """A part of an image: its share of width and height, and where it lies between the edges, from 0 to 1."""

    scale: float
    x: float
    y: float


CROPS = (Crop(1.0, 0.0, 0.0), *(Crop(s, x, y) for s in SCALES for x in PLACES for y in PLACES))


class Looks:
    """What test images look like, kept from one comparison to the next; of more than `most` bytes the last used ones.

    An image is known by its encoded bytes, so any sets may share one. Not for several threads at once.
    """

    def __init__(self, most: int = LOOKS_BYTES) -> None:
        self._data = b""
        self._known: ByteCache[tuple[str, str], Vectors] = ByteCache(self._look, lambda look: look.nbytes, most)

    def pixels(self, data: bytes) -> str:
        """The digest of its pixels."""
        return self._of("pixels", data).tobytes().hex()

    def views(self, data: bytes) -> Vectors:
        """Its crops, as they are and mirrored [v d]."""
        return self._of("views", data)

    def hash(self, data: bytes) -> Vectors:
        """The bits of its perceptual hash as a vector [d] of unit norm."""
        return self._of("hash", data)

    def _of(self, kind: str, data: bytes) -> Vectors:
        self._data = data
        return self._known((kind, source_id(data)))

    def _look(self, key: tuple[str, str]) -> Vectors:
        kind, image = key
        picture = decode_image(self._data, image[:12])
        if kind == "pixels":
            return np.frombuffer(bytes.fromhex(pixel_sha256(picture)), dtype=np.float32)
        return np.stack(list(_views(picture))) if kind == "views" else _signs(picture)


def find_leaks(
    sources: Encoded, test: Encoded, features: Features | None = None, looks: Looks | None = None
) -> list[Leak]:
    """Every pair of a source and a test image (id -> encoded bytes) that a ground speaks for, in the sources' order.

    Without `features` no encoder is asked. A source that is a test image exactly is compared no further. `looks`: of
    test images, from comparisons before.

    Raises:
        SourceError: an image cannot be read.
    """
    looks = looks or Looks(0)
    signs = list(_same_bytes_or_pixels(sources, test, looks))
    known = {sign.source for sign in signs}
    rest = Lazily((name for name in sources if name not in known), lambda name: decode_image(sources[name], name[:12]))
    originals = Lazily(test, lambda name: decode_image(test[name], name[:12]))
    if rest and originals:
        for copy in find_copies(rest, originals, lambda name: looks.views(test[name])):
            how = "mirrored copy" if copy.mirrored else "near copy"
            signs.append(Sign(copy.source, copy.original, f"{how}, correlation {copy.correlation:.4f}"))
        signs += _near_hashes(rest, [looks.hash(data) for data in test.values()], list(test))
        pool = features(originals.values()) if features else None
        for source, other, cosine in (
            _nearest(rest, list(test), pool, features) if features and pool is not None else ()
        ):
            if cosine >= COSINE:
                signs.append(Sign(source, other, f"embedding, cosine {cosine:.4f}"))
    grounds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sign in signs:
        grounds[sign.source, sign.test].append(sign.ground)
    place = {name: number for number, name in enumerate(sources)}
    return sorted((Leak(*pair, tuple(said)) for pair, said in grounds.items()), key=lambda leak: place[leak.source])


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


def _same_bytes_or_pixels(sources: Encoded, test: Encoded, looks: Looks) -> Iterator[Sign]:
    bytes_of, pixels_of = {}, {}
    for name, data in test.items():
        bytes_of[source_id(data)] = pixels_of[looks.pixels(data)] = name
    for name, data in sources.items():
        if other := bytes_of.get(source_id(data)):
            yield Sign(name, other, "same bytes")
        elif other := pixels_of.get(_pixels(data, name)):
            yield Sign(name, other, "same pixels")


def _pixels(data: bytes, name: str) -> str:
    return pixel_sha256(decode_image(data, name[:12]))


def _signs(picture: Image.Image) -> Vector:
    """The hash as a vector of unit norm, so that the cosine of two counts the bits that differ."""
    bits = perceptual_hash(picture, FREQUENCIES)
    return np.where(bits, 1 / FREQUENCIES, -1 / FREQUENCIES).astype(np.float32)


def _near_hashes(sources: Pictures, pool: Sequence[Vector], names: Sequence[str]) -> Iterator[Sign]:
    count = FREQUENCIES**2

    def signs(images: Iterable[Image.Image]) -> Vectors:
        return np.stack([_signs(image) for image in images])

    for source, other, cosine in _nearest(sources, names, np.stack(pool), signs):
        different = round((1 - cosine) * count / 2)
        if different <= DIFFERENT_BITS:
            yield Sign(source, other, f"perceptual hash, {different} of {count} bits differ")


def _nearest(
    sources: Pictures, names: Sequence[str], pool: Vectors, vectors: Features
) -> Iterator[tuple[str, str, float]]:
    """(source, nearest original, their cosine) for each source, as it is or mirrored; `pool`: the originals' [n d]."""
    waiting = iter(sources)
    while block := list(islice(waiting, SOURCES_AT_ONCE)):
        pictures = (sources[name] for name in block)
        both_ways = (way for picture in pictures for way in (picture, ImageOps.mirror(picture)))
        seen = vectors(both_ways).reshape(len(block), 2, -1)
        for name, both in zip(block, seen, strict=True):
            cosines = (both @ pool.T).max(0)
            place = int(cosines.argmax())
            yield name, names[place], float(cosines[place])


class Copy(NamedTuple):
    """A source that shows a known image, or a crop of it; `correlation` of their grey pixels is 1 for the same ones."""

    source: str
    original: str
    mirrored: bool
    correlation: float


@dataclass(frozen=True)
class Pair:
    """An original that a source looks like at the coarse size."""

    place: int
    likeness: float
    mirrored: bool
    crop: Crop


def find_copies(
    sources: Pictures, originals: Pictures, views_of: Callable[[str], Vectors] | None = None
) -> Iterator[Copy]:
    """For each source that shows one of the originals, the one most like it; neither may be empty.

    `views_of`: the views of an original by its name, where they are known from before.
    """
    names = list(originals)
    known = views_of or (lambda name: np.stack(list(_views(originals[name]))))
    for name, pairs in zip(sources, _most_alike(sources, names, known), strict=True):
        fine, copies = _vector(sources[name], CROPS[0], FINE), []
        for pair in pairs:
            original = originals[names[pair.place]]
            aligned = _aligned(fine, ImageOps.mirror(original) if pair.mirrored else original, pair.crop)
            whole = pair.likeness if pair.crop == CROPS[0] else 0.0
            if aligned >= ALIGNED or whole >= SAME:
                copies.append(Copy(name, names[pair.place], pair.mirrored, max(aligned, whole)))
        if copies:
            yield max(copies, key=lambda copy: copy.correlation)


def _most_alike(sources: Pictures, originals: Sequence[str], views_of: Callable[[str], Vectors]) -> list[list[Pair]]:
    """Of every source the few originals most like it, compared in blocks of sources and of originals."""
    rows = np.stack([_vector(picture, CROPS[0], COARSE) for picture in sources.values()])
    likeness = np.full((len(rows), PAIRS), -np.inf, dtype=np.float32)
    seen = np.zeros((len(rows), PAIRS), dtype=np.int64)  # number of the original, times its views, plus the view
    begin, views_each = 0, 2 * len(CROPS)
    while begin < len(originals):
        views = np.concatenate([views_of(name) for name in originals[begin : begin + VIEWS_AT_ONCE]])
        for first in range(0, len(rows), SOURCES_AT_ONCE):
            part = slice(first, first + SOURCES_AT_ONCE)
            table = (rows[part] @ views.T).reshape(len(rows[part]), -1, views_each)
            numbers = (begin + np.arange(table.shape[1])) * views_each + table.argmax(2)
            both = np.concatenate([likeness[part], table.max(2)], axis=1)
            best = np.argsort(-both, axis=1, kind="stable")[:, :PAIRS]
            likeness[part] = np.take_along_axis(both, best, axis=1)
            seen[part] = np.take_along_axis(np.concatenate([seen[part], numbers], axis=1), best, axis=1)
        begin += VIEWS_AT_ONCE
    return [
        [_pair(float(value), int(view), views_each) for value, view in zip(*of_one, strict=True) if value > -np.inf]
        for of_one in zip(likeness, seen, strict=True)
    ]


def _pair(likeness: float, seen: int, views_each: int) -> Pair:
    place, view = divmod(seen, views_each)
    mirrored, crop = divmod(view, len(CROPS))
    return Pair(place, likeness, bool(mirrored), CROPS[crop])


def _views(picture: Image.Image) -> Iterator[Vector]:
    """All crops as they are, then the same crops of the mirrored image."""
    grey = picture.convert("L")
    views = {crop: _vector(grey, crop, COARSE) for crop in CROPS}
    yield from views.values()
    for crop in CROPS:
        opposite = views.get(crop._replace(x=1 - crop.x), views[crop])
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

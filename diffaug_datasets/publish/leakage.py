"""Whether test images are among the real images of a run: exactly, or as copies that were encoded, turned or cut anew.

Four grounds, each enough alone: the same bytes or pixels; grey pixels that align (mirrored and cropped copies too); a
perceptual hash nearby (re-encoded copies); the same place in the space of an encoder. The limits were set on
Fashion-MNIST so that hardly an image that is no copy is taken for one (`docs/measured.md`). Every encoder has cosines
of its own: with another one than the packaged, 0.999 errs to the side of silence, and the other grounds remain.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffaug_datasets.core.images import decode_image, pixel_sha256, source_id
from diffaug_datasets.core.perceptual_hash import perceptual_hash
from diffaug_datasets.publish.alignment import find_copies

VERSION = 2
FREQUENCIES = 16  # along each axis: a hash of 256 bits
DIFFERENT_BITS = 20
COSINE = 0.999
BLOCK = 256  # sources compared at once
Value = TypeVar("Value", covariant=True)
Encoded = Mapping[str, bytes]
Pictures = Mapping[str, Image.Image]
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
        found += [*_aligned(rest, originals), *_hashed(rest, originals)]
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


def _aligned(sources: Pictures, originals: Pictures) -> Iterator[Sign]:
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
    while block := list(islice(waiting, BLOCK)):
        seen = vectors(way for name in block for way in _both_ways(sources[name]))
        for name, both in zip(block, seen.reshape(len(block), 2, -1), strict=True):
            cosines = (both @ pool.T).max(0)
            place = int(cosines.argmax())
            yield name, names[place], float(cosines[place])


def _both_ways(picture: Image.Image) -> Iterator[Image.Image]:
    yield picture
    yield ImageOps.mirror(picture)

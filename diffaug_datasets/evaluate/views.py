"""How images are changed while a classifier learns: mirrored, cropped, RandAugment, MixUp, CutMix, CMO; and DRW.

Pillow and numpy alone. kornia 0.9, which needs no torchvision, was tried: its RandAugment draws from torch's global
generator and takes 2.4 ms for one 28-pixel image on a CPU, most of a whole training step; it draws operations without
replacement, where the paper draws with.

Every draw follows from a digest of words (`randoms`), such as seed, epoch and place, so any order and any number of
workers give the same pixels. Sources:

- mirror and padded crop: He et al., arXiv 1512.03385, section 4.2: 4 pixels on every side of 32, black;
- RandAugment: Cubuk et al., arXiv 1909.13719, 2 operations at magnitude 9 of 30 (their ImageNet setting); the ranges
  are AutoAugment's, arXiv 1805.09501, table 6, where translations are of 331 pixels; after mirror and crop;
- classic: the above crop, with brightness, contrast and saturation changed by up to .4, as in the long-tail scripts of
  Diff-Mix and Diff-II;
- resized crop: Szegedy et al., arXiv 1409.4842, section 6: a part of the image, here .2 to 1 of its area as in GeNIe's
  few-shot code, 3/4 to 4/3 as wide as tall, mirrored half of the time and resized to the whole;
- MixUp, arXiv 1710.09412, and CutMix, arXiv 1905.04899, both with Beta(.8, .8) as GeNIe's few-shot code has them;
- CMO, arXiv 2112.00412: CutMix from Beta(1, 1) whose patch comes from an image drawn with probability proportional to
  1 / n_c, on half of the steps, neither in the first 3 nor in the last 3 of 200 epochs;
- DRW, arXiv 1906.07413: classes weighted by their effective number of images, from epoch 160 of 200 on.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import exp, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from diffaug_datasets.core.identity import digest, uint63
from diffaug_datasets.evaluate.classifiers import Array
from diffaug_datasets.evaluate.draws import Images, Labelled
from diffaug_datasets.evaluate.suite import Baseline
from diffaug_datasets.evaluate.training_sets import View

Look = Literal["none", "weak", "strong", "classic", "resized_crop"]
Blend = Literal["mixup", "cutmix", "cmo"]

PADDED = 1 / 8  # of a side, black, on every side
JITTER = 0.4
PART, ASPECT, TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
OPERATIONS, MAGNITUDE, MOST_MAGNITUDE = 2, 9, 30
ALPHA: Mapping[Blend, float] = {"mixup": 0.8, "cutmix": 0.8, "cmo": 1.0}  # of the Beta distribution
CMO_SHARE = 0.5  # of the steps
CMO_BEGIN, CMO_END = 3 / 200, 197 / 200
DRW_BEGIN, DRW_BETA = 160 / 200, 0.9999


@dataclass(frozen=True)
class Augmentation:
    """What is done to images while a network learns: to each by itself, to each with another one, to their weights."""

    look: Look = "weak"
    blend: Blend | None = None
    reweighted: bool = False

    @classmethod
    def of(cls, look: Look, view: View | None = None, baseline: Baseline | None = None) -> "Augmentation":
        """A line's: its view or baseline decides, `look` where these say nothing."""
        if view:
            return cls("classic") if view == "classic" else cls("strong", "cutmix")
        known: Mapping[Baseline, Augmentation] = {
            "weak": cls("weak"),
            "strong": cls("strong"),
            "mixup": cls(look, "mixup"),
            "cutmix": cls(look, "cutmix"),
            "cmo": cls(look, "cmo"),
            "drw": cls(look, None, reweighted=True),
            "cmo_drw": cls(look, "cmo", reweighted=True),
        }
        return known[baseline] if baseline else cls(look)

    def blends_at(self, share: float, draws: random.Random) -> bool:
        """Whether images are blended at a step, `share` of the whole training behind it."""
        if self.blend != "cmo":
            return self.blend is not None
        return CMO_BEGIN <= share < CMO_END and draws.random() < CMO_SHARE


@dataclass(frozen=True)
class Blended:
    """How one image meets another: the other has `box` (top, left, bottom, right; CutMix) or shows through (MixUp).

    `share`: of the image itself, in [0, 1]; that of the pixels it keeps where there is a box.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def pixels(self, own: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
        """The new image [h w 3] of two of one size, in their range."""
        if self.box is None:
            mixed: NDArray[np.float32] = (self.share * own + (1 - self.share) * other).astype(np.float32)
            return mixed
        top, left, bottom, right = self.box
        pasted = own.copy()
        pasted[top:bottom, left:right] = other[top:bottom, left:right]
        return pasted

    def targets(self, own: Array, other: Array) -> Array:
        """The label [C] of the new image."""
        mixed: Array = self.share * own + (1 - self.share) * other
        return mixed


def randoms(*words: object) -> random.Random:
    """A source of draws that belongs to these words."""
    return random.Random(uint63("|".join(map(str, words))))


def seen(image: Image.Image, look: Look, draws: random.Random) -> Image.Image:
    """An RGB image through an augmentation that looks at it alone; the size stays."""
    if look == "none":
        return image
    if look == "resized_crop":
        return _part(_mirrored(image, draws), draws)
    image = _cropped(_mirrored(image, draws), draws)
    if look == "strong":
        return _randaugment(image, draws)
    return _jittered(image, draws) if look == "classic" else image


def draw_blend(kind: Blend, height: int, width: int, draws: random.Random) -> Blended:
    """How an image of that size is blended: lambda from a Beta distribution, and a box of 1 - lambda of the area.

    The box's centre is uniform and what lies outside the image is cut, so the share is counted again from the box.
    """
    share = draws.betavariate(ALPHA[kind], ALPHA[kind])
    if kind == "mixup":
        return Blended(share)
    tall, wide = int(height * sqrt(1 - share)), int(width * sqrt(1 - share))
    y, x = draws.randrange(height), draws.randrange(width)
    top, bottom = max(0, y - tall // 2), min(height, y + tall // 2)
    left, right = max(0, x - wide // 2), min(width, x + wide // 2)
    return Blended(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def by_inverse_count(labels: Sequence[int]) -> Sequence[float]:
    """Running sums of weights 1 / n_c of images, n_c how many have their label: CMO's foreground distribution."""
    counts = np.bincount(labels)
    return list(accumulate(1 / counts[label] for label in labels))


def effective_weights(counts: Array, beta: float = DRW_BETA) -> Array:
    """Weights [C] of classes of n images in proportion to (1 - beta) / (1 - beta^n), which sum to C.

    A class without images has weight 0; C counts the others.
    """
    there = counts > 0
    weights = np.where(there, (1 - beta) / (1 - beta ** np.where(there, counts, 1)), 0)
    scaled: Array = weights / weights.sum() * there.sum()
    return scaled


def smoothed(targets: Array, amount: float) -> Array:
    """Labels [n C] whose weight goes to the other classes for that part, in equal shares.

    One-hot labels become 1 - amount for the true class and amount / (C - 1) for the others, as in the code of Diff-II
    and Diff-Mix. torch's `label_smoothing` spreads over all C classes: the same is `amount * C / (C - 1)` there.
    """
    if not amount:
        return targets
    others = targets.sum(1, keepdims=True) - targets
    spread: Array = (1 - amount) * targets + amount * others / (targets.shape[1] - 1)
    return spread


def seen_through(images: Images, view: View, copies: int, seed: int) -> Images:
    """So many looks at every image; the first is the image itself, and with 1 these are all.

    Pixels are made when they are read. What a look is follows from the images, their pixel digests and the seed,
    whatever their order; its key says so. CutMix takes the other image from all of them and mixes both labels.
    """
    looks = [_the_image(images, place) for place in range(len(images))]
    make = _alone(images) if Augmentation.of("none", view).blend is None else _blended(images)
    for copy in range(1, copies):
        looks += [make(place, view, f"{seed}|view|{view}|{copy}") for place in range(len(images))]
    soft = np.stack([look.soft for look in looks])
    places = [place for _ in range(copies) for place in range(len(images))]
    sources = [list(look.source_ids) for look in looks]
    labelled = Labelled(images.labelled.labels[places], soft, sources)
    return Images(labelled, tuple(look.key for look in looks), lambda i: looks[i].read())


@dataclass(frozen=True)
class _Seen:
    """One look at one image."""

    key: str
    soft: Array
    source_ids: Sequence[str]
    read: Callable[[], Image.Image]


def _the_image(images: Images, place: int) -> _Seen:
    labelled = images.labelled
    return _Seen(images.keys[place], labelled.soft[place], labelled.source_ids[place], partial(images.read, place))


Make = Callable[[int, View, str], _Seen]  # of an image's place, a view, and the words that its draws belong to


def _alone(images: Images) -> Make:
    """Looks that show nothing but the image."""

    def make(place: int, view: View, words: str) -> _Seen:
        key, labelled, look = images.keys[place], images.labelled, Augmentation.of("none", view).look
        return _Seen(
            digest([key, words]),
            labelled.soft[place],
            labelled.source_ids[place],
            lambda: seen(images.read(place), look, randoms(words, key)),
        )

    return make


def _blended(images: Images) -> Make:
    """Looks into which a part of another of the images is pasted; every image is opened once for its size."""
    by_key = sorted(range(len(images)), key=lambda place: images.keys[place])
    sizes = [images.read(place).size for place in range(len(images))]
    labelled = images.labelled

    def make(place: int, view: View, words: str) -> _Seen:
        own, (width, height) = images.keys[place], sizes[place]
        other = by_key[randoms(words, own, "other").randrange(len(by_key))]
        theirs, look = images.keys[other], Augmentation.of("none", view).look
        blended = draw_blend("cutmix", height, width, randoms(words, own, "blend"))

        def read() -> Image.Image:
            first = seen(images.read(place), look, randoms(words, own))
            second = seen(images.read(other), look, randoms(words, own, theirs)).resize(first.size)
            pixels = blended.pixels(np.asarray(first, np.float32), np.asarray(second, np.float32))
            return Image.fromarray(pixels.astype(np.uint8))

        sources = dict.fromkeys([*labelled.source_ids[place], *labelled.source_ids[other]])
        soft = blended.targets(labelled.soft[place], labelled.soft[other])
        return _Seen(digest([own, theirs, words]), soft, list(sources), read)

    return make


def _mirrored(image: Image.Image, draws: random.Random) -> Image.Image:
    return ImageOps.mirror(image) if draws.random() < 0.5 else image


def _cropped(image: Image.Image, draws: random.Random) -> Image.Image:
    """The image moved by up to an eighth of its sides, black where it was not."""
    down, right = (round(side * PADDED) for side in (image.height, image.width))
    x, y = draws.randint(-right, right), draws.randint(-down, down)
    return image.crop((x, y, x + image.width, y + image.height))


def _part(image: Image.Image, draws: random.Random) -> Image.Image:
    """A part of the image as large as the whole; all of it where no drawn part lies inside."""
    for _ in range(TRIES):
        area, aspect = draws.uniform(*PART) * image.width * image.height, exp(draws.uniform(*map(log, ASPECT)))
        width, height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
            box = (left, top, left + width, top + height)
            return image.resize(image.size, Image.Resampling.BILINEAR, box=box)
    return image


def _jittered(image: Image.Image, draws: random.Random) -> Image.Image:
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    draws.shuffle(kinds)
    for kind in kinds:
        image = kind(image).enhance(draws.uniform(1 - JITTER, 1 + JITTER))
    return image


def _randaugment(image: Image.Image, draws: random.Random) -> Image.Image:
    for _ in range(OPERATIONS):
        change = RANDAUGMENT[draws.choice(sorted(RANDAUGMENT))]
        image = change(image, MAGNITUDE / MOST_MAGNITUDE, draws.choice((-1, 1)))
    return image


Change = Callable[[Image.Image, float, int], Image.Image]  # of an image, a magnitude in [0, 1] and a sign


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    return lambda image, magnitude, sign: kind(image).enhance(1 + sign * 0.9 * magnitude)


def _moved(image: Image.Image, *terms: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, terms, resample=Image.Resampling.NEAREST)


def _sheared_x(image: Image.Image, magnitude: float, sign: int) -> Image.Image:
    return _moved(image, 1, sign * 0.3 * magnitude, 0, 0, 1, 0)


def _sheared_y(image: Image.Image, magnitude: float, sign: int) -> Image.Image:
    return _moved(image, 1, 0, 0, sign * 0.3 * magnitude, 1, 0)


def _translated_x(image: Image.Image, magnitude: float, sign: int) -> Image.Image:
    return _moved(image, 1, 0, sign * magnitude * image.width * 150 / 331, 0, 1, 0)


def _translated_y(image: Image.Image, magnitude: float, sign: int) -> Image.Image:
    return _moved(image, 1, 0, 0, 0, 1, sign * magnitude * image.height * 150 / 331)


RANDAUGMENT: Mapping[str, Change] = {
    "identity": lambda image, _, __: image,
    "auto_contrast": lambda image, _, __: ImageOps.autocontrast(image),
    "equalize": lambda image, _, __: ImageOps.equalize(image),
    "rotate": lambda image, magnitude, sign: image.rotate(sign * 30 * magnitude),
    "solarize": lambda image, magnitude, _: ImageOps.solarize(image, round(255 * (1 - magnitude))),
    "posterize": lambda image, magnitude, _: ImageOps.posterize(image, 8 - round(4 * magnitude)),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _sheared_x,
    "shear_y": _sheared_y,
    "translate_x": _translated_x,
    "translate_y": _translated_y,
}

"""From values to what a page holds: filled templates, numbers as text, pictures as data URIs, figures as coordinates.

Every value in a template is escaped and an unknown name is an error. Figures are geometry: Python computes coordinates
in the units of each figure's view box, y pointing down, rounded to a tenth, and the templates draw them as SVG.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import BytesIO
from statistics import fmean
from typing import TypeGuard

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import DECODING_ERRORS, decode_image, source_id

THIN_SPACE = "\u202f"
SMALL = 64  # pixels; pictures up to this side are shown enlarged
THUMBNAIL = 160  # pixels that are kept of larger ones
SHOWN = 128  # CSS pixels of the longer side
SHOWN_AS_STORED = 16_000  # bytes of a small picture that goes into a page as it is
KEPT = 4096  # thumbnails that are remembered
SHOWN_BYTES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


# Templates


def render(template: str, **values: object) -> str:
    """The page of a template in `diffaug_datasets.cards`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    cards = files("diffaug_datasets.cards")
    environment = Environment(
        loader=FunctionLoader(lambda name: (cards / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "seconds": seconds, "rate": rate}
    environment.filters |= {"percent": percent, "signed": signed, "pyrepr": repr}
    return environment


# Numbers as text


def count(number: int) -> str:
    """A whole number, thousands set apart: 12 345."""
    return f"{number:,}".replace(",", THIN_SPACE)


def seconds(value: float) -> str:
    """A duration as one reads it: 0.84 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(value: float) -> str:
    """A speed: 0.031, 1.2, 45."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def signed(value: float, form: str) -> str:
    """A number in a format, with a true minus sign."""
    return format(value, form).replace("-", "\u2212")


def percent(share: float) -> str:
    """A share in [0, 1] as whole percent; only all is 100 %, only none is 0 %."""
    whole = round(100 * share)
    return f"{min(99, max(1, whole)) if 0 < share < 1 else whole}\u00a0%"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(value: object) -> TypeGuard[list[float]]:
    """Whether a value read from JSON is a list of finite numbers."""
    return isinstance(value, list) and all(map(is_number, value))


# Pictures


@dataclass(frozen=True)
class Thumbnail:
    """A picture for a page. `width` and `height` are CSS pixels; `pixelated` ones are enlarged without smoothing."""

    uri: str
    width: int
    height: int
    pixelated: bool


_thumbnails: dict[str, Thumbnail | None] = {}


def thumbnail(data: bytes) -> Thumbnail | None:
    """The picture of encoded bytes; None where they cannot be decoded. The last ones are remembered."""
    key = source_id(data)
    if key not in _thumbnails:
        picture = decoded(data)
        if picture is None:
            _thumbnails[key] = None
        else:
            _thumbnails[key] = _enlarged(data, picture) if max(picture.size) <= SMALL else _reduced(picture)
        while len(_thumbnails) > KEPT:
            _thumbnails.pop(next(iter(_thumbnails)))
    return _thumbnails[key]


def decoded(data: bytes) -> Image.Image | None:
    """The picture of encoded bytes; None where they cannot be decoded."""
    try:
        return decode_image(data)
    except SourceError:
        return None


def _enlarged(data: bytes, picture: Image.Image) -> Thumbnail:
    scale = min(3, SHOWN // max(picture.size))
    mime = _shown_as(data) if len(data) <= SHOWN_AS_STORED else None
    uri = data_uri(data, mime) if mime else data_uri(_encoded(picture, "PNG"), "image/png")
    return Thumbnail(uri, picture.width * scale, picture.height * scale, True)


def _shown_as(data: bytes) -> str | None:
    """The MIME type of bytes that every browser shows; None for other formats."""
    try:
        with Image.open(BytesIO(data)) as image:
            return SHOWN_BYTES.get(image.format or "")
    except DECODING_ERRORS:
        return None


def _reduced(picture: Image.Image) -> Thumbnail:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    scale = SHOWN / max(small.size)
    uri = data_uri(_encoded(small, "WEBP", quality=80, method=4), "image/webp")
    return Thumbnail(uri, max(1, round(small.width * scale)), max(1, round(small.height * scale)), False)


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data: bytes, mime: str) -> str:
    """The bytes as a `data:` URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


# Figures


@dataclass(frozen=True)
class Point:
    """A place in a view box."""

    x: float
    y: float


@dataclass(frozen=True)
class Circle:
    """Diff-II's circle: sources a and b at the angle alpha, the result at the turn phi from a, away from b.

    Drawn with both sources at the top, around the middle; `between`: the result lies on the short arc.
    """

    size: int
    center: float
    radius: float
    a: Point
    b: Point
    result: Point
    alpha: float
    phi: float
    between: bool


def circle(alpha: float, phi: float, size: int = 84) -> Circle:
    """The figure for angles in radians."""
    center, radius = size / 2, size / 2 - 13
    first = math.pi / 2 + alpha / 2

    def at(angle: float) -> Point:
        return Point(round(center + radius * math.cos(angle), 1), round(center - radius * math.sin(angle), 1))

    between = phi >= math.tau - alpha
    places = (at(first), at(first - alpha), at(first + phi))
    return Circle(size, center, radius, *places, math.degrees(alpha), math.degrees(phi), between)


@dataclass(frozen=True)
class Trajectory:
    """GeNIe-Ada's distances d_k over the noise ratios; the step before the chosen level is the largest jump."""

    width: int
    height: int
    points: tuple[Point, ...]
    levels: tuple[float, ...]
    distances: tuple[float, ...]
    chosen: int | None
    zero: float

    @property
    def line(self) -> str:
        """The points as the attribute of a polyline."""
        return line(self.points)


@dataclass(frozen=True)
class Span:
    """A range of values that a figure's axis covers."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


@dataclass(frozen=True)
class Box:
    """The size of a figure."""

    width: int
    height: int


def trajectory(
    levels: Sequence[float], distances: Sequence[float], chosen: float | None, box: Box, y: Span | None = None
) -> Trajectory | None:
    """The figure of one row; None where the two lists do not fit together. `y` lets many rows share an axis."""
    if len(levels) != len(distances) or len(levels) < 2:
        return None
    width, height, pad, foot = box.width, box.height, 10, 16
    x, y = Span(min(levels), max(levels)), y or Span(min(0.0, *distances), max(0.0, *distances))

    def up(value: float) -> float:
        return round(height - foot - pad / 2 - y.share(value) * (height - foot - 1.5 * pad), 1)

    across = [round(pad + x.share(level) * (width - 2 * pad), 1) for level in levels]
    points = [Point(place, up(d)) for place, d in zip(across, distances, strict=True)]
    marked = None if chosen is None else min(range(len(levels)), key=lambda i: abs(levels[i] - chosen))
    return Trajectory(width, height, tuple(points), tuple(levels), tuple(distances), marked, up(0.0))


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram; `share` of the tallest one, in [0, 1]."""

    name: str
    count: int
    share: float


def bars(names: Sequence[str], counts: Sequence[int]) -> tuple[Bar, ...]:
    """The bars of named counts."""
    top = max(counts, default=0) or 1
    return tuple(Bar(name, count, round(count / top, 4)) for name, count in zip(names, counts, strict=True))


def histogram(values: Sequence[float], low: float, high: float, bins: int, unit: str = "") -> tuple[Bar, ...]:
    """Counts of values in equal bins over [low, high]; a value outside counts in the nearest bin."""
    counts, width = [0] * bins, (high - low) / bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / width)))] += 1
    return bars([f"{low + i * width:.0f} to {low + (i + 1) * width:.0f}{unit}" for i in range(bins)], counts)


@dataclass(frozen=True)
class Curve:
    """A loss curve: `raw` is every point, `smooth` a running mean."""

    width: int
    height: int
    raw: str
    smooth: str
    first: float
    last: float
    steps: int


def curve(steps: Sequence[int], losses: Sequence[float], at_most: int = 240) -> Curve | None:
    """The figure of a fit's losses; None for fewer than two finite ones. Long curves are thinned."""
    known = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    if len(known) < 2:
        return None
    known = known[:: math.ceil(len(known) / at_most)] + known[-1:]
    width, height = 320, 84
    x = Span(known[0][0], known[-1][0])
    y = Span(min(loss for _, loss in known), max(loss for _, loss in known))
    losses, reach = [loss for _, loss in known], max(1, len(known) // 12)
    means = [fmean(losses[max(0, i - reach) : i + reach + 1]) for i in range(len(losses))]

    def place(step: float, loss: float) -> Point:
        return Point(round(4 + x.share(step) * (width - 8), 1), round(height - 4 - y.share(loss) * (height - 8), 1))

    raw = line([place(step, loss) for step, loss in known])
    smooth = line([place(step, mean) for (step, _), mean in zip(known, means, strict=True)])
    return Curve(width, height, raw, smooth, means[0], means[-1], known[-1][0])


def line(points: Sequence[Point]) -> str:
    """Points as the attribute of a polyline."""
    return " ".join(f"{point.x:g},{point.y:g}" for point in points)

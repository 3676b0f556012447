"""Images inside a page: stored bytes as they are where they are small, otherwise small WebP pictures, as data URIs."""

import base64
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import UNREADABLE, decode_image, source_id

SMALL = 64
THUMBNAIL = 160
SHOWN = 128
SHOWN_AS_STORED = 16_000  # bytes of a small picture that goes into a page as it is
KEPT = 4096  # pictures; none is larger than that
SHOWN_BYTES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Thumbnail:
    """A picture for a page. `width` and `height` are CSS pixels; `pixelated` ones are enlarged without smoothing."""

    uri: str
    width: int
    height: int
    pixelated: bool


_made: dict[str, Thumbnail | None] = {}


def thumbnail(data: bytes) -> Thumbnail | None:
    """The picture of encoded bytes; None where they cannot be decoded. The last ones are remembered."""
    key = source_id(data)
    if key not in _made:
        _made[key] = _thumbnail(data)
        while len(_made) > KEPT:
            _made.pop(next(iter(_made)))
    return _made[key]


def _thumbnail(data: bytes) -> Thumbnail | None:
    try:
        picture = decode_image(data)
    except SourceError:
        return None
    return _enlarged(data, picture) if max(picture.size) <= SMALL else _reduced(picture)


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
    except UNREADABLE:
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

"""Encoded images: their ids, safe decoding, encoding with a statement of origin, and likeness.

A perceptual hash keeps most of its bits under re-encoding, resizing and small changes of light.
"""

import hashlib
import logging
import re
import struct
import warnings
import zlib
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from PIL import features as pillow_features
from PIL.PngImagePlugin import PngInfo

from diffaug_datasets.core.errors import SourceError

MAX_PIXELS = 89_478_485
MAX_SIDE = 65_535  # JPEG's own; a longer side makes huge tables of every resize
MAX_BYTES = 2**31 - 2  # of one value in an Arrow file
RGB_BYTES = 4  # of a pixel in a decoded picture, as Pillow keeps it
PIXEL_BYTES = {"png": 1.7, "webp": 1.2}  # of photographs, lossless
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
LONG_TEXT, ALL_TEXT = 1 << 20, 64 << 20  # bytes unpacked: of one text that Pillow reads, of all that we look through
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, AttributeError),
    *(ArithmeticError, MemoryError, RuntimeError, AssertionError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)

INSTEAD = (  # what files that only look like images begin with, in lower case
    (b"version https://git-lfs", "a Git LFS pointer instead of the image (`git lfs pull` fetches it)"),
    (b"/annex/objects/", "a git-annex pointer instead of the image (`git annex get` fetches it)"),
    (b"<!doctype html", "a web page (HTML) instead of an image"),
    (b"<html", "a web page (HTML) instead of an image"),
    (b"<svg", "an SVG drawing, which has no pixels"),
    (b"<?xml", "XML text instead of an image"),
    (b'{"', "JSON text instead of an image"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript document"),
    (b"pk\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8bps", "a Photoshop document"),
    (b"\0\0\0\x0cjp", "a JPEG 2000 image, which is not read"),
)
HEIC = "a HEIC image, which is read where pillow-heif is installed (`pip install pillow-heif`)"
AVIF = "an AVIF image, which Pillow reads from 11.3 on (`pip install -U pillow`)"
BRANDS = {  # what follows `ftyp`: the format, and what to say where it is not read
    **dict.fromkeys((b"avif", b"avis"), ("AVIF", AVIF)),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"), ("HEIF", HEIC)),
}
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WEBP", b"BM": "BMP"}
IDENTIFIER = re.compile(r"<dc:identifier>([^<]{1,200})</dc:identifier>")
HASH_SIDE = 32  # pixels of the grey picture that a perceptual hash is made of

DigitalSourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its remarks on odd files reach standard error
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.", append=True)


class BadImage(SourceError):
    """An image that cannot be used: its `name`, the `reason` in a few words, and what to do (`advice`)."""

    def __init__(self, name: str, reason: str, advice: str = "replace or remove it") -> None:
        super().__init__(f"{name}: {reason}; {advice}.")
        self.name, self.reason, self.advice = name, reason, advice

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str, str]]:
        return BadImage, (self.name, self.reason, self.advice)  # so that it comes back from another process


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read here: AVIF where Pillow was built with it, HEIF where pillow-heif is installed."""
    names = list(FORMATS)
    if pillow_features.check("avif"):
        names.append("AVIF")
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
        names.append("HEIF")
    return tuple(names)


def source_id(data: bytes) -> str:
    """sha256 (64 hex digits) of the encoded bytes: the id of a real image."""
    return hashlib.sha256(data).hexdigest()


def pixel_sha256(image: Image.Image) -> str:
    """sha256 over width and height (big-endian uint32 each) and the RGB bytes, row by row."""
    hasher = hashlib.sha256(struct.pack(">II", *image.size))
    hasher.update((image if image.mode == "RGB" else image.convert("RGB")).tobytes())
    return hasher.hexdigest()


def format_of(data: bytes) -> str:
    """`png`, `jpeg`, `webp`, ... of encoded bytes.

    Raises:
        SourceError: they are no image.
    """
    try:
        with _opened(data, "image") as image:
            return str(image.format).lower()
    except DECODING_ERRORS:
        raise SourceError("an image changed while it was read; plan again.") from None


def pixels_of(data: bytes) -> int:
    """Pixels of an encoded image as its header states them; 0 where there is none to read."""
    try:
        with Image.open(BytesIO(data), formats=formats()) as image:
            return image.width * image.height
    except DECODING_ERRORS:
        return 0


def picture_bytes(image: Image.Image) -> int:
    """Bytes that a decoded RGB picture takes in memory."""
    return RGB_BYTES * image.width * image.height


def reading_bytes(encoded: int, pixels: int) -> int:
    """Bytes in memory while an image is read: its own, and those of the decoded picture and of one copy."""
    return encoded + 2 * RGB_BYTES * pixels


def check_image(data: bytes, name: str = "image") -> None:
    """Decode the pixels once and drop them: what passes, `decode_image` reads.

    A JPEG is decoded at an eighth of its size, for which all of its data is read too. Memory: one picture as its file
    holds it, no converted copy.

    Raises:
        BadImage: as `decode_image`.
    """
    try:
        image = _opened(data, name)
        if image.format == "PNG":
            image.verify()  # the checksums, which decoding passes over
            image = _opened(data, name)
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (1, 1))
        image.load()
        _rgb(_upright(image if image.mode.startswith("I") else image.crop((0, 0, 1, 1))), name)
    except DECODING_ERRORS as error:
        raise _unreadable(name, data, error) from None


def decode_image(data: bytes, name: str = "image") -> Image.Image:
    """The picture as 8-bit RGB, upright, without metadata.

    EXIF orientation is applied; palette, grey, CMYK and 16-bit modes are converted; transparency is laid over white;
    an animation, or a file of several pictures (MPO), gives its first. Colour profiles are ignored, as in the papers'
    own loaders.

    Raises:
        BadImage: unreadable, truncated, larger than MAX_PIXELS, or of a depth that has no 8-bit form.
        SourceError: more memory is needed than there is.
    """
    picture, _ = decode_with_format(data, name)
    try:
        return _bare(picture)
    except MemoryError as error:
        raise _unreadable(name, data, error) from None


def decode_with_format(data: bytes, name: str = "image") -> tuple[Image.Image, str]:
    """As `decode_image`, metadata left as it is, with the name of the format: `png`, `jpeg`, `webp`, ..."""
    try:
        image = _opened(data, name)
        image.load()
        return _rgb(_upright(image), name), str(image.format).lower()
    except DECODING_ERRORS as error:
        raise _unreadable(name, data, error) from None


def has_long_text(data: bytes) -> bool:
    """Whether a PNG carries a text that Pillow, left to itself, refuses for its length."""
    try:
        return _without_long_texts(data) is not data
    except ValueError:
        return True


def encode_image(image: Image.Image, format: Literal["png", "webp"], xmp: str | None = None) -> bytes:
    """The RGB pixels as PNG (zlib level 1) or lossless WebP (method 0), with an XMP packet and no other metadata.

    The same pixels and packet give the same bytes on the same libraries.

    Raises:
        SourceError: a format that is neither.
    """
    bare, buffer = _bare(image.convert("RGB")), BytesIO()
    if format == "png":
        info = PngInfo()
        if xmp is not None:
            info.add_itxt("XML:com.adobe.xmp", xmp)
        bare.save(buffer, "PNG", compress_level=1, pnginfo=info)
    elif format == "webp":
        packet = {} if xmp is None else {"xmp": xmp.encode()}
        bare.save(buffer, "WEBP", lossless=True, quality=0, method=0, **packet)
    else:
        raise SourceError(f"image_format: got {format!r}, expected png or webp.")
    return buffer.getvalue()


def xmp_packet(identifier: str, digital_source_type: DigitalSourceType) -> str:
    """An XMP packet with the IPTC digital source type and the image's identifier (`dc:identifier`).

    `trainedAlgorithmicMedia`: made from text alone; `compositeWithTrainedAlgorithmicMedia`: made from a real photo.
    """
    kind = f"http://cv.iptc.org/newscodes/digitalsourcetype/{digital_source_type}"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<dc:identifier>{escape(identifier)}</dc:identifier>"
        f"<Iptc4xmpExt:DigitalSourceType>{escape(kind)}</Iptc4xmpExt:DigitalSourceType>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def xmp_identifier(data: bytes) -> str:
    """The `dc:identifier` of an image's XMP packet, as `xmp_packet` writes it; '' where it has none.

    Raises:
        BadImage: the bytes are no image that can be read.
    """
    try:
        with _opened(data, "image") as image:
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
    except DECODING_ERRORS as error:
        raise _unreadable("image", data, error) from None
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    found = IDENTIFIER.search(text)
    return found[1] if found else ""


def perceptual_hash(image: Image.Image, frequencies: int = 8) -> NDArray[np.bool_]:
    """Bits [frequencies^2]: which low frequencies of the 32 x 32 grey picture lie above their median.

    Implements the DCT hash of Zauner 2010 (Implementation and Benchmarking of Perceptual Image Hash Functions), as the
    pHash library's common re-implementations do: the 8 x 8 lowest coefficients, their median taken without the mean.
    More `frequencies` (up to 32) tell more pictures apart and survive less. A mirrored or cropped picture has another
    hash.
    """
    grey = np.asarray(image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    basis = _cosines(frequencies)
    low = (basis @ grey @ basis.T).ravel()
    bits: NDArray[np.bool_] = low > np.median(low[1:])
    return bits


def _opened(data: bytes, name: str) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise BadImage(name, f"got a file of {len(data):,} bytes, expected less than 2 GiB", "make it smaller first")
    image = Image.open(BytesIO(_without_long_texts(data)), formats=formats())
    width, height = image.size
    if width * height > MAX_PIXELS:
        reason = f"got {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all"
        raise BadImage(name, reason, "make it smaller first")
    if max(width, height) > MAX_SIDE:
        reason = f"got {width} x {height} pixels, expected sides of at most {MAX_SIDE:,}"
        raise BadImage(name, reason, "cut it into parts first")
    return image


def _without_long_texts(data: bytes) -> bytes:
    """A PNG without compressed texts of more than LONG_TEXT bytes; anything else as it is. No text is kept unpacked.

    Raises:
        ValueError: its texts unpack to more than ALL_TEXT bytes.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, begin, place, total = [], 0, 8, 0
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in (b"zTXt", b"iTXt") and end <= len(data):
            length = _text_length(data[place + 4 : place + 8], data[place + 8 : end - 4])
            total += length
            if total > ALL_TEXT:
                raise ValueError(f"texts unpack to more than {ALL_TEXT >> 20} MB")
            if length > LONG_TEXT:
                kept.append(data[begin:place])
                begin = end
        place = end
    return b"".join((*kept, data[begin:])) if kept else data


def _text_length(kind: bytes, payload: bytes) -> int:
    """Bytes that a compressed text chunk unpacks to, counted to a little above ALL_TEXT; 0 where it is not packed."""
    rest = payload.partition(b"\0")[2]
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return 0
        rest = b"\0" + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    unpacker, length = zlib.decompressobj(), 0
    try:
        for place in range(1, len(rest), 1 << 16):
            packed = rest[place : place + (1 << 16)]
            while packed and length <= ALL_TEXT:
                length += len(unpacker.decompress(packed, LONG_TEXT))
                packed = unpacker.unconsumed_tail
    except zlib.error:
        return length
    return length


def _unreadable(name: str, data: bytes, error: BaseException) -> SourceError:
    if isinstance(error, MemoryError):
        return SourceError(f"{name}: decoding it takes more memory than is free; free some, or make it smaller first.")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return BadImage(name, f"got an image of more than {MAX_PIXELS:,} pixels", "make it smaller first")
    if "texts unpack" in str(error) or "MAX_TEXT" in str(error):
        return BadImage(name, f"its texts (PNG metadata) unpack to more than {ALL_TEXT >> 20} MB", "remove them")
    return BadImage(name, _reason(data, str(error)))


def _reason(data: bytes, error: str) -> str:
    """Why bytes that do not decode are no picture, judged by how they begin and end."""
    if not data:
        return "empty (0 bytes)"
    if data.count(0) == len(data):
        return f"nothing but zeros ({len(data):,} bytes)"
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if instead := next((what for start, what in INSTEAD if head.startswith(start)), None):
        return instead
    if data[4:8] == b"ftyp":
        container, missing = BRANDS.get(data[8:12], ("", "a video instead of an image"))
        if container not in formats():
            return missing
        return f"cut short or damaged, its {container} data cannot be decoded"
    kind = next((kind for start, kind in STARTS.items() if data.startswith(start)), None)
    end = data[-64:].rstrip(b"\0")
    cut = {
        "JPEG": "truncated" in error or b"\xff\xd9" not in data[-64:],
        "PNG": b"IEND" not in data[-64:],
        "GIF": not end.endswith(b";"),
        "WEBP": int.from_bytes(data[4:8], "little") + 8 > len(data),
        None: "truncated" in error,
    }.get(kind, int.from_bytes(data[2:6], "little") > len(data))
    if cut:
        return "cut short, the file ends before the picture does"
    if kind:
        return f"damaged, its {kind} data cannot be decoded"
    return f"not a readable image, expected one of {', '.join(formats())}"


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF counts as none."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)  # else it would be copied for nothing
        return ImageOps.exif_transpose(image) if turned else image
    except DECODING_ERRORS:
        return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise BadImage(name, "got 32-bit float pixels, expected 8 or 16 bits", "convert it first")
    if image.mode.startswith("I"):
        return _eight_bit(image, name).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as 8-bit grey: 0 stays 0, 65535 becomes 255."""
    wide = image.convert("I")
    low, high = wide.getextrema()
    if not 0 <= int(low) <= int(high) <= 65535:  # type: ignore[arg-type]
        raise BadImage(name, "got 32-bit pixels, expected 8 or 16 bits", "convert it first")
    return wide.point(lambda value: value * (1 / 257)).convert("L")


def _bare(image: Image.Image) -> Image.Image:
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare


@cache
def _cosines(frequencies: int) -> NDArray[Any]:
    """The first rows of the unnormalised DCT-II over 32 points [frequencies 32]."""
    places = np.arange(HASH_SIDE) + 0.5
    return np.cos(np.pi * np.arange(frequencies)[:, None] * places / HASH_SIDE)

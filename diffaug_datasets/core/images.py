"""Encoded images: their identity, safe decoding, and encoding with a statement of where the pixels come from."""

import hashlib
import struct
import zlib
from io import BytesIO
from typing import Literal
from xml.sax.saxutils import escape

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from diffaug_datasets.core.errors import SourceError

MAX_PIXELS = 89_478_485
MAX_SIDE = 65_535  # JPEG's own; a longer side makes huge tables of every resize
MAX_BYTES = 2**31 - 2  # of one value in an Arrow file
RGB_BYTES = 4  # of a pixel in a decoded picture, as Pillow keeps it
PIXEL_BYTES = {"png": 1.7, "webp": 1.2}  # of photographs, lossless
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, AttributeError),
    *(ArithmeticError, MemoryError, RuntimeError, AssertionError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)

DigitalSourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]


def source_id(data: bytes) -> str:
    """sha256 (64 hex digits) of the encoded bytes: who a real image is."""
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
        with Image.open(BytesIO(data)) as image:
            return str(image.format).lower()
    except UnidentifiedImageError:
        raise SourceError("an image changed while it was read; plan again.") from None


def pixels_of(data: bytes) -> int:
    """Pixels of an encoded image as its header states them; 0 where there is none to read."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except UNREADABLE:
        return 0


def picture_bytes(image: Image.Image) -> int:
    """Bytes that a decoded RGB picture takes in memory."""
    return RGB_BYTES * image.width * image.height


def check_image(data: bytes, name: str = "image") -> None:
    """Look at the header alone; the pixels are decoded later.

    Raises:
        SourceError: not a readable image of a known format, or larger than MAX_PIXELS.
    """
    try:
        image = _opened(data, name)
        image.verify()
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def decode_image(data: bytes, name: str = "image") -> Image.Image:
    """The picture as 8-bit RGB, upright, without metadata.

    EXIF orientation is applied; palette, grey, CMYK and 16-bit modes are converted; transparency is laid over white;
    an animation gives its first frame. Colour profiles are ignored, as in the papers' own loaders.

    Raises:
        SourceError: unreadable, truncated, larger than MAX_PIXELS, or of a depth that has no 8-bit form.
    """
    try:
        image = _opened(data, name)
        image.load()
        return _bare(_rgb(_upright(image), name))
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def _opened(data: bytes, name: str) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise SourceError(
            f"{name}: got a file of {len(data):,} bytes, expected less than 2 GiB; make it smaller first."
        )
    image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise SourceError(
            f"{name}: got {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all; make it smaller first."
        )
    if max(width, height) > MAX_SIDE:
        raise SourceError(
            f"{name}: got {width} x {height} pixels, expected sides of at most {MAX_SIDE:,}; cut it into parts first."
        )
    return image


def _unreadable(name: str, error: BaseException) -> SourceError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return SourceError(f"{name}: got an image of more than {MAX_PIXELS:,} pixels; make it smaller first.")
    kinds = ", ".join(FORMATS)
    return SourceError(f"{name}: not a readable image, expected an intact one of {kinds}; replace or remove it.")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF counts as none."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)  # else it would be copied for nothing
        return ImageOps.exif_transpose(image) if turned else image
    except UNREADABLE:
        return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise SourceError(f"{name}: got 32-bit float pixels, expected 8 or 16 bits; convert it first.")
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
        raise SourceError(f"{name}: got 32-bit pixels, expected 8 or 16 bits; convert it first.")
    return wide.point(lambda value: value * (1 / 257)).convert("L")


def _bare(image: Image.Image) -> Image.Image:
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare


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


def xmp_packet(row_id: str, digital_source_type: DigitalSourceType) -> str:
    """An XMP packet with the IPTC digital source type and the row id (`dc:identifier`).

    `trainedAlgorithmicMedia`: made from text alone; `compositeWithTrainedAlgorithmicMedia`: made from a real photo.
    """
    kind = f"http://cv.iptc.org/newscodes/digitalsourcetype/{digital_source_type}"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<dc:identifier>{escape(row_id)}</dc:identifier>"
        f"<Iptc4xmpExt:DigitalSourceType>{escape(kind)}</Iptc4xmpExt:DigitalSourceType>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )

"""Pictures of every mode and kind of damage: decoded right, or refused with the true reason; encoding keeps pixels."""

import hashlib
import pickle
import struct
import sys
import zlib
from io import BytesIO
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffaug_datasets.core import images
from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import (
    BadImage,
    check_image,
    decode_image,
    encode_image,
    format_of,
    formats,
    has_long_text,
    pixel_sha256,
    source_id,
    xmp_packet,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(size=(5, 3)) -> Image.Image:
    return Image.frombytes("RGB", size, bytes(i % 251 for i in range(size[0] * size[1] * 3)))


def test_ids_are_plain_sha256():
    assert source_id(b"abc") == hashlib.sha256(b"abc").hexdigest()
    expected = hashlib.sha256(struct.pack(">II", 5, 3) + picture().tobytes()).hexdigest()
    assert pixel_sha256(picture()) == expected
    assert pixel_sha256(Image.new("RGB", (2, 6))) != pixel_sha256(Image.new("RGB", (6, 2)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_come_back_as_they_were(kind):
    decoded = decode_image(encoded(picture(), kind))
    assert (decoded.mode, decoded.tobytes()) == ("RGB", picture().tobytes())


def test_exif_orientation_is_applied_and_forgotten():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(picture((16, 8)), "JPEG", exif=exif))
    assert decoded.size == (8, 16)
    assert not decoded.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_none():
    data = encoded(picture((16, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data).size == (16, 8)


def test_cmyk_becomes_rgb():
    decoded = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = decoded.getpixel((4, 4))
    assert red > 240 and green < 15 and blue < 15


def test_grey_becomes_three_equal_channels():
    assert decode_image(encoded(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)


def test_one_bit_becomes_black_and_white():
    assert decode_image(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image)).getpixel((1, 0)) == (0, 0, 255)
    assert decode_image(encoded(image, transparency=1)).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_white(mode):
    clear = Image.new(mode, (1, 1), (0,) * len(mode))
    assert decode_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new(mode, (1, 1), (*(0,) * (len(mode) - 1), 128))
    assert decode_image(encoded(half)).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(value, grey, kind):
    image = Image.frombytes("I;16", (1, 1), struct.pack("<H", value))
    assert decode_image(encoded(image, kind)).getpixel((0, 0)) == (grey,) * 3


def test_depths_without_an_eight_bit_form_are_refused():
    with pytest.raises(SourceError) as error:
        decode_image(encoded(Image.new("F", (1, 1), 0.5), "TIFF"), "a/x.tif")
    assert str(error.value) == "a/x.tif: got 32-bit float pixels, expected 8 or 16 bits; convert it first."
    with pytest.raises(SourceError, match="got 32-bit pixels, expected 8 or 16 bits"):
        decode_image(encoded(Image.new("I", (1, 1), 70_000), "TIFF"))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


JPEG = encoded(picture().resize((200, 200)), "JPEG")
READ = ", ".join(formats())
REASONS = {
    "nothing": (b"", "empty (0 bytes)"),
    "zeros": (bytes(2000), "nothing but zeros (2,000 bytes)"),
    "text": (b"no image", f"not a readable image, expected one of {READ}"),
    "half a PNG": (encoded(picture())[:40], "cut short, the file ends before the picture does"),
    "the head of a JPEG": (JPEG[:30], "cut short, the file ends before the picture does"),
    "most of a JPEG": (JPEG[:-300], "cut short, the file ends before the picture does"),
    "most of a GIF": (encoded(picture((90, 90)), "GIF")[:-200], "cut short, the file ends before the picture does"),
    "most of a WebP": (encoded(picture((90, 90)), "WEBP")[:-20], "cut short, the file ends before the picture does"),
    "most of a BMP": (encoded(picture(), "BMP")[:-20], "cut short, the file ends before the picture does"),
    "most of a PPM": (encoded(picture(), "PPM")[:-20], "cut short, the file ends before the picture does"),
    "a damaged PNG": (
        encoded(picture())[:45] + b"xxxxxx" + encoded(picture())[51:],
        "damaged, its PNG data cannot be decoded",
    ),
    "an LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a Git LFS pointer instead of the image (`git lfs pull` fetches it)",
    ),
    "an annex pointer": (
        b"/annex/objects/SHA256E-s9--0.jpg\n",
        "a git-annex pointer instead of the image (`git annex get` fetches it)",
    ),
    "HTML": (b"\xef\xbb\xbf\n <!DOCTYPE HTML><html>", "a web page (HTML) instead of an image"),
    "a server's XML": (b"<?xml version='1.0'?><Error>", "XML text instead of an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document"),
    "a ZIP": (b"PK\3\4" + bytes(range(99)), "a ZIP archive"),
    "a video": (b"\0\0\0\x18ftypmp42" + bytes(99), "a video instead of an image"),
}


@pytest.mark.parametrize("case", REASONS)
@pytest.mark.parametrize("look", [decode_image, check_image])
def test_what_is_no_picture_is_told_by_its_true_reason(look, case):
    data, reason = REASONS[case]
    with pytest.raises(BadImage) as error:
        look(data, "birds/x.jpg")
    assert str(error.value) == f"birds/x.jpg: {reason}; replace or remove it."
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # noqa: S301


@pytest.mark.skipif("HEIF" in formats(), reason="pillow-heif is installed")
def test_a_heic_photo_names_the_package_that_reads_it():
    with pytest.raises(BadImage, match=r"x.jpg: a HEIC image, .* \(`pip install pillow-heif`\); replace or remove it"):
        check_image(b"\0\0\0\x18ftypheic" + bytes(range(99)), "x.jpg")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_cut_anywhere_is_seen_by_the_look_and_by_the_decoder(options):
    """The look decodes an eighth of the size; wherever the file ends, both agree."""
    noise = Image.effect_noise((120, 90), 70).convert("RGB")
    data = encoded(noise, "JPEG", **options)
    check_image(data)
    told = set()
    for end in range(4, len(data), max(1, len(data) // 90)):
        answers = [refusal(look, data[:end]) for look in (check_image, decode_image)]
        assert answers[0] == answers[1], end
        told.add(answers[0])
    assert told == {"cut short, the file ends before the picture does"}


def test_the_look_compares_the_checksums_of_a_png():
    data = encoded(picture())
    place = data.index(b"IEND") - 8
    check_image(data)
    with pytest.raises(BadImage, match="damaged, its PNG data cannot be decoded"):
        check_image(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def refusal(look, data) -> str:
    try:
        look(data)
    except BadImage as error:
        return error.reason
    return ""


def text_chunks(*texts: tuple[bytes, int]) -> bytes:
    """A small PNG with compressed texts of a kind (zTXt, iTXt) and so many bytes, before and after its pixels."""
    data = encoded(picture())
    chunks = []
    for kind, size in texts:
        head = b"a\0\0" if kind == b"zTXt" else b"a\0\1\0\0\0"
        body = kind + head + zlib.compress(b"node " * (size // 5))
        chunks.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return data[:33] + chunks[0] + data[33:-12] + b"".join(chunks[1:]) + data[-12:]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("look", [decode_image, check_image])
def test_a_png_is_as_sound_as_its_pixels_whatever_its_texts(look, kind):
    data = text_chunks((kind, 1_500_000), (b"zTXt", 100), (kind, 3_000_000))
    assert has_long_text(data) and not has_long_text(text_chunks((kind, 900_000)))
    assert look(data) is None or look(data).tobytes() == picture().tobytes()
    assert format_of(data) == "png"
    with pytest.raises(BadImage, match=r"x: its texts \(PNG metadata\) unpack to more than 64 MB; remove them\."):
        look(text_chunks((kind, 30_000_000), (kind, 40_000_000)), "x")


def test_a_photo_of_two_lenses_gives_its_first_picture():
    noise = [Image.effect_noise((48, 40), 60 + n).convert("RGB") for n in range(2)]
    data = encoded(noise[0], "MPO", save_all=True, append_images=noise[1:])
    check_image(data)
    assert format_of(data) == "mpo"
    assert decode_image(data).tobytes() == decode_image(encoded(noise[0], "JPEG")).tobytes()


@pytest.mark.skipif("AVIF" not in formats(), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_can():
    data = encoded(picture((32, 24)), "AVIF")
    check_image(data)
    assert decode_image(data).size == (32, 24)
    for damaged in (data[:100], data[:-60], data[:60] + bytes(80) + data[140:]):
        with pytest.raises(BadImage, match="x: "):
            decode_image(damaged, "x")


def test_too_little_memory_is_no_fault_of_the_image(monkeypatch):
    def full(*given, **named):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(SourceError, match="takes more memory than is free") as error:
        check_image(JPEG)
    assert not isinstance(error.value, BadImage)


NOISE = r"""
import io, struct, warnings
from PIL import Image
from diffaug_datasets.core.images import check_image, decode_image
def saved(image, kind, **more):
    sink = io.BytesIO(); image.save(sink, kind, **more); return sink.getvalue()
noise = Image.effect_noise((48, 40), 60)
cut = b"Exif\0\0MM\0*" + bytes.fromhex("00000008 0002 0112000300000001 00060000 010f000200000040 00007fff 00000000")
ones = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8)]
tags = [*ones, (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 99), (279, 4, 1, 64)]
for data in (
    saved(noise.convert("RGB"), "JPEG", exif=cut),
    saved(noise.convert("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    saved(noise.convert("P"), "PNG", transparency=bytes(range(256))),
    b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(99),
):
    for look in (check_image, decode_image):
        try:
            look(data)
        except Exception as error:
            print(error)
warnings.warn("ours")
"""


def test_odd_files_make_no_noise_and_our_own_warnings_are_heard(shell):
    said = shell(sys.executable, "-c", NOISE)
    assert said.code == 0 and said.err.splitlines()[0].endswith("UserWarning: ours"), said.err


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims to be large."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("look", [decode_image, check_image])
def test_huge_images_are_refused_before_their_pixels_are_read(look):
    with pytest.raises(SourceError) as error:
        look(png_header(10_000, 9_000), "x.png")
    assert str(error.value) == (
        "x.png: got 10000 x 9000 pixels, expected at most 89,478,485 in all; make it smaller first."
    )
    with pytest.raises(SourceError) as error:
        look(png_header(60_000, 60_000), "x.png")
    assert str(error.value) == "x.png: got an image of more than 89,478,485 pixels; make it smaller first."


def test_the_limit_is_pillows_own():
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS


SEEDS = [encoded(picture((9, 7)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6))
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_one_sentence(data, changes):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        assert decode_image(bytes(damaged)).mode == "RGB"
    except SourceError as error:
        assert str(error).startswith("image: ")


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_encoding_keeps_pixels_carries_the_packet_and_nothing_else(kind):
    image = picture()
    image.info.update(icc_profile=b"x", dpi=(72, 72), comment=b"secret")
    packet = xmp_packet("0123abcd", "trainedAlgorithmicMedia")
    data = encode_image(image, kind, packet)
    assert decode_image(data).tobytes() == picture().tobytes()
    opened = Image.open(BytesIO(data))
    assert "icc_profile" not in opened.info and "dpi" not in opened.info and "comment" not in opened.info
    stored = opened.info["xmp"]
    assert (stored if isinstance(stored, str) else stored.decode()) == packet
    assert data == encode_image(image, kind, packet)
    assert decode_image(encode_image(image, kind)).tobytes() == picture().tobytes()


def test_png_keeps_the_packet_in_the_chunk_that_readers_expect():
    assert b"iTXtXML:com.adobe.xmp\0" in encode_image(picture(), "png", "packet")


def test_other_formats_are_refused():
    with pytest.raises(SourceError, match=r"image_format: got 'jpeg', expected png or webp\."):
        encode_image(picture(), "jpeg")


@pytest.mark.parametrize("kind", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_the_packet_is_xml_with_source_type_and_escaped_identifier(kind):
    root = ElementTree.fromstring(xmp_packet("a<b&", kind))
    values = {element.tag.rsplit("}", 1)[1]: element.text for element in root.iter()}
    assert values["identifier"] == "a<b&"
    assert values["DigitalSourceType"] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"

"""Pictures in a page: small ones untouched, large ones small, broken ones no crash."""

import base64
from io import BytesIO

from PIL import Image

from diffaug_datasets.report import rendering
from diffaug_datasets.report.rendering import KEPT, SHOWN_AS_STORED, thumbnail


def encoded(width: int, height: int, kind: str) -> bytes:
    buffer = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def bytes_of(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def test_small_images_keep_their_bytes() -> None:
    data = encoded(28, 28, "PNG")
    shown = thumbnail(data)
    assert shown is not None and bytes_of(shown.uri) == data
    assert (shown.width, shown.height, shown.pixelated) == (84, 84, True)
    large = thumbnail(encoded(64, 48, "PNG"))
    assert large is not None and (large.width, large.height) == (128, 96)


def test_formats_that_browsers_do_not_show_become_png() -> None:
    shown = thumbnail(encoded(20, 20, "BMP"))
    assert shown is not None and shown.uri.startswith("data:image/png")


def test_large_images_become_small_webp() -> None:
    shown = thumbnail(encoded(800, 400, "JPEG"))
    assert shown is not None and not shown.pixelated and (shown.width, shown.height) == (128, 64)
    with Image.open(BytesIO(bytes_of(shown.uri))) as image:
        assert image.format == "WEBP" and image.size == (160, 80)


def test_what_is_no_image_is_none() -> None:
    assert thumbnail(b"no image") is None


def test_a_small_picture_in_a_large_file_is_encoded_anew_and_old_ones_are_forgotten() -> None:
    data = encoded(28, 28, "PNG") + bytes(SHOWN_AS_STORED)
    shown = thumbnail(data)
    assert shown is not None and len(shown.uri) < SHOWN_AS_STORED / 2
    for number in range(KEPT + 10):
        thumbnail(b"none" + number.to_bytes(4, "big"))
    assert len(rendering._thumbnails) == KEPT  # private: nothing else shows what is remembered

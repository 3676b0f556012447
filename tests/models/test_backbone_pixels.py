"""Pictures of every shape become a square in little memory, and ordinary ones to the bit as before."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import check_image, decode_image, encode_image
from diffaug_datasets.models import backbone
from diffaug_datasets.models.backbone import covering_size, preprocess
from diffaug_datasets.models.encoders import Encoder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (28, 28), (64, 64), (900, 31), (17, 640), (65, 64)])
@pytest.mark.parametrize("sides", [(64, 64), (128, 96)])
def test_cropping_first_is_at_most_one_grey_level_off(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], sides: tuple[int, int]
) -> None:
    image = noise(*size)
    usual = preprocess(image, "crop", *sides)
    monkeypatch.setattr(backbone, "MOST_PIXELS", 0)
    cropped = preprocess(image, "crop", *sides)
    levels = ((usual - cropped).abs() * 127.5).round()
    assert levels.max() <= 1 and (levels > 0).float().mean() < 0.3
    assert usual.shape == cropped.shape == (3, *sides)


@pytest.mark.parametrize("asked", [224, 512])
def test_the_long_side_is_torchvisions(asked: int) -> None:
    """torchvision.transforms.Resize: the image is rescaled to (size * height / width, size) if height > width."""
    for short in range(1, 400, 3):
        for long in range(short, 700):
            wanted = int(asked * long / short)
            assert covering_size((long, short), asked, asked) == (wanted, asked), (long, short)
            assert covering_size((short, long), asked, asked) == (asked, wanted), (short, long)


@pytest.mark.parametrize(
    ("size", "wanted"), [((500, 375), (170, 128)), ((375, 500), (96, 128)), ((300, 300), (128, 128))]
)
def test_a_picture_covers_what_is_no_square(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert covering_size(size, 128, 96) == wanted


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 65_535)])
@pytest.mark.parametrize("resize", ["crop", "bilinear", "bicubic", "lanczos"])
def test_thin_pictures_are_enlarged_in_little_memory(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], resize: backbone.Resize
) -> None:
    called = []
    whole = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *words: object, **named: object) -> Image.Image:
        called.append(size)
        assert max(size[0] * size[1], size[0] * image.height) <= backbone.MOST_PIXELS  # Pillow narrows or widens first
        return whole(image, size, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    found = preprocess(noise(*size), resize, 512, 512)
    assert found.shape == (3, 512, 512) and float(found.std()) > 0.01 and called


def test_the_middle_of_a_thin_picture_is_what_a_crop_shows() -> None:
    tall = np.zeros((60_000, 2, 3), dtype=np.uint8)
    tall[29_999:30_001] = 200
    assert float(preprocess(Image.fromarray(tall), "crop", 256, 256)[:, 128, 128].mean()) == pytest.approx(
        2 * 200 / 255 - 1, abs=0.02
    )


def test_an_encoder_sees_the_middle_of_a_thin_picture_in_little_memory() -> None:
    encoder = Encoder.load("tiny")
    thin, middle = noise(2, 60_000), noise(2, 60_000).crop((0, 29_900, 2, 30_100))
    tracemalloc.start()
    try:
        [seen], peak = encoder.image_features([thin]), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert float(seen @ encoder.image_features([middle])[0]) > 0.99
    assert peak < 64 << 20


def test_a_side_that_no_resize_bears_is_refused_by_name() -> None:
    data = encode_image(Image.new("RGB", (1, 70_000)), "png")
    for look in (check_image, decode_image):
        with pytest.raises(SourceError, match=r"^strip\.png: got 1 x 70000 pixels, expected sides of at most 65,535"):
            look(data, "strip.png")

"""Test images among the sources are found in every disguise that we plant, and different images are left alone."""

import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from hub.server import LoopbackHub
from PIL import Image, ImageOps
from small_release import made

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.data.real import RealSet, read_real
from diffaug_datasets.publish.leakage import find_leaks
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.publisher import publish

CLASSES = ("boot", "coat")


@pytest.fixture(scope="module")
def fashion() -> RealSet:
    return read_real("fashion")


def encoded(image: Image.Image, kind: str = "PNG", **words: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **words)
    return buffer.getvalue()


def mirrored_crop(image: Image.Image, share: float = 0.9) -> bytes:
    """The image mirrored, a corner of it cut out and enlarged again."""
    width, height = image.size
    box = (width * (1 - share), 0, width, height * share)
    return encoded(ImageOps.mirror(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def test_images(real: RealSet, step: int) -> dict[str, bytes]:
    assert real.test
    return {real.test.sources[i].id: real.read("test", i) for i in range(0, len(real.test), step)}


test_images.__test__ = False  # type: ignore[attr-defined]


def train_images(real: RealSet, step: int) -> dict[str, bytes]:
    return {real.train.sources[i].id: real.read("train", i) for i in range(0, len(real.train), step)}


def disguises(images: dict[str, bytes]) -> Iterator[tuple[str, str, bytes]]:
    for name, data in images.items():
        picture = decode_image(data)
        yield name, "same bytes", data
        yield name, "same pixels", encoded(picture, "BMP")
        yield name, "near copy", encoded(picture, "JPEG", quality=85)
        yield name, "mirrored copy", encoded(ImageOps.mirror(picture))
        yield name, "mirrored copy", mirrored_crop(picture)


def test_copies_are_found_and_named(fashion: RealSet) -> None:
    """Of 10 test images in 5 disguises each: all of the first four kinds, most of the mirrored crops."""
    test = test_images(fashion, 10)
    planted = list(disguises(dict(random.Random(0).sample(sorted(test.items()), 10))))
    found = find_leaks({f"{i:016d}": data for i, (_, _, data) in enumerate(planted)}, test)
    right = {int(leak.source) for leak in found if planted[int(leak.source)][0] == leak.test}
    missed = [how for number, (_, how, _) in enumerate(planted) if number not in right and number % 5 < 4]
    assert missed == []
    crops = sum(number % 5 == 4 for number in right)
    print(f"mirrored crops found: {crops} of 10")
    assert crops >= 7
    exact = [leak.how for leak in found if int(leak.source) % 5 < 2]
    assert exact == ["same bytes", "same pixels"] * 10


def false_alarms(real: RealSet, train: int, test: int) -> int:
    sources = train_images(real, train)
    found = find_leaks(sources, test_images(real, test))
    print(f"false alarms on Fashion-MNIST: {len(found)} of {len(sources)} sources")
    return len(found)


def test_different_images_raise_no_alarm(fashion: RealSet) -> None:
    assert false_alarms(fashion, 40, 10) == 0


@pytest.mark.full
def test_different_images_raise_hardly_an_alarm(fashion: RealSet) -> None:
    """All 2,000 training images against all 1,000 test images; one in a thousand is accepted."""
    assert false_alarms(fashion, 1, 1) <= 2


def test_a_release_with_test_images_is_refused_naming_each(hub: LoopbackHub, tmp_path: Path, fashion: RealSet) -> None:
    """A person's own folders, in which three test images came among the training images."""
    images = list(test_images(fashion, 100).values())
    other = list(train_images(fashion, 250).values())
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
    for number, data in enumerate(images):
        (folder / "test" / CLASSES[number % 2] / f"{number}.png").write_bytes(data)
    picture = decode_image(images[1])
    leaked = [images[0], encoded(picture, "JPEG", quality=90), mirrored_crop(decode_image(images[3]), 0.95)]
    for number, data in enumerate([*leaked, *other]):
        (folder / "train" / CLASSES[number % 2] / f"{number}.png").write_bytes(data)
    source = {"backbone": "tiny", "source": str(folder), "scores": {}, "include_test": True}
    run = made(tmp_path / "run", "imagefolder_full_txt2img", **source)
    with pytest.raises(PublishError, match="test-leak: 3 real training images show") as refused:
        publish(run, "org/own", PublishOptions(with_rights=True))
    for how in ("same bytes, 1.000", "near copy, 0.99", "mirrored copy, 0.99"):
        assert how in str(refused.value).replace("near copy, 1.00", "near copy, 0.99")
    assert not hub.writes()
    publish(run, "org/own", PublishOptions(with_rights=True, allow=("test-leak",)))
    assert "objection of the gate `test-leak`" in hub.files("org/own")["README.md"].decode()

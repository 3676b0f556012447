"""Test images among the sources are found in every disguise that we plant, and different images are left alone."""

import hashlib
import os
import random
import re
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from hub.server import LoopbackHub
from PIL import Image, ImageOps
from small_release import made

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.leakage import Features, Leak, Looks, find_leaks
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import RealSet, read_real

CLASSES = ("boot", "coat")


@pytest.fixture(scope="module")
def fashion() -> RealSet:
    return read_real("fashion")


@pytest.fixture(scope="module")
def features() -> Features:
    """What the packaged encoder sees."""
    encoder = Encoder.load("tiny")
    return lambda images: encoder.image_features(images).numpy()


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


def test_copies_are_found_and_named(fashion: RealSet, features: Features) -> None:
    """Of 10 test images in 5 disguises each: the first four kinds by every ground, most of the mirrored crops."""
    test = test_images(fashion, 10)
    planted = list(disguises(dict(random.Random(0).sample(sorted(test.items()), 10))))
    found = find_leaks({f"{i:016d}": data for i, (_, _, data) in enumerate(planted)}, test, features)
    grounds = {int(leak.source): named(leak) for leak in found if planted[int(leak.source)][0] == leak.test}
    crops = [grounds.pop(number, set()) for number in range(4, len(planted), 5)]
    assert grounds == {number: expected(how) for number, (_, how, _) in enumerate(planted) if number % 5 < 4}
    print(f"mirrored crops found: {sum(map(bool, crops))} of 10")
    assert sum("mirrored copy" in ground for ground in crops) >= 7


def named(leak: Leak) -> set[str]:
    """The grounds without their measures."""
    return {ground.split(",")[0] for ground in leak.grounds}


def expected(how: str) -> set[str]:
    return {how} if how.startswith("same") else {how, "perceptual hash", "embedding"}


def test_without_an_encoder_the_other_grounds_remain(fashion: RealSet) -> None:
    test = test_images(fashion, 100)
    mirrored = {"source": encoded(ImageOps.mirror(decode_image(next(iter(test.values())))))}
    (leak,) = find_leaks(mirrored, test)
    assert leak.test == next(iter(test))
    assert leak.grounds == ("mirrored copy, correlation 1.0000", "perceptual hash, 0 of 256 bits differ")


def false_alarms(real: RealSet, features: Features, train: int, test: int) -> Counter[str]:
    """How many sources each ground takes for a test image."""
    sources = train_images(real, train)
    found = find_leaks(sources, test_images(real, test), features)
    alarms = {(leak.source, ground) for leak in found for ground in named(leak)}
    counts = Counter(ground for _, ground in alarms)
    listed = ", ".join(f"{count} by {ground}" for ground, count in sorted(counts.items())) or "by no ground"
    print(f"false alarms on Fashion-MNIST: {len({leak.source for leak in found})} of {len(sources)} sources ({listed})")
    return counts


def test_no_set_of_pictures_is_held(monkeypatch: pytest.MonkeyPatch, fashion: RealSet, features: Features) -> None:
    """Large splits are decoded again and again rather than kept."""
    living: list[weakref.ref[Image.Image]] = []
    most = 0

    def decode(data: bytes, name: str) -> Image.Image:
        nonlocal living, most
        picture = decode_image(data, name)
        living = [one for one in living if one() is not None] + [weakref.ref(picture)]
        most = max(most, len(living))
        return picture

    monkeypatch.setattr("diffaug_datasets.release.leakage.decode_image", decode)
    test = test_images(fashion, 10)
    sources = {f"{i:016d}": encoded(ImageOps.mirror(decode_image(data))) for i, data in enumerate(test.values())}
    assert len(find_leaks(sources, test, features)) == len(test) >= 100
    assert most <= 5


def test_different_images_raise_no_alarm(fashion: RealSet, features: Features) -> None:
    assert not false_alarms(fashion, features, 40, 10)


@pytest.mark.full
def test_different_images_raise_hardly_an_alarm(fashion: RealSet, features: Features) -> None:
    """All 2,000 training images against all 1,000 test images; of every ground one in a thousand is accepted."""
    assert max(false_alarms(fashion, features, 1, 1).values(), default=0) <= 2


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
    source = {"backbone": "tiny", "source": str(folder), "scores": {"encoder": "tiny"}, "include_test": True}
    run = made(tmp_path / "run", "imagefolder_full_txt2img", **source)
    with pytest.raises(PublishError, match="test-leak: 3 real training images show") as refused:
        publish(run, "org/own", PublishOptions(with_rights=True))
    for sign in ("same bytes", "near copy, cor", "perceptual hash, ", "embedding, cos", "mirrored copy, cor"):
        assert sign in str(refused.value)
    ids = [hashlib.sha256(data).hexdigest()[:16] for data in leaked]
    out = re.search(r"`diffaug withdraw (\S+) ([0-9a-f ]+)` takes them out", str(refused.value))
    assert out is not None and out[1] == str(run.folder) and sorted(out[2].split()) == sorted(ids)
    assert not hub.writes()
    publish(run, "org/own", PublishOptions(with_rights=True, allow=("test-leak",)))
    assert "objection of the gate `test-leak`" in hub.files("org/own")["README.md"].decode()


def test_publishing_needs_no_torch_and_says_that_no_embeddings_were_compared(
    copied: Callable[[], Run], tmp_path: Path
) -> None:
    code = """
import sys, hiding
hiding.hide(*hiding.GENERATING)
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run
publish(Run.open(sys.argv[1]), sys.argv[2])
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(copied().folder), f"file://{tmp_path}/shelf"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    card = (tmp_path / "shelf" / "README.md").read_text(encoding="utf-8")
    assert "None of them shows one of the 1000 test images" in card
    assert "embeddings of the encoder" not in card


@pytest.mark.parametrize("most", [0, 1 << 14, 1 << 28])
def test_what_is_kept_of_test_images_changes_no_answer(fashion: RealSet, most: int) -> None:
    first, second = test_images(fashion, 100), dict(list(test_images(fashion, 90).items())[::-1])
    pictures = [decode_image(data) for data in first.values()]
    sources = {f"{i:016d}": mirrored_crop(picture) for i, picture in enumerate(pictures[:3])}
    sources["same"] = next(iter(second.values()))
    looks = Looks(most)
    for test in (first, second, first):
        assert find_leaks(sources, test, looks=looks) == find_leaks(sources, test) != []

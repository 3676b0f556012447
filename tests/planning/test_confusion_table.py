"""A classifier's confusion is counted over images that are read one by one."""

import weakref
from collections.abc import Iterator

import pytest
from PIL import Image

from diffaug_datasets.core import images
from diffaug_datasets.planning.confusion import compute_confusion
from diffaug_datasets.sources.real import read_real


def test_confusion_reads_and_holds_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = read_real("fashion")
    labels = list(real.train.labels[:150])
    decode, living, most = images.decode_image, list[weakref.ref[Image.Image]](), [0]
    read: list[int] = []

    def counted(data: bytes) -> Image.Image:
        picture = decode(data)
        living[:] = [one for one in living if one() is not None] + [weakref.ref(picture)]
        most[0] = max(most[0], len(living))
        return picture

    def one_by_one() -> Iterator[bytes]:
        for index in range(len(labels)):
            read.append(index)
            yield real.read("train", index)

    monkeypatch.setattr(images, "decode_image", counted)
    matrix = compute_confusion("tiny", one_by_one(), labels, real.train.class_names)
    assert [sum(row) for row in matrix] == [labels.count(label) for label in range(10)]
    assert sum(matrix[label][label] for label in range(10)) > 100
    assert read == list(range(150)) and most[0] <= 3

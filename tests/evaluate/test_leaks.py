"""Leaks are found and said in one sentence each: images of the test split in disguise, and models by their cards."""

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))

from small_runs import small_run
from tables import Pictures, pictures, table

from diffaug_datasets.core.images import decode_image, pixel_sha256
from diffaug_datasets.evaluate import leaks as leaking
from diffaug_datasets.evaluate.leaks import leak_features, leaks_of
from diffaug_datasets.evaluate.seen import ModelAt, SourceDataset, dataset_of, seen_by, trained_on
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.sources.real import read_real

FASHION = SourceDataset("fashion", "Fashion-MNIST", frozenset({"fashionmnist"}))


@pytest.fixture(scope="module")
def clothes() -> tuple[Pictures, Pictures]:
    """Real training and test images of Fashion-MNIST."""
    real = read_real("fashion")
    assert real.test is not None
    train = [(decode_image(real.read("train", i)), i % 2) for i in range(0, 2000, 100)]
    return train, [(decode_image(real.read("test", i)), i % 2) for i in range(0, 1000, 20)]


def coded(picture: Image.Image) -> Image.Image:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return decode_image(buffer.getvalue())


def test_test_images_are_found_as_they_are_and_in_disguise(
    clothes: tuple[Pictures, Pictures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = clothes
    planted = [test[3], (coded(test[7][0]), 0), (ImageOps.mirror(test[9][0]), 1), (coded(test[7][0]), 1)]
    sets = table([*train[:10], test[5]], [*train[10:], *planted]), table(test)
    encoder = Encoder.load("tiny")
    found = leaks_of("set", *sets, features=leak_features(encoder), cache=tmp_path)
    assert [leak.test for leak in found.exact.values()] == [pixel_sha256(test[3][0])]
    assert [leak.test for leak in found.near.values()] == [pixel_sha256(test[i][0]) for i in (7, 9)]
    assert found.real == (pixel_sha256(test[5][0]),)
    exact, near, real = found.warnings
    assert exact.startswith(
        f"1 of the synthetic images are test images (first: {pixel_sha256(test[3][0])[:16]} is test"
    )
    assert near.startswith("3 of the synthetic images look like test images (first: ") and "near copy" in near
    assert real.startswith("1 of the real training images are test images")
    monkeypatch.setattr(leaking, "find_leaks", None)
    assert leaks_of("set", *sets, features=leak_features(encoder), cache=tmp_path) == found


def test_images_that_are_no_copies_are_left_alone(clothes: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    train, test = clothes
    found = leaks_of("set", table(train[:10], train[10:]), table(test), cache=tmp_path)
    assert (found.warnings, found.notes, found.compared) == ((), (), 50)
    assert leaks_of("set", table(train[:10], train[10:]), None, cache=tmp_path).compared == 0


def model(folder: Path, head: str | None) -> ModelAt:
    if head is not None:
        (folder / "README.md").write_text(f"---\n{head}\n---\n\n# A model\n", encoding="utf-8")
    return ModelAt("org/net@0123456789ab", folder)


@pytest.mark.parametrize(
    ("head", "dataset", "grave", "says"),
    [
        (
            "datasets: [zalando-datasets/fashion_mnist]",
            FASHION,
            True,
            "and names no split, so it may have seen the test",
        ),
        ("datasets: fashion_mnist\ntraining_splits: {fashion_mnist: [train]}", FASHION, False, "on the training split"),
        (
            "training_splits: {fashion_mnist: [train, test]}",
            FASHION,
            True,
            "trained on train and test of fashion_mnist",
        ),
        ("datasets: [mnist, imagenet-1k]", FASHION, None, ""),
        (
            "datasets: [imagenet-1k]",
            SourceDataset("cub", "CUB-200-2011", frozenset({"cub2002011"})),
            True,
            "with which CUB-200-2011 has images in common",
        ),
        ("license: mit", FASHION, False, "no card here says what it was trained on"),
        ("datasets: [a\nb: }", FASHION, False, "no card here says what it was trained on"),
        (None, FASHION, False, "no card here says what it was trained on"),
    ],
)
def test_a_card_says_what_a_model_has_seen(
    tmp_path: Path, head: str | None, dataset: SourceDataset, grave: bool | None, says: str
) -> None:
    seen = seen_by(model(tmp_path, head), dataset, "encoder")
    if grave is None:
        assert seen is None
    else:
        assert seen is not None and (seen.grave, seen.sentence.count("\n")) == (grave, 0)
        assert seen.sentence.startswith("encoder org/net@0123456789ab: ") and says in seen.sentence


def test_the_packaged_models_share_a_card() -> None:
    encoder = Encoder.load("tiny")
    assert encoder.folder is not None
    assert trained_on(encoder.folder) == {"zalando-datasets/fashion_mnist": ("train",)}


def test_the_dataset_of_a_run_is_known_by_its_names(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img", per_class=1)
    assert dataset_of(run.folder) == FASHION


def test_warnings_of_models_stand_after_those_of_images(tmp_path: Path) -> None:
    test: Sequence[tuple[Image.Image, int]] = pictures(20, 1)
    card = model(tmp_path, "datasets: [fashion_mnist]")
    found = leaks_of(
        "set",
        table(pictures(4, 0), [test[0]]),
        table(list(test)),
        [card],
        judges=[card],
        dataset=FASHION,
        cache=tmp_path,
    )
    assert [warning.split(" ")[0] for warning in found.warnings] == ["1", "encoder", "judge"]

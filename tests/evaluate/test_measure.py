"""A set measured whole: on a real small run, and on tables of images in which the answer is known."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))

from small_runs import small_run
from tables import Sets, pictures, table

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.images import pixel_sha256
from diffaug_datasets.evaluate import measure as measuring
from diffaug_datasets.evaluate.features import cached_features
from diffaug_datasets.evaluate.measure import measure
from diffaug_datasets.evaluate.seen import SourceDataset
from diffaug_datasets.evaluate.sets import SetFacts
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.release.measures import TITLES, Measured
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load("tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = small_run(tmp_path_factory.mktemp("measured") / "run", "txt2img", include_test=True, per_class=3)
    execute(run, WorkerOptions(), workers=1)
    return run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: Encoder):
    def of(train: datasets.Dataset, test: datasets.Dataset | None) -> Measured:
        dataset = SourceDataset("fashion", "Fashion-MNIST", frozenset({"fashionmnist"}))
        facts = SetFacts("set", "0" * 64, "0" * 64, dataset, "", (), {1: (20.0, 22.0)})
        monkeypatch.setattr(measuring, "load", Sets(set=(train, test)))
        monkeypatch.setattr(measuring, "set_facts", lambda where, config: facts)
        return measure("set", encoder, cache=tmp_path / "cache")

    return of


def test_a_run_is_measured_in_all_and_by_class(run: Run, encoder: Encoder, tmp_path: Path) -> None:
    found = measure(run.folder, encoder, cache=tmp_path)
    assert (found.synthetic, found.reference) == (30, "1,000 real test images")
    assert {m.of for m in found.measures} == {None, *run.plan.header.class_names}
    assert found.get("frechet").withheld == "30 images, 128 are needed for a covariance of 64 features"
    coverage = found.get("coverage")
    assert coverage.floor is not None and 0 <= coverage.value <= coverage.floor.high <= 1
    assert found.get("coverage", "Bag").withheld == "3 images, 6 are needed"
    assert {m.name for m in found.measures} == set(TITLES)
    assert all((m.value is None) == bool(m.withheld) for m in found.measures)
    assert [found.get(name).value for name in ("exact_copies", "test_copies", "near_test_copies")] == [0, 0, 0]
    assert found.warnings == ()
    assert "was trained on the training split of Fashion-MNIST and not on its test images" in found.notes[0]
    assert found.judge.startswith("diffaug-tiny-judge@")
    assert found.get("authenticity").floor.low <= found.get("authenticity").floor.high
    assert found.get("probe_agreement", "Bag").n == 3
    low, high = found.get("judge_agreement").interval
    assert 0 <= low <= found.get("judge_agreement").value <= high <= 1
    again = measure(run.folder, encoder, cache=tmp_path)
    assert again == found


def test_features_are_made_once_per_image_and_encoder(run: Run, encoder: Encoder, tmp_path: Path) -> None:
    images = [picture for picture, _ in pictures(6, 0)]
    names = [pixel_sha256(picture) for picture in images]
    orders, read = [[0, 1, 2, 3], [5, 4, 3, 2, 1, 0, 5]], []

    def features(order: list[int]) -> np.ndarray:
        def reading(i: int) -> Image.Image:
            read.append(order[i])
            return images[order[i]]

        return cached_features(encoder, [names[i] for i in order], reading, tmp_path)

    first, both = map(features, orders)
    assert sorted(read[:4]) == [0, 1, 2, 3] and sorted(read[4:]) == [4, 5]
    np.testing.assert_array_equal(both[[5, 4, 3, 2]], first)
    np.testing.assert_array_equal(both[0], both[6])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-6)
    assert both.shape == (7, 64)
    for path in tmp_path.rglob("*.parquet"):
        path.write_bytes(b"damaged")
    np.testing.assert_array_equal(features(orders[0]), first)
    assert read[6:] == orders[0]


def test_a_copy_of_a_test_image_is_counted(measured) -> None:
    test = pictures(40, 1)
    found = measured(table(pictures(20, 0), [*pictures(10, 2), test[3]]), table(test))
    assert found.get("exact_copies").value == 1
    assert found.get("exact_copies", "light").value == 1
    assert found.get("exact_copies", "dark").value == 0
    assert [found.get("test_copies", of).value for of in (None, "light", "dark")] == [1, 1, 0]
    (warning,) = found.warnings
    assert warning.startswith("1 of the synthetic images are test images (first: ")
    assert pixel_sha256(test[3][0])[:16] in warning


def test_inversions_are_those_of_the_real_images(measured) -> None:
    found = measured(table(pictures(20, 0), pictures(10, 2)), table(pictures(40, 1)))
    assert (found.get("inversion_psnr").value, found.get("inversion_psnr", "light").n) == (21, 2)
    assert found.get("inversion_psnr", "dark").withheld == "no real image of this class was inverted and denoised again"


def test_wrong_labels_lower_what_a_probe_says(measured) -> None:
    test = table(pictures(60, 1))
    right, wrong = pictures(20, 2), [(picture, 1 - label) for picture, label in pictures(20, 3)]
    assert measured(table(pictures(10, 0), right), test).get("probe_agreement").value > 0.9
    assert 0.3 < measured(table(pictures(10, 0), right + wrong), test).get("probe_agreement").value < 0.7


def test_images_of_another_kind_lie_above_the_floor(measured) -> None:
    test = table(pictures(80, 1))
    near = measured(table(pictures(10, 0), pictures(40, 2)), test)
    far = measured(table(pictures(10, 0), pictures(40, 2, label=1)), test)
    assert near.get("recall").value > far.get("recall").value
    assert near.get("kernel").interval[0] <= 0.001
    assert far.get("kernel").interval[0] > near.get("kernel").value
    assert far.get("vendi").value < near.get("vendi").value


def test_without_test_images_the_training_images_stand_in(measured) -> None:
    found = measured(table(pictures(20, 0), pictures(10, 2)), None)
    assert found.reference == "20 real training images"
    assert found.get("probe_agreement").withheld == "no real test images to fit a probe on"
    assert found.get("test_copies").withheld == "no real test images"
    assert found.get("authenticity").floor is None


@pytest.mark.parametrize(
    ("real", "made", "sentence"),
    [(4, 0, "holds no synthetic image"), (0, 4, "carries no real image to compare with")],
)
def test_a_set_without_synthetic_or_real_images_is_refused(measured, real: int, made: int, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        measured(table(pictures(real, 0), pictures(made, 1)), None)

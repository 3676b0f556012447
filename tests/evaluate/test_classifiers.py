"""Frozen-feature classifiers: scikit-learn's on hard labels, and what weights and soft labels must mean."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.evaluate.classifiers import Examples, fit, fit_best

CLASSES = 4


def images(n: int, seed: int, spread: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, 12))
    labels = np.arange(n) % CLASSES
    return centres[labels] + spread * rng.normal(size=(n, 12)), labels


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("logistic", LogisticRegression(C=1.0, max_iter=1000)),
        ("svm", LinearSVC(C=1.0, max_iter=10_000, random_state=0)),
        ("class_mean", NearestCentroid()),
    ],
)
def test_hard_labels_give_scikit_learns_answers(kind, reference) -> None:
    (features, labels), (test, truth) = images(40, 0), images(200, 1)
    found = fit(kind, Examples.of_labels(features, labels, CLASSES))
    expected = reference.fit(unit(features), labels).predict(unit(test))
    agree = (found.predict(test) == expected).mean()
    assert agree == 1 if kind != "class_mean" else agree > 0.97  # ours compares by cosine, theirs by distance
    assert found.accuracy(test, truth) == pytest.approx((found.predict(test) == truth).mean())


@pytest.mark.parametrize("kind", ["class_mean", "logistic", "svm"])
def test_copies_of_all_images_change_nothing_at_equal_mass(kind) -> None:
    (features, labels), (test, _) = images(24, 0), images(100, 1)
    once = Examples.of_labels(features, labels, CLASSES)
    thrice = Examples(np.repeat(features, 3, 0), np.repeat(once.targets, 3, 0)).with_mass(once.mass)
    one, three = (fit(kind, examples).scores(unit(test)) for examples in (once, thrice))
    np.testing.assert_allclose(one, three, atol=2e-3)
    if kind == "logistic":
        heavier = fit(kind, Examples(np.repeat(features, 3, 0), np.repeat(once.targets, 3, 0))).scores(unit(test))
        assert np.abs(heavier - one).max() > 0.1


@pytest.mark.parametrize("kind", ["class_mean", "logistic"])
def test_a_soft_label_is_an_image_of_each_class(kind) -> None:
    (features, labels), (test, _) = images(24, 0), images(50, 1)
    hard = Examples.of_labels(features, labels, CLASSES)
    targets = hard.targets.copy()
    targets[0] = [0.25, 0.75, 0, 0]
    soft = Examples(features, targets)
    two = Examples(
        np.concatenate([features[:1], features]), np.concatenate([[[0.25, 0, 0, 0]], [[0, 0.75, 0, 0]], targets[1:]])
    )
    np.testing.assert_allclose(fit(kind, soft).scores(test), fit(kind, two).scores(test), atol=1e-4)


@pytest.mark.parametrize("kind", ["class_mean", "logistic", "svm"])
def test_a_class_without_examples_is_never_told(kind) -> None:
    features, labels = images(30, 0)
    keep = labels != 2
    found = fit(kind, Examples.of_labels(features[keep], labels[keep], CLASSES))
    told = set(found.predict(images(200, 1)[0]))
    assert told == {0, 1, 3}


def test_two_classes_work() -> None:
    features, labels = images(60, 0, spread=0.3)
    keep = labels < 2
    found = fit("svm", Examples.of_labels(features[keep], labels[keep], CLASSES))
    assert found.accuracy(features[keep], labels[keep]) > 0.95


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (np.ones((3, 2)), np.ones((2, 2))),
        (np.ones((0, 2)), np.ones((0, 2))),
        (np.ones((2, 2)), -np.ones((2, 2))),
        (np.full((2, 2), np.inf), np.ones((2, 2))),
        (np.ones((2, 2)), np.ones(2)),
    ],
)
def test_examples_that_cannot_be_are_refused(features, targets) -> None:
    with pytest.raises(ValueError, match=r"^got "):
        Examples(features, targets)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="got examples of 1 classes, expected two or more"):
        fit("logistic", Examples.of_labels(np.ones((3, 2)), [0, 0, 0], 2))


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_of_several_penalties_the_best_on_held_out_images_is_taken(kind) -> None:
    (features, labels), val, test = images(16, 0, 1.5), images(200, 2, 1.5), images(50, 1)
    train, grid = Examples.of_labels(features, labels, CLASSES), (100.0, 1e-4, 0.01, 1.0)
    rows = unit(features)
    accuracies = {}
    for penalty in sorted(grid):
        model = (
            LogisticRegression(C=penalty, max_iter=1000) if kind == "logistic" else LinearSVC(C=penalty, random_state=0)
        )
        accuracies[penalty] = (model.fit(rows, labels).predict(unit(val[0])) == val[1]).mean()
    found = fit_best(kind, train, grid, val)
    assert found.penalty == max(accuracies, key=lambda penalty: (accuracies[penalty], -penalty))
    assert len(set(accuracies.values())) > 1
    assert (found.predict(test[0]) == fit(kind, train, found.penalty).predict(test[0])).all()


def test_of_equally_good_penalties_the_smallest_is_taken() -> None:
    features, labels = images(40, 0, spread=0.01)
    train = Examples.of_labels(features, labels, CLASSES)
    assert fit_best("logistic", train, (10.0, 2.0, 5.0), (features, labels)).penalty == 2
    assert fit_best("class_mean", train, (10.0, 2.0), None).penalty is None
    assert fit_best("logistic", train, 3.0, None).penalty == 3
    assert fit_best("logistic", train, (3.0, 3.0), None).penalty == 3


def test_a_grid_without_held_out_images_is_one_sentence() -> None:
    train = Examples.of_labels(*images(12, 0), CLASSES)
    for val in (None, (np.zeros((0, 12)), [])):
        with pytest.raises(RecipeError, match="penalty: got 2 values and no validation image to choose with, expected"):
            fit_best("logistic", train, (1.0, 2.0), val)
    for penalty in (0.0, (1.0, -1.0), ()):
        with pytest.raises(RecipeError, match=r"penalty: got .*, expected numbers above 0"):
            fit_best("logistic", train, penalty, None)

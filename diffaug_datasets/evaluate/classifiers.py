"""Classifiers on frozen features: nearest class mean, logistic regression, linear support vector machine.

All learn from features [n d], which are brought to unit length, and `targets` [n C]: how much of a row's loss goes to
each class. A row of weight w with a hard label has w in one place; soft labels spread it. The targets of a training
set sum to its *mass*; `with_mass` makes that equal for sets that are compared: scikit-learn's penalty counts less the
more rows there are, and a larger set would win by being less regularised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RecipeError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

Array = NDArray[np.float64]
Kind = Literal["class_mean", "logistic", "svm"]

MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Examples:
    """Features [n d] of images and their targets [n C], none of which is negative."""

    features: Array
    targets: Array

    def __post_init__(self) -> None:
        n, rows = len(self.features), len(self.targets)
        if n != rows or not n or self.features.ndim != 2 or self.targets.ndim != 2:
            raise ValueError(
                f"got features of shape {self.features.shape} and targets of shape {self.targets.shape}, expected "
                "[n d] and [n C] with n above 0"
            )
        if not (self.targets >= 0).all() or not np.isfinite(self.features).all():
            raise ValueError("got targets below 0 or features that are not finite")

    @classmethod
    def of_labels(cls, features: Array, labels: Sequence[int], classes: int) -> "Examples":
        """Every image counts 1, for one class."""
        return cls(features, np.eye(classes)[np.asarray(labels, dtype=np.int64)])

    @property
    def mass(self) -> float:
        """The sum of all targets."""
        return float(self.targets.sum())

    def with_mass(self, mass: float) -> "Examples":
        """The same images, their targets scaled to that sum."""
        return Examples(self.features, self.targets * (mass / self.mass))


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier; `penalty` is the C that was chosen, None where there is none."""

    scores: Callable[[Array], Array]
    penalty: float | None = None

    def predict(self, features: Array) -> NDArray[np.int64]:
        """Class ids [n] of features [n d]; the first of equal ones."""
        predicted: NDArray[np.int64] = self.scores(unit(features)).argmax(1)
        return predicted

    def accuracy(self, features: Array, labels: Sequence[int]) -> float:
        """Share of images that get their label, in [0, 1]."""
        return float((self.predict(features) == np.asarray(labels)).mean())


def unit(features: Array) -> Array:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    rows: Array = features / np.where(lengths > 0, lengths, 1)
    return rows


def fit(kind: Kind, train: Examples, penalty: float = 1.0, seed: int = 0) -> Classifier:
    """The classifier of training examples; classes without any target are never predicted.

    Raises:
        ValueError: fewer than two classes have a target (one is enough for `class_mean`).
    """
    if kind == "class_mean":
        return Classifier(_class_means(train))
    present = np.flatnonzero(train.targets.sum(0) > 0)
    if len(present) < 2:
        raise ValueError(f"got examples of {len(present)} classes, expected two or more")
    rows, classes = np.nonzero(train.targets)
    model = _model(kind, penalty, seed)
    model.fit(unit(train.features)[rows], classes, sample_weight=train.targets[rows, classes])

    def scores(features: Array) -> Array:
        decisions = np.asarray(model.decision_function(features), dtype=np.float64)
        every = np.full((len(features), train.targets.shape[1]), -np.inf)
        every[:, present] = np.stack([-decisions, decisions], 1) if decisions.ndim == 1 else decisions
        return every

    return Classifier(scores, penalty)


def fit_best(
    kind: Kind,
    train: Examples,
    penalty: float | Sequence[float],
    val: tuple[Array, Sequence[int]] | None,
    seed: int = 0,
) -> Classifier:
    """The classifier of one penalty, or of that of several that is best on held-out images; of equal ones the smallest.

    `val`: features [n d] and class ids [n] of real images that are neither trained on nor tested.

    Raises:
        RecipeError: there are several penalties and nothing to choose with, or one of them is not above 0.
        ValueError: fewer than two classes have a target.
    """
    grid = sorted({penalty} if isinstance(penalty, int | float) else set(penalty))
    if not grid or grid[0] <= 0:
        raise RecipeError(f"penalty: got {penalty}, expected numbers above 0.")
    if len(grid) == 1 or kind == "class_mean":
        return fit(kind, train, grid[0], seed)
    if val is None or not len(val[1]):
        raise RecipeError(
            f"penalty: got {len(grid)} values and no validation image to choose with, expected some; set "
            "val_per_class, or give one value."
        )
    fitted = [fit(kind, train, one, seed) for one in grid]
    return max(fitted, key=lambda classifier: classifier.accuracy(*val))


def _class_means(train: Examples) -> Callable[[Array], Array]:
    sums = train.targets.T @ unit(train.features)
    means = unit(sums)
    absent = train.targets.sum(0) == 0

    def scores(features: Array) -> Array:
        return np.where(absent, -np.inf, features @ means.T)

    return scores


def _model(kind: Kind, penalty: float, seed: int) -> "LogisticRegression | LinearSVC":
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if kind == "logistic":
        return LogisticRegression(C=penalty, max_iter=MOST_ITERATIONS)
    return LinearSVC(C=penalty, max_iter=10 * MOST_ITERATIONS, random_state=seed)

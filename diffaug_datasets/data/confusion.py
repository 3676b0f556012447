"""Which classes a classifier takes for which: the sources of GeNIe's long-tail rows (arXiv 2312.02548, section 4.2)."""

import csv
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from diffaug_datasets.core.errors import RecipeError

Matrix = list[list[float]]


def read_confusion(path: Path, classes: int) -> Matrix:
    """A square matrix of counts, row = true class, from .csv (no header) or .json (list of lists).

    Raises:
        RecipeError: unreadable, not square, not of this many classes, or with negative entries.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.reader(text.splitlines()))
        matrix = [[float(cell) for cell in row] for row in rows]
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, csv.Error) as error:
        raise RecipeError(f"confusion: {path} is no matrix of numbers ({error}).") from None
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        widths = sorted({len(row) for row in matrix})
        raise RecipeError(f"confusion: {path} is {len(matrix)} x {widths}, expected {classes} x {classes}.")
    if any(not cell >= 0 for row in matrix for cell in row):
        raise RecipeError(f"confusion: {path} has entries below 0; expected counts.")
    return matrix


def most_confused(matrix: Matrix, target: int, count: int) -> tuple[int, ...]:
    """The classes most often taken for the target or it for them, ties by class id; never the target itself."""
    score = {c: matrix[target][c] + matrix[c][target] for c in range(len(matrix)) if c != target}
    return tuple(sorted(score, key=lambda c: (-score[c], c))[:count])


def compute_confusion(
    classifier: str, images: Iterable[bytes], labels: Sequence[int], class_names: Sequence[str], device: str = "cpu"
) -> Matrix:
    """Counts of a transformers image classifier over real training images, which are read one by one.

    Raises:
        RecipeError: the classifier does not know these classes, by name or, where it has as many, by number.
        SourceError: an image cannot be decoded.
    """
    from diffaug_datasets.core.images import decode_image
    from diffaug_datasets.models.features import Judge

    judge = Judge.load(classifier, device)
    columns = judge.columns(class_names, "confusion")
    matrix = [[0.0] * len(class_names) for _ in class_names]
    pictures = map(decode_image, images)
    for begin in range(0, len(labels), 64):
        predicted = judge.probabilities(islice(pictures, 64), batch_shape=64)[:, columns].argmax(1).tolist()
        for label, guess in zip(labels[begin : begin + 64], predicted, strict=True):
            matrix[label][guess] += 1
    return matrix

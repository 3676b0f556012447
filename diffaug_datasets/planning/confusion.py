"""Which classes a classifier takes for which: the sources of GeNIe's long-tail rows (arXiv 2312.02548, section 4.2).

A confusion matrix is read from a file, as a program or a spreadsheet saves it, or counted over real training images.
"""

import csv
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import read_text
from diffaug_datasets.core.images import decode_image

Matrix = list[list[float]]
"""Row = true class, column = what it is taken for, in the order of the classes; counts or shares from 0 on."""

MOST_BYTES = 200_000_000
SPREADSHEETS = (".xlsx", ".xls", ".ods")
SEPARATORS = (";", "\t", ",")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][-+]?[0-9]+)?")
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?:[.,][0-9]{3})+")


def read_confusion(path: Path, class_names: Sequence[str]) -> Matrix:
    """A square matrix of counts or shares, row = true class, in the order of the classes.

    .json: a list of lists. Any other file is a table as spreadsheets save it: commas, semicolons or tabs; a decimal
    comma where the comma does not separate; percent signs in every cell or in none. Names of classes in a first row, a
    first column or both decide the order; without them it is that of `class_names`. Class ids from 0 are names too.

    Raises:
        RecipeError: unreadable, not square, of other classes, or with entries that are no numbers from 0 on; says
            which cell.
    """
    try:
        if path.suffix.lower() in SPREADSHEETS:
            raise ValueError("a spreadsheet; save it as CSV")
        text = read_text(path, MOST_BYTES)
        matrix = _from_json(text, class_names) if path.suffix.lower() == ".json" else _from_table(text, class_names)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"confusion: {path} is no confusion matrix of these classes ({reason}).") from None
    return matrix


def compute_confusion(
    classifier: str, images: Iterable[bytes], labels: Sequence[int], class_names: Sequence[str], device: str = "cpu"
) -> Matrix:
    """Counts of a transformers image classifier over real training images, which are read one by one.

    Raises:
        RecipeError: the classifier does not know these classes, by name or, where it has as many, by number.
        SourceError: an image cannot be decoded.
    """
    from diffaug_datasets.models.encoders import Judge

    judge = Judge.load(classifier, device)
    columns = judge.columns(class_names, "confusion")
    matrix = [[0.0] * len(class_names) for _ in class_names]
    pictures = map(decode_image, images)
    for begin in range(0, len(labels), 64):
        predicted = judge.probabilities(islice(pictures, 64), batch_shape=64)[:, columns].argmax(1).tolist()
        for label, guess in zip(labels[begin : begin + 64], predicted, strict=True):
            matrix[label][guess] += 1
    return matrix


def most_confused(matrix: Matrix, target: int, count: int) -> tuple[int, ...]:
    """The classes most often taken for the target or it for them, ties by class id; never the target itself.

    Most often: by the sum of both entries as they stand, whatever their rows add up to.
    """
    score = {c: matrix[target][c] + matrix[c][target] for c in range(len(matrix)) if c != target}
    return tuple(sorted(score, key=lambda c: (-score[c], c))[:count])


def _from_json(text: str, class_names: Sequence[str]) -> Matrix:
    rows = json.loads(text)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("got no list of lists")
    _check_square(rows, len(class_names))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if isinstance(cell, bool) or not isinstance(cell, int | float) or not (0 <= cell < math.inf):
                raise ValueError(f"row {i + 1}, column {j + 1} is {str(cell)[:40]!r}, expected a number from 0 on")
    return [[float(cell) for cell in row] for row in rows]


def _from_table(text: str, class_names: Sequence[str]) -> Matrix:
    count = len(class_names)
    separator, cells = _cells(text, count)
    is_named_across, is_named_down = len(cells) == count + 1, bool(cells) and len(cells[-1]) == count + 1
    body = cells[1:] if is_named_across else cells
    down = [row[0] if row else "" for row in body] if is_named_down else []
    across = cells[0][-count:] if is_named_across else []
    numbers = [row[1:] for row in body] if is_named_down else body
    _check_square(numbers, count)
    matrix = _numbers(numbers, separator, is_named_across, is_named_down)
    if not (across or down):
        return matrix
    rows, columns = _order(down or across, class_names, "row"), _order(across or down, class_names, "column")
    return [[matrix[i][j] for j in columns] for i in rows]


def _cells(text: str, classes: int) -> tuple[str, list[list[str]]]:
    """The separator and the cells, without empty lines and without empty columns at the end."""
    named, _, rest = text.partition("\n")
    if declared := re.fullmatch(r'"?sep=(.)"?', named.strip(" ")):  # a first line of Excel's
        return declared[1], _split(rest, declared[1])
    tables = {separator: _split(text, separator) for separator in SEPARATORS if separator in text}
    fitting = [s for s, rows in tables.items() if rows and {len(row) for row in rows} <= {classes, classes + 1}]
    separator = (fitting or [*tables, ","])[0]
    return separator, tables.get(separator) or _split(text, separator)


def _split(text: str, separator: str) -> list[list[str]]:
    lines = csv.reader(text.splitlines(), delimiter=separator)
    rows = [[cell.strip() for cell in row] for row in lines]
    rows = [row for row in rows if any(row)]
    width = max((i + 1 for row in rows for i, cell in enumerate(row) if cell), default=0)
    return [row[:width] for row in rows]


def _check_square(rows: Sequence[Sequence[object]], classes: int) -> None:
    widths = sorted({len(row) for row in rows})
    if len(rows) != classes or widths != [classes]:
        wide = " or ".join(map(str, widths)) or "0"
        raise ValueError(f"it is {len(rows)} x {wide}, expected {classes} x {classes}, with or without class names")


def _numbers(body: list[list[str]], separator: str, across: bool, down: bool) -> Matrix:
    """The cells as numbers. `across`, `down`: whether a row or column of names stands before them, for messages."""
    plain = [cell.removesuffix("%").rstrip() for row in body for cell in row]
    percent = any(cell.endswith("%") for row in body for cell in row)
    marked = [cell for cell in plain if "," in cell or (separator != "," and "." in cell)]
    both = len({mark for cell in marked for mark in ".," if mark in cell}) > 1
    if marked and (separator == "," or both or all(map(_THOUSANDS.fullmatch, marked))):
        raise ValueError(
            f"the mark in {marked[0]!r} may part thousands or decimals; save the numbers without thousands"
        )

    def number(i: int, j: int, cell: str) -> float:
        text = cell.removesuffix("%").rstrip()
        where = f"row {i + 1 + across}, column {j + 1 + down}"
        if percent != cell.endswith("%"):
            raise ValueError(f"{where} is {cell!r}, while others are {'' if percent else 'not '}in percent")
        value = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{where} is {cell[:40]!r}, expected a number from 0 on")
        return value / 100 if percent else value

    return [[number(i, j, cell) for j, cell in enumerate(row)] for i, row in enumerate(body)]


def _order(names: Sequence[str], class_names: Sequence[str], what: str) -> list[int]:
    """For each class the index of its row or column. `what`: which of these the names are of, for the message."""
    if list(names) == [str(i) for i in range(len(class_names))] and set(names) != set(class_names):
        return list(range(len(class_names)))
    place = {unicodedata.normalize("NFC", name): i for i, name in enumerate(names)}
    wanted = [unicodedata.normalize("NFC", name.strip()) for name in class_names]
    missing = [name for name in wanted if name not in place]
    if missing:
        foreign = [name for name in place if name not in wanted]
        raise ValueError(f"its {what} names lack {missing[0]!r} and have {(foreign or [names[0]])[0]!r}")
    return [place[name] for name in wanted]

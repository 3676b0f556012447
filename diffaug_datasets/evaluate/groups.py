"""A bench by groups of test images: classes with many, some or few real images, seen and unseen ones, and places.

Groups are made from the stored predictions alone, so other bounds need no classifier again. A group is an `Answer` of
its own, over its images, and `table` makes of it what it makes of the whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffaug_datasets.evaluate.bench import Answer
from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.suite import Bench, Group
from diffaug_datasets.evaluate.table import TableRow, table

AT, WORST = " at ", "worst group"

Groups = Mapping[str, NDArray[np.bool_]]
"""Name of a group -> which test images [n] are in it."""


def by_group(answer: Answer, kinds: Sequence[Group], bounds: tuple[int, int] = (20, 5)) -> Mapping[str, Answer]:
    """The answer over each group of test images, by the group's name; groups without an image are left out.

    `kinds`: `count` (many: above bounds[0] real training images of the class, few: below bounds[1], medium: between),
    `seen` (classes with a real training image, and those without), `place` (one group for each place and kind of thing,
    or class where no kind is told). Of places there is also `WORST`: of every line the group where it is least often
    right, in each draw.
    """
    parts: dict[str, list[Result]] = {}
    for result in answer.results:
        if result.table is None:
            continue
        for name, chosen in groups_of(result.table, kinds, bounds).items():
            accuracy = float(result.correct[chosen].mean())
            receipt = result.receipt.model_copy(update={"accuracy": accuracy})
            part = Result(receipt, result.correct[chosen], result.table.filter(pa.array(chosen)))
            parts.setdefault(name, []).append(part)
    if worst := _worst([part for name, part in parts.items() if AT in name]):
        parts[WORST] = worst
    return {name: replace(answer, draws=_draws(answer, part), results=tuple(part)) for name, part in parts.items()}


def table_of(answer: Answer, spec: Bench) -> tuple[TableRow, ...]:
    """The table of a bench, then that of each of its groups."""
    groups = by_group(answer, spec.groups, spec.count_bounds)
    return (*table(answer), *(row for name, part in groups.items() for row in table(part, name)))


def groups_of(predictions: pa.Table, kinds: Sequence[Group], bounds: tuple[int, int]) -> Groups:
    """The groups of a table of predictions that have an image."""
    counts = predictions["real_count"].to_numpy()
    found = {name: chosen for kind in kinds for name, chosen in _groups(predictions, kind, counts, bounds)}
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def _groups(
    predictions: pa.Table, kind: Group, counts: NDArray[np.int64], bounds: tuple[int, int]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    many, few = bounds
    if kind == "count":
        yield f"many (above {many})", counts > many
        yield f"medium ({few} to {many})", (counts <= many) & (counts >= few)
        yield f"few (below {few})", counts < few
    elif kind == "seen":
        yield "seen classes", counts > 0
        yield "unseen classes", counts == 0
    else:
        places = np.asarray(predictions["place"].to_pylist())
        if "kind" in predictions.column_names:
            things = np.asarray(predictions["kind"].to_pylist())
        else:
            things = np.asarray([f"class {label}" for label in predictions["label"].to_pylist()])
        for thing, place in sorted({(str(a), str(b)) for a, b in zip(things, places, strict=True) if b}, key=_natural):
            yield f"{thing}{AT}{place}", (things == thing) & (places == place)


def _natural(group: tuple[str, str]) -> list[tuple[int, str]]:
    """`class 2` before `class 10`."""
    return [(len(text) if text.startswith("class ") else 0, text) for text in group]


def _worst(groups: Sequence[Sequence[Result]]) -> list[Result]:
    """Of every line and draw its results in the group where it is least often right, over its initialisations."""
    found: dict[tuple[str, ...], list[list[Result]]] = {}
    for part in groups:
        of_lines: dict[tuple[str, ...], list[Result]] = {}
        for result in part:
            of_lines.setdefault(_line(result), []).append(result)
        for line, results in of_lines.items():
            found.setdefault(line, []).append(results)
    return [one for several in found.values() for one in min(several, key=_accuracy)]


def _line(result: Result) -> tuple[str, ...]:
    cell = result.receipt.cell
    return cell.draw, cell.line, cell.encoder, cell.classifier, cell.setting


def _accuracy(results: Sequence[Result]) -> float:
    return float(np.mean([result.receipt.accuracy for result in results]))


def _draws(answer: Answer, part: Sequence[Result]) -> tuple[str, ...]:
    there = {result.receipt.cell.draw for result in part}
    return tuple(draw for draw in answer.draws if draw in there)

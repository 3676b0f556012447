"""What a line is worth in real images: how many more per class would help a classifier as much.

The brackets of a bench, `real + k`, give the gain of k more real images per class; between them it is taken as
straight. A line below none or above the largest bracket is said to be so, and not carried on beyond it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffaug_datasets.evaluate.bench import Answer
from diffaug_datasets.evaluate.cells import Cell

BASE = "real"
Judge = tuple[str, str, str]
"""Encoder, classifier and setting: what stands above a table."""


@dataclass(frozen=True)
class Worth:
    """What a line is worth under one classifier: `images` more real ones per class, or a bound of it in words."""

    judge: Judge
    line: str
    images: float | None
    largest: int

    @property
    def sentence(self) -> str:
        """In words."""
        if self.images is None:
            return f"{self.line} is worth more than {self.largest} more real images per class."
        if self.images == 0:
            return f"{self.line} is worth no real image."
        return f"{self.line} is worth about {self.images:.1f} more real images per class."


def worths(answer: Answer) -> tuple[Worth, ...]:
    """Of every line with synthetic images, where the bench has brackets; by mean accuracy over draws and seeds."""
    brackets = answer.more_real or {}
    named = {line.name for line in answer.lines}
    found = []
    for judge, accuracy in _accuracies(answer).items():
        known = {name: count for name, count in brackets.items() if name in accuracy}
        if not known or BASE not in accuracy:
            continue
        counts = [0, *sorted(known.values())]
        names = {count: name for name, count in known.items()}
        gains = [0.0, *(accuracy[names[count]] - accuracy[BASE] for count in counts[1:])]
        for line in sorted(named & accuracy.keys()):
            images = images_for(accuracy[line] - accuracy[BASE], counts, gains)
            found.append(Worth(judge, line, images, counts[-1]))
    return tuple(found)


def images_for(gain: float, counts: Sequence[int], gains: Sequence[float]) -> float | None:
    """How many more real images first reach a gain, straight between `counts`, whose first is 0; None beyond the last.

    Where the gains of the counts fall, by the luck of a draw, the highest up to there counts.
    """
    highest = np.maximum.accumulate(np.asarray(gains, dtype=np.float64))
    if gain <= 0:
        return 0.0
    if gain > highest[-1]:
        return None
    place = int(np.searchsorted(highest, gain))
    low, high = highest[place - 1], highest[place]
    return float(counts[place - 1] + (counts[place] - counts[place - 1]) * (gain - low) / (high - low))


def _accuracies(answer: Answer) -> Mapping[Judge, Mapping[str, float]]:
    """Judge -> line -> mean accuracy over draws and seeds."""
    values: dict[Judge, dict[str, list[float]]] = {}
    for result in answer.results:
        cell: Cell = result.receipt.cell
        judge = (cell.encoder, cell.classifier, cell.setting)
        values.setdefault(judge, {}).setdefault(cell.line, []).append(result.receipt.accuracy)
    return {judge: {line: float(np.mean(found)) for line, found in lines.items()} for judge, lines in values.items()}

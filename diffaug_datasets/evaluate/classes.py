"""A bench by classes of test images: how well each is told, and which a line makes worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.table import BASE, TEXT, Judge

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ByClass:
    """Accuracy of a line in every class and draw [draws classes], NaN where a draw has no test image of the class."""

    draws: tuple[str, ...]
    accuracy: Values

    @property
    def mean(self) -> Values:
        """Over the draws [classes]; NaN where no draw has an image."""
        there = ~np.isnan(self.accuracy)
        sums = np.where(there, self.accuracy, 0).sum(0)
        means: Values = np.divide(sums, there.sum(0), out=np.full(len(sums), np.nan), where=there.any(0))
        return means

    def minus(self, other: "ByClass") -> "ByClass":
        """Paired differences, in the draws that both have."""
        shared = [draw for draw in self.draws if draw in other.draws]
        ours, theirs = ([one.draws.index(draw) for draw in shared] for one in (self, other))
        return ByClass(tuple(shared), self.accuracy[ours] - other.accuracy[theirs])


@dataclass(frozen=True)
class Harm:
    """A class that a line makes worse: by how much on average (below 0), and in which draw most."""

    line: str
    label: int
    change: float
    draw: str


def by_class(results: Sequence[Result], judge: Judge, classes: int) -> dict[str, ByClass]:
    """Line -> its accuracy by class under one classifier; initialisations are averaged. Needs the predictions."""
    found: dict[str, dict[str, list[Values]]] = {}
    for result in results:
        cell = result.receipt.cell
        if (cell.encoder, cell.classifier, cell.setting) == judge and cell.classifier != TEXT and result.table:
            labels = result.table["label"].to_numpy()
            counts = np.bincount(labels, minlength=classes).astype(np.float64)
            right = np.bincount(labels, weights=result.correct, minlength=classes)
            share = np.divide(right, counts, out=np.full(classes, np.nan), where=counts > 0)
            found.setdefault(cell.line, {}).setdefault(cell.draw, []).append(share)
    return {
        line: ByClass(tuple(draws), np.stack([np.mean(shares, axis=0) for shares in draws.values()]))
        for line, draws in found.items()
    }


def harms(lines: Mapping[str, ByClass], wanted: Sequence[str], most: int) -> list[Harm]:
    """The classes that lines make worse than the real images alone do, each line's worst first, at most so many."""
    of_line: list[list[Harm]] = []
    if BASE not in lines:
        return []
    for line in (name for name in wanted if name in lines):
        change = lines[line].minus(lines[BASE])
        if not change.draws:
            continue
        mean = change.mean
        worse = sorted((float(mean[label]), label) for label in range(len(mean)) if mean[label] < 0)
        of_line.append(
            [
                Harm(line, label, value, change.draws[int(np.nanargmin(change.accuracy[:, label]))])
                for value, label in worse
            ]
        )
    turns = max(map(len, of_line), default=0)
    return [found[turn] for turn in range(turns) for found in of_line if turn < len(found)][:most]

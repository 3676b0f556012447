"""Captions: "a photo of a {class}" with context suffixes that the picture really bears."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tiny.properties import MEASURES, SUFFIXES, Suffix

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PHRASES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

EMPTY_SHARE, PLAIN_SHARE, DOUBLE_SHARE = 0.10, 0.40, 0.15
_NONE = len(SUFFIXES)


def prompt(phrase: str, *suffixes: str) -> str:
    """The caption of a class phrase, followed by the suffixes after one space each."""
    return " ".join((f"a photo of a {phrase}", *suffixes))


def _texts(suffixes: tuple[Suffix, ...]) -> tuple[str, ...]:
    """Suffix texts as one sentence: only the last keeps its full stop."""
    return tuple(s.text.rstrip(".") for s in suffixes[:-1]) + tuple(s.text for s in suffixes[-1:])


def _pairs() -> list[tuple[int, int]]:
    """Pairs of suffixes that one picture can bear at once."""
    return [(i, j) for i, j in combinations(range(_NONE), 2) if SUFFIXES[i].property != SUFFIXES[j].property]


@dataclass(frozen=True)
class CaptionTable:
    """Every caption training can draw.

    `index[label, i, j, stop]` is the number of one (i, j: suffix numbers, _NONE for none; stop: ends in a full stop);
    `labels` [C] and `needs` [C, 3] say what makes it true: the class (-1: any) and the states it asks for (0: any).
    """

    texts: list[str]
    index: np.ndarray
    labels: np.ndarray
    needs: np.ndarray

    @classmethod
    def build(cls) -> CaptionTable:
        """All captions: the empty one, then every class with no, one or two context phrases."""
        texts, labels, needs = [""], [-1], [np.zeros(len(MEASURES), np.int64)]
        index = np.zeros((len(PHRASES), _NONE + 1, _NONE + 1, 2), np.int64)
        choices = [(_NONE, _NONE), *((i, _NONE) for i in range(_NONE)), *_pairs()]
        for label, phrase in enumerate(PHRASES):
            for i, j in choices:
                chosen = tuple(SUFFIXES[k] for k in (i, j) if k != _NONE)
                index[label, i, j] = index[label, j, i] = (len(texts), len(texts) + 1)
                text = prompt(phrase, *_texts(chosen)).rstrip(".")
                texts, labels = [*texts, text, text + "."], [*labels, label, label]
                needs += [_needs(chosen)] * 2
        return cls(texts, index, np.array(labels), np.stack(needs))

    def truth(self, numbers: np.ndarray, labels: np.ndarray, states: np.ndarray) -> np.ndarray:
        """[N, M] booleans: caption numbers[m] is true of the picture with labels[n] and states[n]."""
        needs, wanted = self.needs[numbers], self.labels[numbers]
        same = (wanted == labels[:, None]) | (wanted < 0)
        return same & ((needs == 0) | (needs == states[:, None])).all(2)


def _sign(suffix: Suffix) -> int:
    return 1 if suffix.direction == "up" else -1


def _needs(suffixes: tuple[Suffix, ...]) -> np.ndarray:
    """The states [3] that suffixes ask for; 0 where they ask for none."""
    needs = np.zeros(len(MEASURES), np.int64)
    for suffix in suffixes:
        needs[list(MEASURES).index(suffix.property)] = _sign(suffix)
    return needs


def applicable(states: np.ndarray) -> np.ndarray:
    """[N, 6] booleans: which suffix is true of which picture; states is [N, 3] in -1, 0, 1."""
    columns = [list(MEASURES).index(s.property) for s in SUFFIXES]
    return states[:, columns] == np.array([_sign(s) for s in SUFFIXES])


def draw(
    table: CaptionTable, labels: np.ndarray, states: np.ndarray, rng: np.random.Generator, empty: float = EMPTY_SHARE
) -> np.ndarray:
    """Caption numbers [N] for a batch: empty, plain, or with one or two of the suffixes each picture bears."""
    true_of = applicable(states)
    order = np.argsort(np.where(true_of, rng.random(true_of.shape), 2.0), axis=1)
    count, kind = true_of.sum(1), rng.random(len(labels))
    first = np.where((count > 0) & (kind >= EMPTY_SHARE + PLAIN_SHARE), order[:, 0], _NONE)
    second = np.where((count > 1) & (kind >= 1 - DOUBLE_SHARE), order[:, 1], _NONE)
    numbers = table.index[labels, first, second, (rng.random(len(labels)) < 0.5).astype(np.int64)]
    return np.where(kind < empty, 0, numbers)

"""The lines of a bench as training examples: what each rule of mixing gives an image to say in the loss, on average.

While a classifier trains, `train.mixing.Replacer` puts a synthetic image in the place of a real one with probability p.
A classifier on frozen features sees all images at once, so it takes the mean of that over all epochs: a real image
counts 1 - p, and its share p goes to the synthetic images that might stand in for it. Every line of a draw so has the
same mass, the number of its real images, however many synthetic ones it has.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RecipeError

Array = NDArray[np.float64]
Rule = Literal["class", "global", "index", "lt_inverse"]


@dataclass(frozen=True)
class Labelled:
    """Images of a line: hard labels [n], soft ones [n C], and for each image the ids of the real images it is from."""

    labels: NDArray[np.int64]
    soft: Array
    source_ids: Sequence[Sequence[str]]

    @classmethod
    def hard(cls, labels: Sequence[int], classes: int, source_ids: Sequence[Sequence[str]] = ()) -> "Labelled":
        """All weight on one class."""
        ids = np.asarray(labels, dtype=np.int64)
        return cls(ids, np.eye(classes)[ids], source_ids or [()] * len(ids))

    def __len__(self) -> int:
        return len(self.labels)


def shares(real: Labelled, synthetic: Labelled, rule: Rule, probability: float) -> tuple[Array, Array]:
    """How much each real [n] and each synthetic image [m] counts; both sum to n.

    A real image for which the rule has no synthetic one counts 1, as it always stays.

    Raises:
        RecipeError: the probability is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise RecipeError(f"probability: got {probability}, expected a number from 0 to 1.")
    of_real, of_synthetic = np.ones(len(real)), np.zeros(len(synthetic))
    for places, candidates in _stand_ins(real, synthetic, rule):
        of_real[places] -= probability
        for place, share in candidates.items():
            of_synthetic[place] += probability * share * len(places)
    return of_real, of_synthetic


def _stand_ins(real: Labelled, synthetic: Labelled, rule: Rule) -> Iterator[tuple[list[int], Mapping[int, float]]]:
    """(places of real images, synthetic image -> how often it is the one that stands in for each of them)."""
    by_class = _places(synthetic.labels.tolist())
    if rule == "global":
        everywhere = list(range(len(synthetic)))
        if everywhere:
            yield list(range(len(real))), _even(everywhere)
    elif rule == "lt_inverse":
        counts = np.bincount(real.labels, minlength=real.soft.shape[1])
        inverse = {label: 1 / (int(counts[label]) + 1) for label in by_class}
        total = sum(inverse.values())
        drawn = {p: inverse[c] / total / len(places) for c, places in by_class.items() for p in places}
        if drawn:
            yield list(range(len(real))), drawn
    elif rule == "class":
        for label, places in _places(real.labels.tolist()).items():
            if label in by_class:
                yield places, _even(by_class[label])
    else:
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for place, ids in enumerate(synthetic.source_ids):
            for source_id in dict.fromkeys(ids):
                by_source[source_id].append(place)
        for place, ids in enumerate(real.source_ids):
            if ids and ids[0] in by_source:
                yield [place], _even(by_source[ids[0]])


def _places(labels: Sequence[int]) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        found[label].append(place)
    return dict(found)


def _even(places: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(places, 1 / len(places))

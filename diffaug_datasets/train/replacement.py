"""Which synthetic row stands in for a real one while a classifier trains, by the rule of a paper. Needs no torch.

The rules: `global`, any synthetic row (Diff-Mix, arXiv 2403.19600, authors' code); `class`, one of the same class
(Diff-II, arXiv 2408.16266); `index`, a variant made from that very image (DA-Fusion, arXiv 2302.07944); `lt_inverse`, a
class drawn with probability proportional to 1 / (n_c + 1), n_c its number of real images, then one of its rows (the
long-tail scripts of Diff-Mix and Diff-II). Every draw is a digest of seed, epoch and place, so that any order and any
way of resuming gives the same.
"""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal, get_args

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import uint63

Replacement = Literal["global", "class", "index", "lt_inverse"]


@dataclass(frozen=True)
class Rows:
    """What the rules look at: labels, and the source ids of every row."""

    labels: Sequence[int]
    source_ids: Sequence[Sequence[str]] = field(default=(), repr=False)


@dataclass(frozen=True)
class Replacer:
    """Chooses, for place `index` of the real rows in an epoch, a synthetic row or none.

    Raises:
        RecipeError: the rule or the probability (expected in [0, 1]) cannot be, or no real row is there.
    """

    real: Rows
    synthetic: Rows
    replacement: Replacement = "class"
    probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replacement not in get_args(Replacement):
            known = ", ".join(get_args(Replacement))
            raise RecipeError(f"replacement: got {self.replacement!r}, expected one of {known}.")
        if not 0 <= self.probability <= 1:
            raise RecipeError(f"probability: got {self.probability}, expected a number from 0 to 1.")
        if not self.real.labels:
            raise RecipeError("mixing: got no real row, expected at least one; load the set with its real images.")

    def choose(self, epoch: int, index: int) -> int | None:
        """The place of the synthetic row that replaces real row `index`, or None: the real one stays.

        A real row stays also where the rule has no row for it (a class without synthetic images).
        """
        if self._uniform(epoch, index, "replace") >= self.probability:
            return None
        rows = self._candidates(epoch, index)
        return rows[uint63(self._text(epoch, index, "row")) * len(rows) >> 63] if rows else None

    def _candidates(self, epoch: int, index: int) -> Sequence[int]:
        if self.replacement == "global":
            return range(len(self.synthetic.labels))
        if self.replacement == "class":
            return self._by_class.get(self.real.labels[index], ())
        if self.replacement == "index":
            return self._by_source.get(self.real.source_ids[index][0], ())
        if not self._by_class:
            return ()
        classes, ends = self._class_weights
        drawn = bisect(ends, self._uniform(epoch, index, "class") * ends[-1])
        return self._by_class[classes[min(drawn, len(classes) - 1)]]

    @cached_property
    def _class_weights(self) -> tuple[Sequence[int], Sequence[float]]:
        """Classes with synthetic rows, and the running sums of 1 / (n_c + 1)."""
        counts, classes = Counter(self.real.labels), sorted(self._by_class)
        return classes, list(accumulate(1 / (counts[label] + 1) for label in classes))

    @cached_property
    def _by_class(self) -> Mapping[int, Sequence[int]]:
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, label in enumerate(self.synthetic.labels):
            places[label].append(place)
        return dict(places)

    @cached_property
    def _by_source(self) -> Mapping[str, Sequence[int]]:
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, ids in enumerate(self.synthetic.source_ids):
            for source_id in dict.fromkeys(ids):
                places[source_id].append(place)
        return dict(places)

    def _uniform(self, epoch: int, index: int, role: str) -> float:
        return (uint63(self._text(epoch, index, role)) >> 10) / 2.0**53

    def _text(self, epoch: int, index: int, role: str) -> str:
        return f"{self.seed}|mix|{epoch}|{index}|{role}"

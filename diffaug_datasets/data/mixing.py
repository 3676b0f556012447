"""Who stands in for a real image while a classifier trains: the replacement rules of the papers, as pure draws.

`global`: any synthetic row (Diff-Mix, arXiv 2403.19600, authors' code). `class`: a synthetic row of the same class
(Diff-II, arXiv 2408.16266). `index`: a variant made from that very image (DA-Fusion, arXiv 2302.07944). `lt_inverse`: a
class drawn with probability proportional to 1 / (n_c + 1), n_c its real images, then a row of it (long-tail scripts of
Diff-Mix and Diff-II). Draws are digests of seed, epoch and place, so any order and any resume gives the same.
"""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal, get_args

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.seeds import uint63

Replacement = Literal["global", "class", "index", "lt_inverse"]


@dataclass(frozen=True)
class Rows:
    """What the rules look at: labels, and the source ids of every row."""

    labels: Sequence[int]
    source_ids: Sequence[Sequence[str]] = field(default=(), repr=False)


@dataclass(frozen=True)
class Replacer:
    """Chooses, for place `index` of the real rows in an epoch, a synthetic row or none.

    Raises RecipeError where the rule or the probability (expected in [0, 1]) cannot be, or no row is there.
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
        return self._by_class[self._rare_class(epoch, index)] if self._by_class else ()

    def _rare_class(self, epoch: int, index: int) -> int:
        classes, ends = self._inverse
        return classes[min(bisect(ends, self._uniform(epoch, index, "class") * ends[-1]), len(classes) - 1)]

    @cached_property
    def _inverse(self) -> tuple[Sequence[int], Sequence[float]]:
        """Classes with synthetic rows, and the running sums of 1 / (n_c + 1)."""
        counts, classes = Counter(self.real.labels), sorted(self._by_class)
        return classes, list(accumulate(1 / (counts[label] + 1) for label in classes))

    @cached_property
    def _by_class(self) -> Mapping[int, Sequence[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for place, label in enumerate(self.synthetic.labels):
            found[label].append(place)
        return dict(found)

    @cached_property
    def _by_source(self) -> Mapping[str, Sequence[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for place, ids in enumerate(self.synthetic.source_ids):
            for source_id in dict.fromkeys(ids):
                found[source_id].append(place)
        return dict(found)

    def _uniform(self, epoch: int, index: int, role: str) -> float:
        return (uint63(self._text(epoch, index, role)) >> 10) / 2.0**53

    def _text(self, epoch: int, index: int, role: str) -> str:
        return f"{self.seed}|mix|{epoch}|{index}|{role}"


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: places sorted by their digest, the same on any machine."""
    return sorted(range(count), key=lambda place: (uint63(f"{seed}|order|{epoch}|{place}"), place))

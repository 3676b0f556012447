"""Nearest neighbours by cosine over unit-norm features, which query gets which, and which pictures are duplicates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

BLOCK = 65_536


@dataclass(frozen=True)
class Neighbours:
    """For every query its k nearest pool images, most similar first: cosines, and places in the pool (-1 = none)."""

    cosine: Float[Tensor, "q k"]
    place: Int64[Tensor, "q k"]


@dataclass(frozen=True)
class Match:
    """A pool image that a query got."""

    place: int
    cosine: float


def exact_neighbours(queries: Float[Tensor, "q d"], pool: Float[Tensor, "n d"], k: int) -> Neighbours:
    """The k largest cosines of every query, computed over the whole pool, block by block; k is cut to the pool's size.

    Of equal cosines the lower place comes first.
    """
    k = min(k, len(pool))
    cosine, place = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    for begin in range(0, len(pool), BLOCK):
        block = queries @ pool[begin : begin + BLOCK].T
        places = torch.arange(begin, begin + block.shape[1]).expand(len(queries), -1)
        cosine, place = torch.cat([cosine, block], 1), torch.cat([place, places], 1)
        order = cosine.argsort(dim=1, descending=True, stable=True)[:, :k]
        cosine, place = cosine.gather(1, order), place.gather(1, order)
    return Neighbours(cosine, place)


def assign(
    search: Callable[[int], Neighbours], counts: Sequence[int], size: int, judge: Callable[[], Callable[[int], bool]]
) -> list[list[Match]]:
    """What every query gets, most similar first: at most `counts[q]` pool images, none of them twice in the whole set.

    Pairs of query and image are taken by falling cosine: an image goes to the query that it is most similar to among
    those that still have room. `judge()` begins a pass and gives a function that is asked, in that order, whether an
    image is refused; what is refused nobody gets. The search deepens until all queries have enough, or the pool
    (`size` images) is at its end, so its depth never decides what is found.
    """
    depth = min(size, 2 * max(counts, default=0) + 16)
    while True:
        matches = _take(search(depth), counts, judge())
        is_full = all(len(got) == wanted for got, wanted in zip(matches, counts, strict=True))
        if is_full or depth >= size:
            return matches
        depth = min(size, 2 * depth)


def _take(neighbours: Neighbours, counts: Sequence[int], refuse: Callable[[int], bool]) -> list[list[Match]]:
    got: list[list[Match]] = [[] for _ in counts]
    taken: set[int] = set()
    for cosine, place, query in _pairs(neighbours):
        if len(got[query]) < counts[query] and place not in taken and not refuse(place):
            taken.add(place)
            got[query].append(Match(place, cosine))
    return got


def _pairs(neighbours: Neighbours) -> list[tuple[float, int, int]]:
    """(cosine, place, query), the most similar first; ties by place, then query."""
    cosines, places = neighbours.cosine.tolist(), neighbours.place.tolist()
    pairs = [(c, p, q) for q, row in enumerate(cosines) for c, p in zip(row, places[q], strict=True) if p >= 0]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))


@dataclass(frozen=True)
class Looks:
    """How n pictures look: perceptual hashes [n 64] and unit-norm features [n d]."""

    bits: Bool[Tensor, "n 64"]
    features: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, place: int) -> "Looks":
        return Looks(self.bits[place : place + 1], self.features[place : place + 1])


@dataclass(frozen=True)
class LikenessRule:
    """When two pictures count as the same. A bound of None is not looked at; without both, nothing looks alike.

    `hash_distance`: Hamming distance of the hashes, 0 to 64, at most; `cosine`: of the features, at least.
    """

    hash_distance: int | None
    cosine: float | None
    rule: Literal["either", "both"] = "either"

    def alike(self, one: Looks, others: Looks) -> bool:
        """Whether the one picture counts as the same as any of the others."""
        tests = []
        if self.hash_distance is not None:
            tests.append((one.bits != others.bits).sum(1) <= self.hash_distance)
        if self.cosine is not None:
            tests.append(others.features @ one.features[0] >= self.cosine)
        if not tests or not len(others):
            return False
        both = torch.stack(tests)
        return bool((both.any(0) if self.rule == "either" else both.all(0)).any())


class Sieve:
    """Refuses the pictures that are known to be unwanted, those that look like one of a named set, and repeats.

    `known`: place -> reason. `against`: name of a set (`test`, `source`) -> its pictures. A picture that is not refused
    counts as let through, and what looks like it is refused as a `row`; at most `room` pictures are let through.
    """

    def __init__(
        self, pool: Looks, known: Mapping[int, str], against: Mapping[str, Looks], rule: LikenessRule, room: int
    ) -> None:
        self._pool, self._known, self._against, self._rule = pool, known, against, rule
        self._kept = Looks(pool.bits.new_zeros(room, 64), pool.features.new_zeros(room, pool.features.shape[1]))
        self._count = 0
        self.refused: dict[str, set[int]] = {}

    def __call__(self, place: int) -> bool:
        """Whether the picture in this place is refused; `refused` keeps it under the reason."""
        reason = self._known.get(place) or self._looks_like(self._pool[place])
        if reason:
            self.refused.setdefault(reason, set()).add(place)
            return True
        self._kept.bits[self._count] = self._pool.bits[place]
        self._kept.features[self._count] = self._pool.features[place]
        self._count += 1
        return False

    def _looks_like(self, one: Looks) -> str:
        kept = Looks(self._kept.bits[: self._count], self._kept.features[: self._count])
        sets = {**self._against, "row": kept}
        return next((f"looks like a {name}" for name, others in sets.items() if self._rule.alike(one, others)), "")

"""Nearest neighbours by cosine: exact search over unit-norm features, and who gets which neighbour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
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
        found = _take(search(depth), counts, judge())
        is_full = all(len(got) == wanted for got, wanted in zip(found, counts, strict=True))
        if is_full or depth >= size:
            return found
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

"""Which pool images lie nearest: exactly, or through faiss where a pool is too large for that."""

import importlib
from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, from_numpy

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.extras import install
from diffaug_datasets.numerics.nearest import Neighbours, exact_neighbours

EXACT_UP_TO = 1_000_000
PROBES = 64

Search = Literal["auto", "exact", "faiss"]


def searcher(queries: Float[Tensor, "q d"], pool: Float[Tensor, "n d"], how: Search) -> Callable[[int], Neighbours]:
    """A function from k to the k nearest pool images of every query, by cosine of unit-norm features.

    `auto` is exact up to a million images. faiss looks into the 64 nearest of sqrt(n) inverted lists, so it may miss
    a neighbour; its cosines are exact.

    Raises:
        BackboneError: faiss is wanted and not installed.
    """
    if how == "exact" or (how == "auto" and len(pool) <= EXACT_UP_TO):
        return lambda k: exact_neighbours(queries, pool, k)
    index = _inverted_lists(pool)

    def search(k: int) -> Neighbours:
        cosine, place = index.search(queries.numpy(), min(k, len(pool)))
        return Neighbours(from_numpy(cosine), from_numpy(place))

    return search


def _inverted_lists(pool: Float[Tensor, "n d"]) -> Any:
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        raise BackboneError(
            f"a pool of {len(pool):,} images is searched with faiss, which is not installed: run "
            f"{install('retrieval')}, or set config.search to exact (slower, needs nothing)."
        ) from None
    lists = max(1, int(len(pool) ** 0.5))
    index = faiss.index_factory(pool.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(pool.numpy())
    index.add(pool.numpy())
    index.nprobe = min(PROBES, lists)
    return index

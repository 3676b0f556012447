"""The retrieval index: what the images of a pool look like, and which of them every query gets.

The nearest are found exactly, or through faiss where a pool is too large for that.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, from_numpy

from diffaug_datasets.core.errors import BackboneError, SourceError, install
from diffaug_datasets.core.images import decode_image, perceptual_hash, source_id
from diffaug_datasets.core.method import Context, FitFiles
from diffaug_datasets.core.sources import PoolTable
from diffaug_datasets.numerics.nearest import LikenessRule, Looks, Match, Neighbours, Sieve, assign, exact_neighbours

EXACT_UP_TO = 1_000_000
LISTS_SEARCHED = 64

Search = Literal["auto", "exact", "faiss"]
UNREADABLE = "unreadable"


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
    index.nprobe = min(LISTS_SEARCHED, lists)
    return index


@dataclass(frozen=True)
class Query:
    """What is looked for: a text, or, where that is None, the source image that the name `source id/class id` begins
    with; and how many images it is to get.
    """

    name: str
    text: str | None
    rows: int


@dataclass(frozen=True)
class Entry:
    """A found image: its row in the pool, its id, and its cosine to the query in [-1, 1]."""

    row: int
    image_id: str
    similarity: float


def pool_features(ctx: Context, places: range) -> FitFiles:
    """Unit-norm `features` [n d] and perceptual hashes `bits` [n 64] of a part of the pool; NaN where unreadable.

    Raises:
        SourceError: none of the images can be read.
    """
    table = ctx.pool.table
    unreadable: list[int] = []
    nothing = Image.new("RGB", (8, 8))  # holds the place of what cannot be read, so that no other image moves

    def pictures() -> Iterator[Image.Image]:
        for i in places:
            picture = _picture(ctx.pool.read(table.rows[i], table.ids[i]))
            if picture is None:
                unreadable.append(i - places.start)
            yield picture or nothing

    seen = looks(ctx, pictures())
    if seen is None or len(unreadable) == len(places):
        raise SourceError(f"config.pool: none of {len(places):,} images can be read; give a pool of intact images.")
    seen.features[unreadable], seen.bits[unreadable] = torch.nan, False
    files = {"features.safetensors": {"features": seen.features, "bits": seen.bits}}
    return FitFiles(files, {"images": len(places), UNREADABLE: len(unreadable)})


def looks(ctx: Context, images: Iterable[Image.Image]) -> Looks | None:
    """How pictures, taken one by one, look to the hash and to the method's encoder; None where there is none."""
    bits: list[Tensor] = []

    def hashed(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
        for picture in pictures:
            bits.append(torch.from_numpy(perceptual_hash(picture)))
            yield picture

    waiting = iter(images)
    first = next(waiting, None)
    if first is None:
        return None
    features = ctx.features(hashed(chain([first], waiting))).cpu()
    return Looks(torch.stack(bits), features)


def build_index(
    ctx: Context,
    queries: Sequence[Query],
    chunks: Sequence[str],
    sources: Sequence[str],
    rule: LikenessRule,
    how: Search,
) -> FitFiles:
    """Of every query, most similar first: `rows` [n] in the pool, `ids` [n 32] (sha256) and `similarity` [n].

    `chunks`: the fits that hold the pool's features; `sources`: the real images that nothing found may repeat. What was
    refused stands in `removed.safetensors` by reason, and in numbers in the receipt.
    """
    parts = [ctx.fit(name) for name in chunks]
    features = torch.cat([part["features"] for part in parts])
    pool = Looks(torch.cat([part["bits"] for part in parts]), features.nan_to_num())
    known, against = _known(ctx, sources)
    known |= dict.fromkeys(features.isnan().any(1).nonzero().flatten().tolist(), UNREADABLE)
    counts = [query.rows for query in queries]
    passes: list[Sieve] = []

    def judge() -> Sieve:
        passes.append(Sieve(pool, known, against, rule, sum(counts)))
        return passes[-1]

    seen = dict(zip(sources, against["source"].features, strict=True)) if "source" in against else {}
    got = assign(searcher(_features(ctx, queries, seen), pool.features, how), counts, len(pool), judge)
    refused = passes[-1].refused
    files = {"index.safetensors": _entries(ctx.pool.table, queries, got)}
    if refused:
        lists = {
            f"removed/{reason.replace(' ', '_')}": _digests(ctx.pool.table, sorted(p)) for reason, p in refused.items()
        }
        files["removed.safetensors"] = lists
    removed = {reason: len(places) for reason, places in sorted(refused.items())}
    return FitFiles(files, {"pool": len(pool), "found": sum(map(len, got)), "removed": removed})


def find_entry(tensors: Mapping[str, Tensor], query: str, rank: int) -> Entry | None:
    """The image that a query got at a rank, or None where the pool had no more."""
    rows = tensors[f"{query}/rows"]
    if rank >= len(rows):
        return None
    image_id = bytes(tensors[f"{query}/ids"][rank].tolist()).hex()
    return Entry(int(rows[rank]), image_id, float(tensors[f"{query}/similarity"][rank]))


def _picture(data: bytes) -> Image.Image | None:
    try:
        return decode_image(data)
    except SourceError:
        return None


def _known(ctx: Context, sources: Sequence[str]) -> tuple[dict[int, str], dict[str, Looks]]:
    """Pool places that are a test or source image by their bytes, and how all test and source images look."""
    tests = dict.fromkeys(map(source_id, ctx.held_out()))
    place = {image_id: i for i, image_id in enumerate(ctx.pool.table.ids)}
    known = {place[i]: "same bytes as a source" for i in sources if i in place}
    known |= {place[i]: "same bytes as a test" for i in tests if i in place}
    pictures = {"source": map(ctx.source, sources), "test": _pictures(ctx.held_out())}
    seen = {name: looks(ctx, images) for name, images in pictures.items()}
    return known, {name: one for name, one in seen.items() if one is not None}


def _pictures(encoded: Iterable[bytes]) -> Iterator[Image.Image]:
    """Those that can be read, one of each."""
    seen: set[str] = set()
    for data in encoded:
        name = source_id(data)
        if name not in seen and (image := _picture(data)):
            yield image
        seen.add(name)


def _features(ctx: Context, queries: Sequence[Query], seen: Mapping[str, Tensor]) -> Tensor:
    """Features [n d] of the queries; an image query is a source, whose features are known."""
    texts = [query.text for query in queries if query.text is not None]
    return ctx.text_features(texts).cpu() if texts else torch.stack([seen[q.name.split("/")[0]] for q in queries])


def _entries(table: PoolTable, queries: Sequence[Query], got: Sequence[Sequence[Match]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for query, matches in zip(queries, got, strict=True):
        places = [match.place for match in matches]
        tensors[f"{query.name}/rows"] = torch.tensor([table.rows[i] for i in places], dtype=torch.int64)
        tensors[f"{query.name}/ids"] = _digests(table, places)
        tensors[f"{query.name}/similarity"] = torch.tensor([match.cosine for match in matches], dtype=torch.float32)
    return tensors


def _digests(table: PoolTable, places: Sequence[int]) -> UInt8[Tensor, "n 32"]:
    return torch.tensor([list(bytes.fromhex(table.ids[i])) for i in places], dtype=torch.uint8).reshape(-1, 32)

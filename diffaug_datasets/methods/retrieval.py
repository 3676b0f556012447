"""Retrieval: real images of a large pool, found by the class's name (Burg et al. 2023, arXiv 2304.10253).

1. a query per class: its name as a text, or its real images          `plan`, `Config.query`
2. features of the whole pool, seen once                            fit `pool_features`
3. the nearest pool images of every query, by cosine                fit `retrieval`, `models.image_index`
4. no image twice, none that is a test or source image              `numerics.nearest.Sieve`
5. the image itself, byte for byte, with the label of its query     `generate`

The pool is meant to be what the diffusion model was trained on, so that retrieval is what its synthetic images compete
with. The paper searches LAION-5B through a public service that is gone; any pool that `datasets` reads takes its place,
and every row says which image it is (`pool_id`, sha256 of the bytes), its rank and its similarity. Image queries follow
the comparison in the code of Diffusion Inversion (arXiv 2305.15316). An image that several classes want goes to the one
that it is most similar to; the paper does not say. Rows are planned without the pool being searched: row k of a query
is the k-th image that is left after step 4, and fails where the pool has no more.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.plugin import (
    Context,
    FitFiles,
    FitUnit,
    Generated,
    MethodConfig,
    Place,
    PlanError,
    PlanRow,
    PlanSpec,
    Requirements,
    RowKey,
    Source,
    SourceTable,
    canonical,
    fill,
    image_key,
    new_row,
)

if TYPE_CHECKING:
    from torch import Tensor

NAME = "retrieval"
SLUG = "retrieval"
VERSION = 1
TITLE = "Retrieval"
PAPER = "2304.10253"
PARITY = "reconstruction: no code was released"
N_SOURCES = 0
LABEL_RULE = "target"
NEEDS = frozenset({"pool", "encoder"})
PROMPT = "none, a text or image is the query"
START = "none, the image is found"
FILTER = "near-duplicates, inside and of sources and test"
UNSURE = {
    "query": "from memory: the nearest neighbours of the class's text",
    "prompt": "from memory: one prompt per class, and its words",
    "duplicates": "from memory: the service that the paper asked left near-duplicates out",
}
_CHUNK = 2048


class Duplicates(BaseModel):
    """When two pictures count as the same by look; byte-equal ones always do. Null turns a test off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash_distance: int | None = Field(
        default=5,
        ge=0,
        le=64,
        description="differing bits of 64 in the perceptual hash, at most (Krawetz 2011: 0 to 5)",
    )
    cosine: float | None = Field(
        default=0.94, ge=-1, le=1, description="of the encoder's features, at least (clip-retrieval removes above 0.94)"
    )
    rule: Literal["either", "both"] = Field(default="either", description="one test suffices, or both must agree")


class Config(MethodConfig):
    """Where to look, with what, and what counts as found already."""

    pool: Annotated[str, Place(counts=False, packaged=("tiny",))] = Field(
        default="", description="a builder's name, a Hub id, an image folder, a saved dataset, Parquet or Arrow files"
    )
    encoder: Annotated[str, Place(packaged=("tiny",))] = Field(
        default="openai/clip-vit-large-patch14", description="`tiny`, a folder or a Hub id"
    )
    query: Literal["text", "image"] = Field(default="text", description="the class's name, or its real images in turn")
    prompt: str = Field(default="a photo of a {name}", description="text query; {name}, {metaclass} are filled in")
    search: Literal["auto", "exact", "faiss"] = Field(
        default="auto", description="auto is exact up to a million images, then approximate with faiss"
    )
    duplicates: Duplicates = Duplicates()

    def idle(self) -> dict[str, str]:
        """The text query, where images are the queries."""
        return {"prompt": "query is image"} if self.query == "image" else {}

    @property
    def requirements(self) -> Requirements:
        """The pool and the encoder that looks at it."""
        return Requirements(encoder=self.encoder, texts=self.query == "text", pool=self.pool or None)


class Draw(BaseModel):
    """rank: place among the images that the query gets, 0 = most similar."""

    rank: int


def plan(cfg: Config, table: SourceTable, spec: PlanSpec) -> Iterator[PlanRow]:
    """`spec.count` rows per class; a class without images has rows only where texts are the queries."""
    index = fits(cfg, table, spec, ())[-1].name
    for label, images in table.by_class().items():
        wanted = spec.count(len(images)) if spec.wants(label) else 0
        text = _text(cfg, table, label) if cfg.query == "text" else None
        for k in range(wanted if images or text is not None else 0):
            yield new_row(
                VERSION,
                RowKey(spec.seed, NAME, label, k),
                spec,
                origin="retrieved",
                is_synthetic=False,
                backbone=None,
                adapters=(index,),
                **_query(text, images, label, k),
            )


def _query(text: str | None, images: Sequence[Source], label: int, k: int) -> dict[str, object]:
    if text is not None:
        return {"prompt": text, "draw": _draw(k)}
    source = images[k % len(images)]
    return {"source_ids": (source.id,), "source_labels": (label,), "draw": _draw(k // len(images))}


@lru_cache(maxsize=10_000)
def _draw(rank: int) -> str:
    return canonical(Draw(rank=rank).model_dump())


def _text(cfg: Config, table: SourceTable, label: int) -> str:
    return fill(cfg.prompt, table.prompt_names[label], table.metaclass)


def fits(cfg: Config, table: SourceTable, spec: PlanSpec, rows: Sequence[PlanRow]) -> tuple[FitUnit, ...]:
    """Features of the pool in chunks, then the index of what every query gets.

    Raises:
        PlanError: there is no pool.
    """
    if not spec.pool:
        raise PlanError(
            "retrieval: there is no pool to retrieve from; set config.pool to a builder's name, a Hub id (org/name), "
            "an image folder, a saved dataset, or Parquet or Arrow files."
        )
    seen = {"pool": spec.pool.digest, "encoder": cfg.encoder, "shape": spec.batch_size}
    begins = range(0, len(spec.pool), _CHUNK)
    chunks = [FitUnit.of("pool_features", {**seen, "begin": begin}) for begin in begins]
    index = {
        **seen,
        "search": cfg.search,
        "held_out": spec.held_out,
        "duplicates": cfg.duplicates.model_dump(),
        "queries": _queries(cfg, table, spec),
        "sources": sorted({source.id for source in table.sources}),
    }
    return (*chunks, FitUnit.of("retrieval", index, after=[unit.name for unit in chunks]))


def _queries(cfg: Config, table: SourceTable, spec: PlanSpec) -> list[list[str | int | None]]:
    """[name, text or null, rows] of every query; an image query is named `source id/class id`."""
    queries: list[list[str | int | None]] = []
    for label, images in table.by_class().items():
        wanted = spec.count(len(images)) if spec.wants(label) else 0
        if cfg.query == "text":
            queries += [[str(label), _text(cfg, table, label), wanted]] if wanted else []
        else:
            turns = range(min(wanted, len(images)))
            queries += [[image_key(images[i].id, label), None, len(range(i, wanted, len(images)))] for i in turns]
    return queries


def evaluations(cfg: Config, row: PlanRow) -> int:
    """None: no diffusion model is asked."""
    return 0


def fit(unit: FitUnit, cfg: Config, ctx: Context) -> FitFiles:
    """Features and perceptual hashes of a part of the pool, or the index."""
    from diffaug_datasets.models.image_index import Query, build_index, pool_features
    from diffaug_datasets.numerics.nearest import LikenessRule

    if unit.kind == "pool_features":
        begin = int(unit.content["begin"])
        return pool_features(ctx, range(begin, min(begin + _CHUNK, len(ctx.pool.table))))
    queries = [Query(*query) for query in unit.content["queries"]]
    rule = LikenessRule(**cfg.duplicates.model_dump())
    return build_index(ctx, queries, unit.after, unit.content["sources"], rule, cfg.search)


def generate(rows: Sequence[PlanRow], cfg: Config, ctx: Context) -> list[Generated]:
    """The pool images that the index names, untouched."""
    return [_retrieved(row, ctx) for row in rows]


def _retrieved(row: PlanRow, ctx: Context) -> Generated:
    import torch

    from diffaug_datasets.models.image_index import find_entry

    query = image_key(row.source_ids[0], row.label) if row.source_ids else str(row.label)
    rank = Draw.model_validate_json(row.draw).rank
    entry = find_entry(ctx.fit(row.adapters[0]), query, rank)
    if entry is None:
        lacking = f"the pool has no image of rank {rank} left for this query; give a larger pool or plan fewer rows"
        return Generated(torch.zeros(1, 1, 3), lacking=lacking)
    data = ctx.pool.read(entry.row, entry.image_id)
    measured = {"pool_id": entry.image_id, "pool_row": entry.row, "rank": rank, "similarity": entry.similarity}
    return Generated(picture(data), {**measured, **ctx.pool.attribution(entry.row)}, encoded=data)


def picture(data: bytes) -> "Tensor":
    """Encoded bytes as uint8 RGB pixels [h, w, 3]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(decode_image(data)))

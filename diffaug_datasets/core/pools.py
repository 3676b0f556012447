"""A pool of images to retrieve from: who they are, in an order that no machine, folder or file decides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from diffaug_datasets.core.canonical import digest

POOL_SCHEMA = 1


@dataclass(frozen=True)
class PoolTable:
    """`ids`: sha256 (64 hex digits) of the encoded bytes, rising, each once; `rows[i]`: where image i lies in the pool.

    Byte-equal images of a pool are one image.
    """

    ids: tuple[str, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, ids: Iterable[str]) -> "PoolTable":
        """The table of a pool whose row i holds the image `ids[i]`; an image that comes again counts once."""
        first: dict[str, int] = {}
        for row, image_id in enumerate(ids):
            first.setdefault(image_id, row)
        return cls(tuple(sorted(first)), tuple(first[image_id] for image_id in sorted(first)))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """sha256 over the ids alone: the same images elsewhere, or in another order, are the same pool."""
        return digest({"schema": POOL_SCHEMA, "images": self.ids})


class Pool(Protocol):
    """A pool that can be read."""

    @property
    def table(self) -> PoolTable:
        """Its images, as they were when the plan was made."""

    def read(self, row: int, image_id: str) -> bytes:
        """The encoded bytes in a row. Raises SourceError if they are not the image of that id."""

    def facts(self, row: int) -> Mapping[str, str]:
        """What the pool says about a row's origin: `url`, `author`, `license`, where it has such columns."""

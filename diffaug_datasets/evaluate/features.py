"""Features of images, computed once per image and encoder and kept on disk.

A row is known by its `pixel_sha256`, an encoder by its recorded name, which ends in a revision or digest. Each call
adds one Parquet file of what was missing. The last bits of a feature may depend on the images beside it, see
`models.encoders`; nothing here compares features bit by bit.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.models import cache_home

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image
    from torch import Tensor

BATCH = 32  # images that the encoder sees at once


class ImageEncoder(Protocol):
    """What is asked of an encoder: a name that says its weights, and features [n d] of images taken one by one."""

    name: str

    def image_features(
        self, images: "Iterator[Image]", *, batch_shape: int = BATCH, normalise: bool = True
    ) -> "Tensor":
        """Features on the CPU."""


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/diffaug/features`, else `~/.cache/diffaug/features`."""
    return cache_home() / "features"


def places_by_origin(rows: "datasets.Dataset", where: object) -> tuple[list[int], list[int]]:
    """The places of real rows, and of all others, in a loaded set. `where`: what was loaded, for the message.

    Raises:
        RunError: the set holds no images, as the configs of provenance do.
    """
    if "image" not in rows.column_names:
        raise RunError(f"{where}: this config holds no images; choose another one.")
    places: tuple[list[int], list[int]] = ([], [])
    for place, origin in enumerate(rows["origin"]):
        places[origin != "real"].append(place)
    return places


def row_features(
    rows: "datasets.Dataset", encoder: ImageEncoder, folder: Path | None = None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Unit-norm features [n d] of the images of a loaded set, as RGB, and their pixel digests, in their order.

    Raises:
        ValueError: there is no row.
        RunError: the folder cannot be written.
    """
    digests = tuple(rows["pixel_sha256"])

    def read(place: int) -> "Image":
        picture: Image = rows[place]["image"]
        return picture.convert("RGB")

    return cached_features(encoder, digests, read, folder), digests


def cached_features(
    encoder: ImageEncoder, pixel_sha256: Sequence[str], read: Callable[[int], "Image"], folder: Path | None = None
) -> NDArray[np.float64]:
    """Unit-norm features [n d] of images, in their order; `read(i)` gives the i-th where it was never seen.

    Raises:
        ValueError: there is no image.
        RunError: the folder cannot be written.
    """
    if not pixel_sha256:
        raise ValueError("got no image; give at least one")
    place = (folder or default_folder()) / digest(encoder.name)[:16]
    known = _kept_features(place, set(pixel_sha256))
    missing = {sha: i for i, sha in enumerate(pixel_sha256) if sha not in known}
    if missing:
        images = (read(i) for i in missing.values())
        made = encoder.image_features(images, batch_shape=BATCH).float().numpy()
        known |= dict(zip(missing, made, strict=True))
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel(), pa.float32()), made.shape[1])
        table = pa.table({"pixel_sha256": pa.array(list(missing), pa.string()), "features": numbers})
        write_atomically(place / f"{digest(sorted(missing))[:16]}.parquet", lambda path: pq.write_table(table, path))
    return np.stack([known[sha] for sha in pixel_sha256]).astype(np.float64)


def _kept_features(place: Path, wanted: set[str]) -> dict[str, NDArray[np.float32]]:
    """Pixel digest -> features [d], of the wanted ones that earlier calls have written; damaged files are left out."""
    known: dict[str, NDArray[np.float32]] = {}
    values = pa.array(sorted(wanted), pa.string())
    for path in sorted(place.glob("*.parquet")):
        try:
            if _keys_of(path).isdisjoint(wanted):
                continue
            table = pq.read_table(path, filters=pa.compute.field("pixel_sha256").isin(values))
        except (OSError, pa.ArrowException):
            continue
        rows = table.column("features").combine_chunks()
        width = rows.type.list_size
        numbers = rows.flatten().to_numpy().reshape(-1, width)
        known |= dict(zip(table.column("pixel_sha256").to_pylist(), numbers, strict=True))
    return known


@lru_cache(maxsize=10_000)
def _keys_of(path: Path) -> frozenset[str]:
    """The pixel digests in a file, whose name stands for them; raises what reading it raises."""
    return frozenset(pq.read_table(path, columns=["pixel_sha256"])["pixel_sha256"].to_pylist())

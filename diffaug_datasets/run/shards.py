"""Rows as they are stored, and the file that holds a shard's. Needs no torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from diffaug_datasets.core.canonical import canonical
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.images import DigitalSourceType, encode_image, format_of, pixel_sha256, xmp_packet
from diffaug_datasets.core.rows import PlanRow, row_urn
from diffaug_datasets.core.temporary import FileDigest, write_atomically
from diffaug_datasets.run.features import arrow_schema, schema_digest, write_stream
from diffaug_datasets.run.store import Receipt, Run

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffaug_datasets.run.batch import Made

ImageFormat = Literal["png", "webp"]


@dataclass(frozen=True)
class ArrowFile:
    """A written Arrow stream: its digest, rows, their bytes in memory, and the digest of its features."""

    done: FileDigest
    rows: int
    num_bytes: int
    schema_digest: str

    def receipt(self, plan_id: str, unit: str, **content: Any) -> Receipt:
        """The receipt of the unit that this file is, not yet written."""
        sizes = {"rows": self.rows, "num_bytes": self.num_bytes, "schema_digest": self.schema_digest}
        return Receipt.model_validate({"plan_id": plan_id, "unit": unit, "files": (self.done,), **sizes, **content})


def write_arrow(run: Run, path: Path, rows: Iterable[Mapping[str, Any]]) -> ArrowFile:
    """Write rows of a run, taken one by one, as one Arrow stream, atomically.

    Raises:
        RunError: the disk is full or the folder is read-only.
    """
    names = run.plan.header.class_names
    schema: pa.Schema = arrow_schema(names)
    sizes: list[tuple[int, int]] = []

    def write(temporary: Path) -> None:
        with temporary.open("wb") as sink:
            sizes.append(write_stream(sink, rows, schema))

    done = write_atomically(path, write)
    return ArrowFile(done, *sizes[0], schema_digest(names))


class Spool:
    """Finished rows of a shard on their way into its file: images wait on disk, in a file without a name.

    Batches are grouped by the work that rows need, so they come in another order than rows are stored in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, dict[str, Any]] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk left to write
            self._file.close()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Put encoded rows away.

        Raises:
            RunError: the disk is full.
        """
        with self._writable():
            for row in rows:
                data = row["image"]["bytes"]
                self._places[row["row_id"]] = self._file.seek(0, SEEK_END), len(data)
                self._rows[row["row_id"]] = {**row, "image": None}
                self._file.write(data)

    def rows(self, order: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of these ids, in this order; ids of which no row came are passed over."""
        for row_id in order:
            if row_id in self._rows:
                begin, size = self._places[row_id]
                self._file.seek(begin)
                yield {**self._rows[row_id], "image": {"bytes": self._file.read(size), "path": None}}

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._folder}: cannot put images away ({error.strerror}); free space or check rights."
            ) from None


def planned_columns(row: PlanRow) -> dict[str, Any]:
    """The published columns that the plan decides."""
    return row.model_dump(mode="json", by_alias=True, exclude={"k", "split"})


def encode_rows(
    made: Sequence["Made"], scores: Sequence[dict[str, Any]], plan_id: str, image_format: ImageFormat
) -> list[dict[str, Any]]:
    """The published columns of finished images; runs beside the generation loop."""
    return [encode_row(one, score, plan_id, image_format) for one, score in zip(made, scores, strict=True)]


def encode_row(made: "Made", scores: dict[str, Any], plan_id: str, image_format: ImageFormat) -> dict[str, Any]:
    """One row: planned columns, measurements, and the image with its XMP packet; a found image stays as it is."""
    from PIL import Image

    picture = Image.fromarray(made.pixels)
    data = made.encoded if made.encoded is not None else _stamped(made, picture, plan_id, image_format)
    measured = {**made.measured, **scores.get("measured", {})}
    outcome = {"measured": canonical(measured), "attempt": made.attempt, "batch_shape": made.batch_shape}
    image = {
        "image": {"bytes": data, "path": None},
        "image_format": image_format if made.encoded is None else format_of(data),
        "pixel_sha256": pixel_sha256(picture),
        "width": picture.width,
        "height": picture.height,
    }
    return {**planned_columns(made.row), "plan_id": plan_id, **scores, **outcome, **image}


def _stamped(made: "Made", picture: "Image", plan_id: str, image_format: ImageFormat) -> bytes:
    """The picture, encoded, with a packet that says who it is, and that it was made and from what."""
    edited = bool(made.row.source_ids)
    kind: DigitalSourceType = "compositeWithTrainedAlgorithmicMedia" if edited else "trainedAlgorithmicMedia"
    return encode_image(picture, image_format, xmp_packet(row_urn(plan_id, made.row.row_id), kind))

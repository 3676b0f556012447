"""Rows as they are stored, and the file that holds a shard's. Needs no torch.

The row as `datasets` features and as an Arrow schema: both follow from `core.rows`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image, List, Value

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.files import FileDigest, write_atomically
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.images import MAX_BYTES, DigitalSourceType, encode_image, format_of, pixel_sha256, xmp_packet
from diffaug_datasets.core.rows import PlanRow, published_columns, row_urn
from diffaug_datasets.run.store import Receipt, Run

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffaug_datasets.run.batch import Made

BATCH_ROWS = 100
BATCH_BYTES = 64 << 20  # of encoded images; the offsets of a batch end at 2 GiB, and readers hold a batch at once


def features(class_names: Sequence[str]) -> Features:
    """The published columns, in order, for these labels."""
    special = {
        "image": Image(),
        "label": ClassLabel(names=list(class_names)),
        "soft_label": {"class": List(Value("int32")), "weight": List(Value("float32"))},
        "strings": List(Value("string")),
        "int32s": List(Value("int32")),
    }
    return Features({name: special.get(dtype) or Value(dtype) for name, dtype in published_columns().items()})


def arrow_schema(class_names: Sequence[str]) -> pa.Schema:
    """The schema of every shard; its metadata lets plain `datasets` decode images and labels."""
    return features(class_names).arrow_schema


def schema_digest(class_names: Sequence[str]) -> str:
    """sha256 of the features: shards of one set must agree on it, label order included."""
    return digest(features(class_names).to_dict())


def write_stream(sink: Any, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> tuple[int, int]:
    """Write rows as an Arrow IPC stream, batch by batch; returns how many they were and their bytes in memory.

    A record batch has 100 rows, or fewer where their images weigh more than `BATCH_BYTES`; no more than one is held.

    Raises:
        KeyError: a row has a key that is no column (it would be dropped silently).
        SourceError: an image is larger than an Arrow file can hold.
    """
    count = size = 0
    with pa.ipc.new_stream(sink, schema) as writer:
        for part in _batches(rows):
            unknown = {key for row in part for key in row} - set(schema.names)
            if unknown:
                raise KeyError(f"rows have keys that are no columns: {sorted(unknown)}")
            batch = pa.RecordBatch.from_pylist(part, schema=schema)
            count, size = count + len(part), size + batch.nbytes
            writer.write_batch(batch)
            part.clear()
            del batch
    return count, size


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    weight = 0
    for row in rows:
        needed = len((row.get("image") or {}).get("bytes") or b"")
        if needed > MAX_BYTES:
            name = row.get("row_id")
            raise SourceError(
                f"row {name}: got an image of {needed:,} bytes, expected less than 2 GiB; make it smaller."
            )
        if len(part) == BATCH_ROWS or (part and weight + needed > BATCH_BYTES):
            yield part
            part, weight = [], 0
        part.append(dict(row))
        weight += needed
        del row
    if part:
        yield part


def read_stream(path: str) -> pa.Table:
    """A finished shard as a memory-mapped table."""
    with pa.memory_map(path) as source:
        return pa.ipc.open_stream(source).read_all()


def stored_rows(table: pa.Table, kept: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of these ids as they stand in a shard, read batch by batch."""
    wanted = pa.array(list(kept), pa.string())
    for batch in table.to_batches():
        yield from batch.filter(pc.is_in(batch.column("row_id"), wanted)).to_pylist()


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

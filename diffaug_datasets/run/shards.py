"""Rows as a file holds them: made images become `Row`s here, and an Arrow writer turns those into columns.

Needs no torch. Arrow schema and `datasets` features follow from the table of kinds in `core.rows`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.files import FileDigest, write_atomically
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.images import (
    MAX_BYTES,
    DigitalSourceType,
    decode_with_format,
    encode_image,
    format_of,
    pixel_sha256,
    xmp_packet,
)
from diffaug_datasets.core.rows import KINDS, Outcome, PlanRow, Row, RowScores, published_columns, row_urn
from diffaug_datasets.core.sources import Source

if TYPE_CHECKING:
    from datasets import Features

    from diffaug_datasets.run.batch import Made
    from diffaug_datasets.run.scores import ImageScores

BATCH_ROWS = 100
BATCH_BYTES = 64 << 20  # of encoded images; the offsets of a batch end at 2 GiB, and readers hold a batch at once

ImageFormat = Literal["png", "webp"]
PutFile = Callable[[Path, Callable[[Path], object]], FileDigest]
"""(path, what fills a file) -> what is there then."""


def features_of(columns: Mapping[str, str], class_names: Sequence[str] = ()) -> "Features":
    """`datasets` features of columns (name -> kind): images are decoded as RGB, labels have the names of these classes.

    Real images keep their bytes, whatever colour mode those are of; one mode for all lets a plain collate work, and
    does not tell real rows from made ones.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    def feature(kind: str) -> Any:
        if kind == "image":
            return Image(mode="RGB")
        if kind == "label":
            return ClassLabel(names=list(class_names))
        stored = KINDS[kind]
        if stored.item is None:
            return {name: feature(part) for name, part in stored.parts.items()}
        return List(Value(stored.item)) if stored.is_list else Value(stored.item)

    return Features({name: feature(kind) for name, kind in columns.items()})


def features(class_names: Sequence[str], own: Sequence[str] = ()) -> "Features":
    """The published columns, in order, for these labels; `own`: names of the dataset's own columns, which come last."""
    return features_of(published_columns(own), class_names)


def arrow_schema(class_names: Sequence[str], own: Sequence[str] = ()) -> pa.Schema:
    """The schema of every shard; its metadata lets plain `datasets` decode images and labels."""
    return features(class_names, own).arrow_schema


def schema_digest(class_names: Sequence[str], own: Sequence[str] = ()) -> str:
    """sha256 of the features: shards of one set must agree on it, label order included."""
    return digest(features(class_names, own).to_dict())


def write_stream(sink: IO[bytes], rows: Iterable[Row], schema: pa.Schema) -> tuple[int, int]:
    """Write rows as an Arrow IPC stream, batch by batch; returns how many they were and their bytes in memory.

    A record batch has 100 rows, or fewer where their images weigh more than `BATCH_BYTES`; no more than one is held.

    Raises:
        SourceError: an image is larger than an Arrow file can hold.
    """
    count = size = 0
    with pa.ipc.new_stream(sink, schema) as writer:
        for part in _batches(rows):
            batch = pa.RecordBatch.from_pylist([row.columns() for row in part], schema=schema)
            count, size = count + len(part), size + batch.nbytes
            writer.write_batch(batch)
            part.clear()
            del batch
    return count, size


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    weight = 0
    for row in rows:
        needed = len(row.image)
        if needed > MAX_BYTES:
            raise SourceError(
                f"row {row.id}: got an image of {needed:,} bytes, expected less than 2 GiB; make it smaller."
            )
        if len(part) == BATCH_ROWS or (part and weight + needed > BATCH_BYTES):
            yield part
            part, weight = [], 0
        part.append(row)
        weight += needed
        del row
    if part:
        yield part


def read_stream(path: str) -> pa.Table:
    """A finished shard as a memory-mapped table."""
    with pa.memory_map(path) as source:
        return pa.ipc.open_stream(source).read_all()


def stored_rows(table: pa.Table, kept: Collection[str], own: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of these ids as they stand in a shard, read batch by batch; `own`: the dataset's own columns."""
    wanted = pa.array(list(kept), pa.string())
    for batch in table.to_batches():
        for columns in batch.filter(pc.is_in(batch.column("row_id"), wanted)).to_pylist():
            yield Row.of(columns, columns["image"]["bytes"], own)


@dataclass(frozen=True)
class ArrowFile:
    """A written Arrow stream: its digest, rows, their bytes in memory, and the digest of its features."""

    done: FileDigest
    rows: int
    num_bytes: int
    schema_digest: str


def write_arrow(
    path: Path,
    rows: Iterable[Row],
    class_names: Sequence[str],
    own: Sequence[str] = (),
    put: PutFile = write_atomically,
) -> ArrowFile:
    """Write rows, taken one by one, as one Arrow stream, atomically; `put` may be `write_once`.

    `own`: the dataset's own columns.

    Raises:
        RunError: the disk is full or the folder is read-only.
    """
    schema: pa.Schema = arrow_schema(class_names, own)
    sizes: list[tuple[int, int]] = []

    def write(temporary: Path) -> None:
        with temporary.open("wb") as sink:
            sizes.append(write_stream(sink, rows, schema))

    done = put(path, write)
    return ArrowFile(done, *sizes[0], schema_digest(class_names, own))


class Spool:
    """Finished rows of a shard on their way into its file: images wait on disk, in a file without a name.

    Batches are grouped by the work that rows need, so they come in another order than rows are stored in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, Row] = {}  # without their images
        self._places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk left to write
            self._file.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Put rows away.

        Raises:
            RunError: the disk is full.
        """
        with self._writable():
            for row in rows:
                self._places[row.id] = self._file.seek(0, SEEK_END), len(row.image)
                self._rows[row.id] = row.model_copy(update={"image": b""})
                self._file.write(row.image)

    def rows(self, order: Iterable[str]) -> Iterator[Row]:
        """The rows of these ids, in this order; ids of which no row came are passed over."""
        for row_id in order:
            if row_id in self._rows:
                begin, size = self._places[row_id]
                self._file.seek(begin)
                yield self._rows[row_id].model_copy(update={"image": self._file.read(size)})

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._folder}: cannot put images away ({error.strerror}); free space or check rights."
            ) from None


def real_row(planned: PlanRow, data: bytes, plan_id: str, source: Source) -> Row:
    """A real image's row: the bytes as they came, what decoding them shows, what the source says of their origin."""
    picture, form = decode_with_format(data, source.key)
    outcome = Outcome(
        measured=canonical(dict(source.attribution)),
        width=picture.width,
        height=picture.height,
        image_format=form,
        pixel_sha256=pixel_sha256(picture),
    )
    return Row(image=data, plan_id=plan_id, plan=planned, outcome=outcome, own=dict(source.columns))


def made_rows(
    made: Sequence["Made"], scores: Sequence["ImageScores"], plan_id: str, image_format: ImageFormat
) -> list[Row]:
    """The rows of finished images; runs beside the generation loop."""
    return [made_row(one, score, plan_id, image_format) for one, score in zip(made, scores, strict=True)]


def made_row(made: "Made", scores: "ImageScores", plan_id: str, image_format: ImageFormat) -> Row:
    """The row of a finished image, encoded with its XMP packet; an image that was found stays as it is."""
    picture, data = Image.fromarray(made.pixels), made.encoded
    if data is None:  # the packet says who the picture is, and that it was made and from what
        edited = bool(made.row.source_ids)
        kind: DigitalSourceType = "compositeWithTrainedAlgorithmicMedia" if edited else "trainedAlgorithmicMedia"
        data = encode_image(picture, image_format, xmp_packet(row_urn(plan_id, made.row.row_id), kind))
    outcome = Outcome(
        **scores.model_dump(include=set(RowScores.model_fields)),
        measured=canonical({**made.measured, **scores.probabilities}),
        attempt=made.attempt,
        batch_shape=made.batch_shape,
        width=picture.width,
        height=picture.height,
        image_format=image_format if made.encoded is None else format_of(data),
        pixel_sha256=pixel_sha256(picture),
    )
    return Row(image=data, plan_id=plan_id, plan=made.row, outcome=outcome)

"""A bench's cells on disk: one line, one draw, one classifier; the prediction of every test image, then a receipt.

A cell is a unit of work like a shard: it is known by a digest of everything that decides it, held by one process at a
time, and done when its receipt is there, which is written last and carries the digest of the predictions. What is done
is never made again, so a bench that was killed goes on where it was, and any number of workers make the same files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, read_text, sha256_file, write_atomically, write_text
from diffaug_datasets.core.identity import digest
from diffaug_datasets.run.store import check_locks, lease

SCHEMA = 1


class Cell(BaseModel):
    """What decides a cell, and how its result is found again.

    `draw`: digest of the real and the test images. `line`: its name; `content`: digest of its synthetic images.
    `setting`: how they are used and by which classifier, in words that stand in the table.
    """

    model_config = ConfigDict(frozen=True)

    draw: str
    line: str
    content: str
    encoder: str
    classifier: str
    setting: str
    seed: int
    stack: str

    @property
    def key(self) -> str:
        """24 hex digits over everything above."""
        return digest(["cell", SCHEMA, self.model_dump()])[:24]


class CellReceipt(BaseModel):
    """A finished cell: its predictions' digest, its accuracy in [0, 1], what went into it and how long it took.

    `images`: real and synthetic ones that count; `mass`: what they count together; `evaluations`: U-Net rows that the
    synthetic ones took, None where a set does not say. `steps` of `batch_size` images: of a network, else None.
    """

    model_config = ConfigDict(frozen=True)

    cell: Cell
    predictions: FileDigest
    accuracy: float
    images: int
    mass: float
    seconds: float
    evaluations: int | None = None
    steps: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Result:
    """A finished cell and whether each test image got its label [n], in the order of the draw's test images."""

    receipt: CellReceipt
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Fitted:
    """What making a cell gives: class ids [n] of the test images, and the numbers of its receipt."""

    predicted: NDArray[np.int64]
    images: int
    mass: float
    seconds: float
    evaluations: int | None = None
    steps: int | None = None
    batch_size: int | None = None


class CellFolder:
    """The cells of benches in a folder, which is made if it is missing.

    Raises:
        RunError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror}); give another place.") from None
        check_locks(folder)

    def result(self, cell: Cell) -> Result | None:
        """The finished cell, or None where it is missing or its files are not what the receipt says."""
        path = self._receipt(cell)
        if not path.is_file():
            return None
        try:
            receipt = CellReceipt.model_validate_json(read_text(path))
        except (ValidationError, ValueError):
            return None
        file = self.folder / receipt.predictions.file
        if receipt.cell != cell or not file.is_file() or sha256_file(file) != receipt.predictions.sha256:
            return None
        table = pq.read_table(file)
        return Result(receipt, table["label"].to_numpy() == table["predicted"].to_numpy())

    def make(
        self, cell: Cell, fit: Callable[[], Fitted], test: Sequence[str], labels: NDArray[np.int64]
    ) -> Result | None:
        """The finished cell, made now if it is missing; None where another process is at it.

        `test`: pixel digests of the test images, in order; `labels`: their class ids.

        Raises:
            RunError: the folder cannot be written.
        """
        with lease(self.folder, cell.key) as mine:
            if not mine:
                return None
            if result := self.result(cell):
                return result
            fitted = fit()
            columns = {
                "pixel_sha256": pa.array(test, pa.string()),
                "label": pa.array(labels, pa.int32()),
                "predicted": pa.array(fitted.predicted, pa.int32()),
            }
            table = pa.table(columns)
            done = write_atomically(self.folder / f"{cell.key}.parquet", lambda path: pq.write_table(table, path))
            receipt = CellReceipt(
                cell=cell,
                predictions=done,
                accuracy=float((fitted.predicted == labels).mean()),
                images=fitted.images,
                mass=fitted.mass,
                seconds=round(fitted.seconds, 3),
                evaluations=fitted.evaluations,
                steps=fitted.steps,
                batch_size=fitted.batch_size,
            )
            write_text(self._receipt(cell), receipt.model_dump_json(indent=1) + "\n")
        result = self.result(cell)
        if result is None:
            raise RunError(f"{self.folder}: cell {cell.key} was written and reads otherwise; check the disk.")
        return result

    def _receipt(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

"""A bench's cells on disk: one line, one draw, one classifier; the prediction of every test image, then a receipt.

A cell is a unit of work like a shard: it is known by a digest of everything that decides it, held by one process at a
time, and done when its receipt is there, which is written last and carries the digest of the predictions. What is done
is never made again, so a bench that was killed goes on where it was, and any number of workers make the same files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import FileDigest, read_text, sha256_file, write_atomically, write_text
from diffaug_datasets.core.identity import __version__, digest
from diffaug_datasets.run.leases import lease
from diffaug_datasets.run.place import FolderPlace, probe

SCHEMA = 2
# Modules that decide what a classifier predicts.
DECIDING = (
    *(f"evaluate/{name}.py" for name in ("classifiers", "draws", "networks", "training_sets", "views")),
    "models/image_networks.py",
    "train/replacement.py",
)


@cache
def code_version() -> str:
    """A digest of this package's version and of the modules that decide what a classifier predicts."""
    texts = {name: files("diffaug_datasets").joinpath(*name.split("/")) for name in DECIDING}
    return digest([__version__, {name: text.read_text("utf-8") for name, text in texts.items()}])[:16]


class Cell(BaseModel):
    """What decides a cell, and how its result is found again.

    `draw`: digest of the real and the test images. `line`: its name; `content`: digest of what is learned beside the
    draw's real images, and how. `setting`: how they are used and by which classifier, in words that stand in the table;
    `held_out`: digest of the images that something is chosen on. `stack`: versions of the libraries; `code`: of what
    this package does with images, see `code_version`.
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
    held_out: str = ""
    code: str = ""

    @property
    def key(self) -> str:
        """24 hex digits over everything above."""
        return digest(["cell", SCHEMA, self.model_dump()])[:24]


class CellReceipt(BaseModel):
    """A finished cell: its predictions' digest, its accuracy in [0, 1], what went into it and how long it took.

    `images`: real and synthetic ones that count; `mass`: what they count together. `steps` of the optimiser with
    `batch_size` images each, None where all images are seen at once. `evaluations`: U-Net rows that the synthetic ones
    took, None where a set does not say. `chosen`: what was chosen on held-out images, such as C; '' for nothing.
    """

    model_config = ConfigDict(frozen=True)

    cell: Cell
    predictions: FileDigest
    accuracy: float
    images: int
    mass: float
    seconds: float
    steps: int | None = None
    batch_size: int | None = None
    evaluations: int | None = None
    chosen: str = ""


@dataclass(frozen=True)
class Tested:
    """The test images of a draw, as they stand beside the predictions; all columns are of one length.

    `keys`: pixel digests; `labels`: class ids; `real_counts`: real training images of the image's class; `places`: a
    key of each image that groups are told by, such as where a bird was photographed, '' where it is not known; `kinds`:
    of what kind it is besides its class, empty where nothing says so.
    """

    keys: Sequence[str]
    labels: NDArray[np.int64]
    real_counts: NDArray[np.int64]
    places: Sequence[str]
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """A finished cell and whether each test image got its label [n], in the order of the draw's test images.

    `table`: its predictions, one row per test image: pixel_sha256, label, predicted, real_count, place,
    and `kind` where kinds are known.
    """

    receipt: CellReceipt
    correct: NDArray[np.bool_]
    table: pa.Table | None = None


@dataclass(frozen=True)
class Fitted:
    """What making a cell gives: class ids [n] of the test images, and the numbers of its receipt."""

    predicted: NDArray[np.int64]
    images: int
    mass: float
    seconds: float
    steps: int | None = None
    batch_size: int | None = None
    evaluations: int | None = None
    chosen: str = ""


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
        probe(FolderPlace(folder))

    @classmethod
    def at(cls, folder: Path) -> "CellFolder | None":
        """The cells of a folder to look at, whether or not it can be written; None where it is not there."""
        if not folder.is_dir():
            return None
        cells = cls.__new__(cls)
        cells.folder = folder
        return cells

    def result(self, cell: Cell) -> Result | None:
        """The finished cell, or None where it is missing or its files are not what the receipt says."""
        path = self._receipt(cell)
        if not path.is_file():
            return None
        try:
            receipt = CellReceipt.model_validate_json(read_text(path))
        except (OSError, ValueError):
            return None
        file = self.folder / receipt.predictions.file
        if receipt.cell != cell or not file.is_file() or sha256_file(file) != receipt.predictions.sha256:
            return None
        table = pq.read_table(file)
        return Result(receipt, table["label"].to_numpy() == table["predicted"].to_numpy(), table)

    def seconds(self) -> dict[tuple[str, str], list[float]]:
        """(encoder, classifier) -> how long its finished cells took; unreadable receipts are left out."""
        taken: dict[tuple[str, str], list[float]] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                receipt = CellReceipt.model_validate_json(read_text(path))
            except (OSError, ValueError):
                continue
            taken.setdefault((receipt.cell.encoder, receipt.cell.classifier), []).append(receipt.seconds)
        return taken

    def make(self, cell: Cell, fit: Callable[[], Fitted], test: Tested) -> Result | None:
        """The finished cell, made now if it is missing; None where another process is at it.

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
                "pixel_sha256": pa.array(test.keys, pa.string()),
                "label": pa.array(test.labels, pa.int32()),
                "predicted": pa.array(fitted.predicted, pa.int32()),
                "real_count": pa.array(test.real_counts, pa.int32()),
                "place": pa.array(test.places, pa.string()),
            }
            if test.kinds:
                columns["kind"] = pa.array(test.kinds, pa.string())
            table = pa.table(columns)
            done = write_atomically(self.folder / f"{cell.key}.parquet", lambda path: pq.write_table(table, path))
            receipt = CellReceipt(
                cell=cell,
                predictions=done,
                accuracy=float((fitted.predicted == test.labels).mean()),
                images=fitted.images,
                mass=fitted.mass,
                seconds=round(fitted.seconds, 3),
                steps=fitted.steps,
                batch_size=fitted.batch_size,
                evaluations=fitted.evaluations,
                chosen=fitted.chosen,
            )
            write_text(self._receipt(cell), receipt.model_dump_json(indent=1) + "\n")
        result = self.result(cell)
        if result is None:
            raise RunError(f"{self.folder}: cell {cell.key} was written and reads otherwise; check the disk.")
        return result

    def _receipt(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

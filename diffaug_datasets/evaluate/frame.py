"""A bench as tables of other programs: DataFrames, CSV and Parquet.

`table.csv` has a row per line and the same bytes whoever made the cells; `cells.csv` and `cells.parquet` have a row per
cell, with the seconds that it took.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.files import write_atomically, write_text
from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.table import TableRow

if TYPE_CHECKING:
    import pandas

TABLE, CELLS_CSV, CELLS_PARQUET = "table.csv", "cells.csv", "cells.parquet"
COLUMNS = {
    **dict.fromkeys(("key", "draw", "line", "content", "encoder", "classifier", "setting"), pa.string()),
    "seed": pa.int64(),
    "stack": pa.string(),
    "accuracy": pa.float64(),
    "test_images": pa.int64(),
    "images": pa.int64(),
    "mass": pa.float64(),
    "steps": pa.int64(),
    "batch_size": pa.int64(),
    "evaluations": pa.int64(),
    "seconds": pa.float64(),
    "predictions_sha256": pa.string(),
}


def cells_table(results: Sequence[Result]) -> pa.Table:
    """One row per cell, in the order of its name: what decides it, accuracy in [0, 1], what it took."""
    ordered = sorted(results, key=lambda one: _name(one))
    rows = [
        {
            "key": result.receipt.cell.key,
            "test_images": len(result.correct),
            "predictions_sha256": result.receipt.predictions.sha256,
            **result.receipt.cell.model_dump(),
            **result.receipt.model_dump(exclude={"cell", "predictions"}),
        }
        for result in ordered
    ]
    return pa.Table.from_pylist(rows, pa.schema(list(COLUMNS.items())))


def _name(result: Result) -> tuple[str, str, str, str, str, int]:
    cell = result.receipt.cell
    return cell.encoder, cell.classifier, cell.setting, cell.line, cell.draw, cell.seed


def cells_frame(results: Sequence[Result]) -> "pandas.DataFrame":
    """`cells_table` as a DataFrame."""
    frame: pandas.DataFrame = cells_table(results).to_pandas()
    return frame


def table_frame(rows: Sequence[TableRow]) -> "pandas.DataFrame":
    """The rows of a bench as a DataFrame, with the columns of `table.csv`."""
    import pandas

    return pandas.DataFrame([row.flat() for row in rows])


def table_csv(rows: Sequence[TableRow]) -> str:
    """`table.csv`: a row per line, classifier and group of test images; '' where a number is not there."""
    return _csv([row.flat() for row in rows])


def write_tables(folder: Path, rows: Sequence[TableRow], results: Sequence[Result]) -> Path:
    """Write `table.csv`, `cells.csv` and `cells.parquet` into a bench's folder; gives the first.

    Raises:
        RunError: the folder cannot be written.
    """
    cells = cells_table(results)
    write_text(folder / TABLE, table_csv(rows))
    write_text(folder / CELLS_CSV, _csv(cells.to_pylist()))
    write_atomically(folder / CELLS_PARQUET, lambda unfinished: pq.write_table(cells, unfinished))
    return folder / TABLE


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()

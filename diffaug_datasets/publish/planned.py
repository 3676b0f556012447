"""The plan of a release, gone through once in parts: its id, its header, and what its rows add up to."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.canonical import canonical
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import PlanHeader
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.data.foreign_tables import PART_ROWS


@dataclass(frozen=True)
class Planned:
    """What a plan says. `planned`: rows to make by label; `real`: real ones for training; `test`: real test rows."""

    id: str
    header: PlanHeader
    fits: tuple[str, ...]
    planned: Counter[int]
    real: Counter[int]
    test: int
    ids: pa.ChunkedArray


def read_planned(header: Path, rows: Path) -> Planned:
    """The plan in `plan.json` and `plan.parquet`, of any size.

    Raises:
        PublishError: it cannot be read, or its real rows do not come first.
    """
    try:
        told = json.loads(header.read_text(encoding="utf-8"))
        fits = tuple(FitUnit(unit["kind"], unit["payload"], tuple(unit["after"])).name for unit in told["fits"])
        return _added_up(PlanHeader(**told["header"]), fits, rows)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise PublishError(f"{rows.name}: the plan cannot be read ({reason}); do not use it.") from None


def _added_up(header: PlanHeader, fits: tuple[str, ...], path: Path) -> Planned:
    hasher, made, real, test = hashlib.sha256(), Counter[int](), Counter[int](), 0
    hasher.update(_line(header.model_dump(mode="json", exclude={"source_revision"})))
    ids = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(PART_ROWS):
            batch.validate(full=True)
            ids.append(batch.column("row_id"))
            for row in (PlanRow(**columns) for columns in batch.to_pylist()):
                if row.origin == "real" and made:
                    raise ValueError(f"the real row {row.row_id} stands behind rows to make")
                counts = made if row.origin != "real" else real if row.split == "train" else Counter[int]()
                counts[row.label] += 1
                test += row.origin == "real" and row.split == "test"
                hasher.update(_line(row.model_dump(mode="json", by_alias=True)))
    return Planned(hasher.hexdigest(), header, fits, made, real, test, pa.chunked_array(ids, pa.string()))


def _line(value: Any) -> bytes:
    return canonical(value).encode() + b"\n"

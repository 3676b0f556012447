"""The grid: every image small, the worst first, sheets that hold the right tiles, and the only script that may run."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.report import grid as module
from diffaug_datasets.report.grid import COLUMNS, grid, ordered
from diffaug_datasets.report.page import write_report
from diffaug_datasets.report.row import row_card, show
from diffaug_datasets.report.run_view import RunView, ScannedRow
from diffaug_datasets.run.store import Receipt, Run

MakeRun = Callable[..., Run]


def scripts(page: Path) -> list[str]:
    """What stands in the script elements of a page."""
    return re.findall(r"<script[^>]*>(.*?)</script>", page.read_text(encoding="utf-8"), re.S)


def sheet(uri: str) -> np.ndarray:
    """The pixels of a sheet, float [h, w, 3]."""
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"), dtype=float)


def test_the_tile_of_a_row_shows_its_image(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINES", 1)  # so that there are two sheets
    view = RunView(make_run(per_class=10))
    [found] = grid([view], ["GeNIe"]).runs
    assert found.side == 32 and len(found.rows) == 30 and len(found.sheets) == 2
    scanned = {row.row_id: row for row in view.rows}
    for place, row in enumerate(found.rows):
        lines = sheet(found.sheets[place // COLUMNS])
        left = place % COLUMNS * 32
        tile = lines[:32, left : left + 32]
        stored = Image.open(BytesIO(view.data(scanned[row.row_id]))).convert("RGB")
        assert np.abs(tile - np.asarray(stored, dtype=float)).mean() < 12, place
    other = Image.open(BytesIO(view.data(scanned[found.rows[1].row_id]))).convert("RGB")
    assert np.abs(sheet(found.sheets[0])[:32, :32] - np.asarray(other, dtype=float)).mean() > 24


def scanned(name: str, judged: int | None, confidence: float | None, margin: float | None) -> ScannedRow:
    return ScannedRow(name, 0, None, judged, confidence, margin, "shard", 0)


def test_the_worst_come_first_and_what_nobody_scored_last() -> None:
    rows = [
        scanned("unscored", None, None, None),
        scanned("good", 0, 0.9, 0.5),
        scanned("unsure mistake", 1, 0.4, 0.3),
        scanned("low", 0, 0.9, -0.1),
        scanned("sure mistake", 1, 0.9, 0.3),
    ]
    names = [row.row_id for row in ordered(rows)]
    assert names == ["sure mistake", "unsure mistake", "low", "good", "unscored"]


def test_the_page_carries_the_rows_as_they_are(make_run: MakeRun, hostile, tmp_path: Path) -> None:
    run = make_run(class_names=hostile, per_class=2)
    data, script = scripts(write_report([run], tmp_path / "r.html"))
    assert "<" not in data
    [told] = json.loads(data)
    assert told["classes"] == list(hostile) and told["total"] == 12 and told["folder"] == str(run.folder)
    planned = {row.row_id: row.label for row in run.plan.rows}
    assert {row[0]: row[1] for row in told["rows"]} == planned
    named = hashlib.sha256(script.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(named).decode()}';" in (tmp_path / "r.html").read_text("utf-8")


def test_two_runs_stand_in_one_grid(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("one", method="genie"), make_run("two", method="txt2img")]
    data, _ = scripts(write_report(runs, tmp_path / "r.html"))
    assert [run["title"] for run in json.loads(data)] == ["GeNIe", "Txt2Img"]


def test_a_run_without_images_has_no_grid(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run(shards=0)], tmp_path / "r.html")
    assert scripts(page) == [] and "every-image" not in page.read_text(encoding="utf-8")


def test_a_page_that_would_be_too_large_shows_the_worst(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    view = RunView(make_run(per_class=20))
    whole = grid([view], ["GeNIe"])
    assert (whole.shown, whole.total) == (60, 60)
    size = len(whole.runs[0].sheets[0])
    monkeypatch.setattr(module, "MOST_ROWS", 60)
    monkeypatch.setattr(module, "SHEETS_BYTES", size // 4)
    part = grid([view], ["GeNIe"])
    assert 0 < part.shown < part.total == 60
    assert sum(len(sheet) for sheet in part.runs[0].sheets) <= size // 4
    assert part.runs[0].rows == whole.runs[0].rows[: part.shown]


def test_an_image_that_cannot_be_read_is_a_grey_tile(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decoded", lambda data: None)
    [found] = grid([RunView(make_run())], ["GeNIe"]).runs
    assert found.side == 1 and len(found.rows) == 18
    assert np.abs(sheet(found.sheets[0]) - 127).max() < 4


def test_large_images_are_decoded_once_and_kept_small(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = module.decoded
    monkeypatch.setattr(module, "decoded", lambda data: (seen.append(len(data)), real(data))[1])
    monkeypatch.setattr(module, "SHEETS_BYTES", 1)
    [found] = grid([RunView(make_run(side=300, per_class=4))], ["GeNIe"]).runs
    assert len(seen) == 12 and found.side == 48 and len(found.rows) == 1
    assert sheet(found.sheets[0]).shape == (48, 48 * COLUMNS, 3)


def test_what_the_runs_oracle_sees_is_the_verdict_where_no_judge_looked(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(scored=False)
    assert grid([RunView(run)], ["GeNIe"]).order.startswith("Nobody has judged or scored these images")
    seen = {row.row_id: (row.label + (i % 4 == 0)) % 3 for i, row in enumerate(run.plan.rows)}
    table = pa.table({"row_id": list(seen), "seen_label": list(seen.values())})
    file = write_atomically(run.folder / "quality.parquet", lambda path: pq.write_table(table, path))
    run.write_receipt(Receipt(plan_id=run.plan.id, unit="quality", files=(file,), rows=len(seen)))
    view = RunView(run)
    found = grid([view], ["GeNIe"])
    assert found.order == "The worst come first: what is judged to be another class."
    [told] = found.runs
    assert {row.row_id: row.judged for row in told.rows} == seen
    doubted = [row.judged != row.label for row in told.rows]
    assert any(doubted) and doubted == sorted(doubted, reverse=True)
    worst = told.rows[0]
    assert f"{view.class_names[seen[worst.row_id]]} (label {seen[worst.row_id]})" in show(run, worst.row_id)
    assert row_card(view, view.picture(view.rows[0])).judged is not None

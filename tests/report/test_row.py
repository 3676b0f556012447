"""One row in full: found by any unique beginning, every column readable, sheets as HTML and PNG."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.report.row import show


def test_text_tells_prompts_draws_measurements_scores_and_sources(make_run) -> None:
    run = make_run(method="diff_ii")
    row = run.plan.rows[0]
    text = show(run, row.row_id[:10])
    assert text.startswith(f"row {row.row_id} of fashion_5shot_diffii")
    told = (row.prompt, row.prompt_first, *row.source_ids, row.seed, "alpha", "clip_margin", "written and kept")
    assert all(str(piece) in text for piece in told)


def test_unknown_and_ambiguous_rows_are_one_sentence(make_run) -> None:
    run = make_run()
    with pytest.raises(RunError, match=r"no row id begins with 'zz'; ids are 24 hex digits, such as [0-9a-f]{24}\."):
        show(run, "zz")
    with pytest.raises(RunError, match="no row id begins with ''"):
        show(run, "")
    digits = [row.row_id[0] for row in (*run.plan.rows, *run.plan.real)]
    repeated = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(RunError, match=rf"row ids begin with '{repeated}' \(.*give more digits"):
        run.row(repeated)


def test_a_real_image_is_found_by_its_digest_too(make_run) -> None:
    run = make_run()
    real = run.plan.real[-1]
    assert run.row(real.source_ids[0][:16]) == real == run.row(real.source_ids[0])
    assert real.source_ids[0] in show(run, real.source_ids[0][:8])
    with pytest.raises(RunError, match="no row id begins with"):
        run.row(real.source_ids[0][:7] + "z")


def test_real_failed_and_missing_rows(make_run) -> None:
    run = make_run(failing=1, shards=1)
    assert "failed after 3 attempts: constant <image>" in show(run, run.plan.rows[0].row_id)
    assert "no image yet: its shard is not made" in show(run, run.plan.rows[-1].row_id)
    assert "real, method real version 0" in show(run, run.plan.real[0].row_id)


def test_sheets(make_run, tmp_path: Path) -> None:
    run = make_run(method="diff_ii", class_names=("<b>bag</b>", "boot"))
    row = run.plan.rows[0].row_id
    show(run, row, tmp_path / "row.png")
    with Image.open(tmp_path / "row.png") as sheet:
        assert sheet.size == (2 * 32 + 3 * 256 + 2 * 28, 2 * 32 + 256 + 64)
    show(run, row, tmp_path / "row.html")
    html = (tmp_path / "row.html").read_text(encoding="utf-8")
    assert "<b>bag</b>" not in html and "default-src 'none'" in html and html.count("<img ") == 3
    show(run, run.plan.real[0].row_id, tmp_path / "real.png")


def test_sheets_that_cannot_be(make_run, tmp_path: Path) -> None:
    run = make_run(failing=1)
    with pytest.raises(RunError, match=r"got the ending '\.gif', expected \.html or \.png"):
        show(run, run.plan.rows[1].row_id, tmp_path / "row.gif")
    with pytest.raises(RunError, match=r"has no image .* there is no sheet of it"):
        show(run, run.plan.rows[0].row_id, tmp_path / "row.html")


def test_terminals_get_no_control_characters(make_run) -> None:
    run, names = make_run(class_names=("red", "two")), ("\x1b[31mred", "two\nlines")
    header = run.plan.header.model_copy(update={"class_names": names, "prompt_names": names})
    run.__dict__["plan"] = replace(run.plan, header=header)  # nothing here plans such names; a stranger's folder may
    text = "".join(show(run, row.row_id) for row in run.plan.rows)
    assert "\x1b" not in text and r"\x1b[31mred" in text and r"two\nlines" in text

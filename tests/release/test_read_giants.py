"""Pipes, sparse giants and millions of rows in what others published: one sentence at once, or bounded memory."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_line import Command

from diffaug_datasets.release.layout import read_release
from diffaug_datasets.release.provenance import quality
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.release.read import Provenance
from diffaug_datasets.run.store import Run

GIANT = 1 << 40


@pytest.fixture
def shelf(finished: Run, tmp_path: Path) -> Path:
    """The folder of a published config, which a test may change."""
    return tmp_path / "fashion" / publish(finished, f"file://{tmp_path}/fashion").folder


@pytest.mark.parametrize("kind", ["pipe", "giant"])
@pytest.mark.parametrize("name", ["README.md", "run.json", "recipe.yaml", "plan.json", "provenance.parquet", "train"])
def test_what_is_no_file_of_ours_is_refused_at_once(shelf: Path, diffaug: Command, kind: str, name: str) -> None:
    """A pipe would be waited for without end; a terabyte of nothing takes hours to read."""
    root = shelf.parents[2]
    path = root / name if name == "README.md" else shelf / name.replace("train", "train-00001-of-00004.arrow")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(GIANT)
    said = [diffaug("verify", root), diffaug("regen", root, "0", "--device", "cpu")]
    assert (said[0].code in (1, 2) and said[1].code == 2) or name in ("train", "plan.json"), said
    told = "".join(answer.out + answer.err for answer in said)
    assert "Traceback" not in told
    wanted = ("is not there",) if kind == "pipe" else ("has other bytes", f"has {GIANT:,} bytes, expected at most")
    assert any(word in told for word in wanted), told


def test_a_place_whose_name_is_not_utf8(shelf: Path, tmp_path: Path, finished: Run, diffaug: Command) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shelf.parents[2].rename(odd)
    for words in (("verify", odd), ("regen", odd, "0"), ("publish", finished.folder, f"file://{odd}")):
        assert "its name is no UTF-8 text" in diffaug(*words).sentence


def test_millions_of_rows_are_never_in_memory_whole(shelf: Path) -> None:
    """Rows are read in parts; what is counted or compared is read column by column."""
    path = shelf / "provenance.parquet"
    release = read_release((shelf / "run.json").read_bytes(), "")
    small = pq.read_table(path)
    table = pa.concat_tables([small] * 10_000)
    ids = pa.array([f"{number:024x}" for number in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("row_id"), "row_id", ids), path, row_group_size=10_000)
    found, before, most, rows = Provenance.at(path, release), pa.total_allocated_bytes(), 0, 0
    for part in found.parts():
        most, rows = max(most, pa.total_allocated_bytes() - before), rows + len(part)
    assert rows == len(table) == 200_000
    assert most < table.nbytes / 3, f"{most:,} of {table.nbytes:,} bytes at once"
    assert [row["row_id"] for row in found.rows(pc.field("row_id") == ids[-1].as_py())] == [ids[-1].as_py()]
    assert quality(found.table(("origin", "status", "label", "judge_label", "judge_confidence", "clip_score",
                                "clip_margin", "source_similarity"))) == quality(small)  # fmt: skip

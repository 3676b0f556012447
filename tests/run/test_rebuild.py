"""The arbiter: the run is gone; rows, fits and sources rebuild it bit for bit."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import METHODS, small_run, some_by_default

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.context import sources_in
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.rebuild import Regenerator
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.worker import WorkerOptions

ROWS = 20


# Rows of every method are made again in `test_contract`; here the run is gone, which is of the engine.
@pytest.mark.parametrize("slug", some_by_default(sorted(METHODS), ("diffii",)))
def test_twenty_rows_rebuild_bit_equal_without_the_run(tmp_path: Path, slug: str) -> None:
    run = small_run(tmp_path / "run", slug)
    execute(run, WorkerOptions(), workers=1)
    recipe, plan = run.recipe, run.plan
    rows = [row for s in run.plan.shards() for row in run.table(s).to_pylist()]
    real = [run.table(s).combine_chunks() for s in run.plan.real_shards()]
    sources = {
        ids[0]: image["bytes"]
        for t in real
        for ids, image in zip(t["source_ids"].to_pylist(), t["image"].to_pylist(), strict=True)
    }
    shutil.move(run.folder / "fits", tmp_path / "fits") if run.plan.fits else None
    shutil.rmtree(run.folder)
    rebuild = Regenerator(recipe, plan, tmp_path / "fits", sources.__getitem__)
    for row in random.Random(slug).sample(rows, ROWS):
        rebuilt = rebuild(without_image(row))
        assert rebuilt.equal
        assert rebuilt.data == row["image"]["bytes"]


def without_image(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "image"}


def test_a_changed_draw_is_noticed(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img")
    execute(run, WorkerOptions(), workers=1)
    row = read_stream(str(run.shard_path("synthetic-00000"))).to_pylist()[0]
    rebuild = Regenerator(run.recipe, run.plan, run.folder / "fits", sources_in([]))
    assert not rebuild({**row, "seed": row["seed"] + 1}).equal


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "txt2img")
    execute(run, WorkerOptions(), workers=1)
    row = read_stream(str(run.shard_path("synthetic-00000"))).to_pylist()[0]
    rebuild = Regenerator(run.recipe, run.plan, run.folder / "fits", sources_in([]))
    with pytest.raises(RunError, match="was made by txt2img version 9, this is txt2img 1"):
        rebuild({**row, "method_version": 9})

"""One real image is withdrawn: its rows go, every other row stays the same bytes, and so do shards it was not in."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from safetensors import safe_open
from small_runs import small_recipe, small_run

from diffaug_datasets.core.errors import PlanError, RecipeError, RunError
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.plan import without_images
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.reuse import withdraw
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


@pytest.fixture(scope="module")
def genie(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """20 images in 3 shards; nothing may change it."""
    return executed(small_run(tmp_path_factory.mktemp("withdrawal") / "run", "genie"))


def executed(run: Run) -> Run:
    execute(run, WorkerOptions(device="cpu"), workers=1)
    return Run.open(run.folder)


def stored(run: Run) -> dict[str, dict[str, Any]]:
    """Row id -> all columns, image bytes included, of every row that run.json lists."""
    from diffaug_datasets.run.assembly import finished

    done = finished(run)
    assert done is not None
    return {row["row_id"]: row for file in done.files for row in read_stream(str(run.folder / file.path)).to_pylist()}


def rare(run: Run) -> str:
    """The image that fewest rows were made from, but at least one."""
    counts = Counter(image for row in run.plan.rows for image in row.source_ids)
    return min(counts, key=lambda image: (counts[image], image))


def test_its_rows_go_and_nothing_else_changes(genie: Run, tmp_path: Path) -> None:
    gone, before = rare(genie), stored(genie)
    made = withdraw(genie, [gone], tmp_path / "new")
    after = stored(Run.open(tmp_path / "new"))
    assert set(before) - set(after) == {i for i, row in before.items() if gone in row["source_ids"]}
    assert after == {i: row for i, row in before.items() if gone not in row["source_ids"]}
    assert set(made.rows) == {row.row_id for row in genie.plan.rows if gone in row.source_ids}
    held = {s.name for s in (*genie.plan.real_shards(), *genie.plan.shards()) for r in s.rows if gone in r.source_ids}
    for shard in (*made.run.plan.real_shards(), *made.run.plan.shards()):
        same = sha256_file(made.run.shard_path(shard.name)) == sha256_file(genie.shard_path(shard.name))
        assert same == (shard.name not in held), shard.name
    assert (made.taken, made.rewritten) == (4 - len(held), len(held))
    assert made.run.plan.id != genie.plan.id


def test_the_recipe_plans_the_same(genie: Run, tmp_path: Path) -> None:
    gone = rare(genie)
    made = withdraw(genie, [gone], tmp_path / "new")
    assert made.run.recipe.withdrawn == (gone,)
    assert prepare(made.run.recipe).plan.id == made.run.plan.id
    assert prepare(small_recipe("genie", withdrawn=[gone])).plan.id == made.run.plan.id


def test_one_after_the_other_is_both_at_once(genie: Run) -> None:
    ids = [row.source_ids[0] for row in genie.plan.real]
    for first, second in ((ids[0], ids[7]), (ids[7], ids[0])):
        stepwise = without_images(without_images(genie.plan, [first]), [second])
        assert stepwise.id == without_images(genie.plan, [ids[0], ids[7]]).id
    everything_of_a_shard = {i for row in genie.plan.shards()[-1].rows for i in row.source_ids}
    emptied = without_images(genie.plan, everything_of_a_shard)
    assert len(emptied.shards()) == len(emptied.header.sizes["synthetic"]) - 1
    assert (
        without_images(emptied, [next(i for i in ids if i not in everything_of_a_shard)]).header.sizes["synthetic"][-1]
        == 0
    )


def test_other_fits_and_rows_stay_and_its_latents_go(tmp_path: Path) -> None:
    """Diff-II: inverted latents hold an image by itself; concepts were learned from all and other rows rest on them."""
    run = executed(small_run(tmp_path / "run", "diffii", per_class=1))
    gone = run.plan.rows[0].source_ids[0]
    made = withdraw(run, [gone], tmp_path / "new")
    assert [name.partition("-")[0] for name in made.learned] == ["concepts"]
    names = tensor_names(made.run)
    assert names and not any(gone in name for name in names)
    assert names == [name for name in tensor_names(run) if gone not in name]
    again = Run.open(tmp_path / "new")
    for shard in again.plan.shards():
        again.receipt_path(shard.name).unlink()
        again.shard_path(shard.name).unlink()
    (again.folder / "run.json").unlink()
    kept = {i: row["pixel_sha256"] for i, row in stored(run).items() if gone not in row["source_ids"]}
    assert {i: row["pixel_sha256"] for i, row in stored(executed(again)).items()} == kept


def tensor_names(run: Run) -> list[str]:
    names = []
    for path in sorted(run.folder.glob("fits/inversions-*/*.safetensors")):
        with safe_open(path, "pt") as file:
            names += sorted(file.keys())
    return names


def test_a_kill_in_the_middle_is_made_good(genie: Run, tmp_path: Path) -> None:
    gone = rare(genie)
    whole = withdraw(genie, [gone], tmp_path / "whole")
    half = withdraw(genie, [gone], tmp_path / "half")
    for name in ("plan.json", "run.json", "shards/synthetic-00001.json"):
        (half.run.folder / name).unlink()
    again = withdraw(genie, [gone], tmp_path / "half")
    assert stored(again.run) == stored(whole.run)
    assert (again.taken, again.rewritten) == (whole.taken, whole.rewritten)
    assert not list(again.run.folder.rglob(".*.tmp"))


def test_the_command_takes_a_file_or_an_id(genie: Run, tmp_path: Path, diffaug: Command) -> None:
    real = next(row for row in stored(genie).values() if row["origin"] == "real")
    picture, gone = tmp_path / "picture.png", real["source_ids"][0]
    picture.write_bytes(real["image"]["bytes"])
    by_file = diffaug("withdraw", genie.folder, picture, "--run", tmp_path / "a")
    by_id = diffaug("withdraw", genie.folder, gone[:16], "--run", tmp_path / "b")
    assert (by_file.code, by_id.code) == (0, 0), by_file
    assert Run.open(tmp_path / "a").plan.id == Run.open(tmp_path / "b").plan.id
    assert f"({gone[:16]})" in by_file.out and "next: diffaug publish" in by_file.out


def test_what_cannot_be_withdrawn(genie: Run, tmp_path: Path, diffaug: Command) -> None:
    assert "'abc': no training image of" in diffaug("withdraw", genie.folder, "abc").sentence
    [(digit, _)] = Counter(row.source_ids[0][0] for row in genie.plan.real).most_common(1)
    assert "training images of" in diffaug("withdraw", genie.folder, digit).sentence
    with pytest.raises(PlanError, match=r"withdrawn: got '0+', expected the sha256 of a real training image"):
        withdraw(genie, ["0" * 64], tmp_path / "new")
    everything = [row.source_ids[0] for row in genie.plan.real]
    with pytest.raises(PlanError, match="no synthetic row would be left"):
        withdraw(genie, everything, tmp_path / "new")
    with pytest.raises(RunError, match="holds another plan"):
        withdraw(genie, [rare(genie)], genie.folder)
    with pytest.raises(RecipeError, match="withdrawn: got 'abc', expected the sha256 of a real image"):
        prepare(small_recipe("genie", withdrawn=["abc"]))
    shutil.copytree(genie.folder, tmp_path / "half", ignore=shutil.ignore_patterns("run.json"))
    with pytest.raises(RunError, match="not finished; `diffaug generate"):
        withdraw(Run.open(tmp_path / "half"), [rare(genie)], tmp_path / "new")
    assert not (tmp_path / "new").exists()

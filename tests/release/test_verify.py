"""A published set is enough to check it and to make its rows again; whoever changes it is found out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Command
from hub.server import LoopbackHub
from PIL import Image

from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.images import decode_image, encode_image, pixel_sha256
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.release import contents, verify
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.rebuild import MOST_LEVELS
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.run.store import Run

NAME = "org/fashion"


class Shelf:
    """A published folder that a test may change, with `run.json` made to agree."""

    def __init__(self, run: Run, folder: Path, **options: Any) -> None:
        self.place = str(folder)
        self.folder = folder / publish(run, f"file://{folder}", PublishOptions(**options)).folder

    def agree(self, *names: str) -> None:
        """Write the digests of changed files into `run.json`."""
        content = json.loads((self.folder / "run.json").read_text())
        for file in [*content["files"], *content["beside"]]:
            if (name := file.get("path") or file["file"]) in names:
                file["sha256"] = sha256_file(self.folder / name)
                file["size"] = (self.folder / name).stat().st_size
        (self.folder / "run.json").write_text(json.dumps(content))

    def change(self, name: str, edit: Callable[[pa.Table], pa.Table]) -> None:
        """Rewrite a table, digests included."""
        path = self.folder / name
        if name.endswith(".parquet"):
            pq.write_table(edit(pq.read_table(path)), path)
        else:
            table = edit(read_stream(str(path)))
            path.unlink()
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        self.agree(name)


def with_column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    """An edit of one column."""

    def edit(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        changed = pa.array(values(table.column(name).to_pylist()), table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), changed)

    return edit


@pytest.fixture
def shelf(finished: Run, tmp_path: Path) -> Shelf:
    return Shelf(finished, tmp_path / "fashion")


def test_a_row_is_made_again_from_the_repository_alone(
    hub: LoopbackHub, copied: Callable[[], Run], diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh home, the run gone, and the published images of generated rows blank."""
    run = copied()
    row = run.plan.rows[7].row_id
    publish(run, NAME)
    shutil.rmtree(run.folder)
    repo, place = hub.repo(NAME), f"data/{run.plan.header.name}/{run.plan.id[:16]}"
    for number in (1, 2, 3):
        entry = repo.at("main").tree[f"{place}/train-{number:05d}-of-00004.arrow"]
        (hub.blobs.root / "blobs" / str(entry.sha256)).write_bytes(b"\0" * entry.size)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "made.png"
    said = diffaug("regen", NAME, row[:10], "--out", out, "--device", "cpu")
    assert said.code == 0, said
    assert said.out.startswith(f"row {row}: bit-equal to the stored image")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_withheld_sources_come_from_the_reader(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffaug: Command
) -> None:
    real = contents.recipe_facts
    monkeypatch.setattr(contents, "recipe_facts", lambda recipe: replace(real(recipe), redistributable=False))
    shelf = Shelf(finished, tmp_path / "fashion", recipe_only=True)
    row = finished.plan.rows[0].row_id
    said = diffaug("regen", shelf.place, row, "--device", "cpu", "--json")
    told = json.loads(said.out)
    assert (said.code, told["equal"], told["row_id"]) == (0, True, row)
    (tmp_path / "poor" / "a").mkdir(parents=True)
    (tmp_path / "poor" / "a" / "0.png").write_bytes(b"no picture")
    poor = diffaug("regen", shelf.place, row, "--device", "cpu", "--source", tmp_path / "poor")
    assert "not a readable image" in poor.sentence


def test_a_row_that_comes_out_different_says_how_far(shelf: Shelf, finished: Run, diffaug: Command) -> None:
    shelf.change("provenance.parquet", with_column("seed", lambda seeds: [seed and seed ^ 1 for seed in seeds]))
    row = finished.plan.rows[0].row_id
    said = diffaug("regen", shelf.place, row, "--device", "cpu", "--json")
    told = json.loads(said.out)
    assert (said.code, told["equal"]) == (1, False)
    assert 0 < told["mean"] <= told["largest"] <= 255
    assert "differs from the stored image by" in diffaug("regen", shelf.place, row, "--device", "cpu").out


def test_verify_looks_at_everything(shelf: Shelf, diffaug: Command) -> None:
    said = diffaug("verify", shelf.place, "--sample", 2, "--device", "cpu")
    assert said.code == 0, said.out
    lines = [line.split(":")[0].strip() for line in said.out.splitlines()[1:]]
    assert lines == ["digests", "plan", "rows", "counts", "statements", "version", "rebuild", "rebuild", "sample"]
    assert said.out.count(": bit-equal") == 2
    assert "sample: ok, 2 of 2 rows are bit-equal" in said.out


def dropped(table: pa.Table) -> pa.Table:
    return table.slice(1)


FAULTS: dict[str, tuple[str, str, Callable[[pa.Table], pa.Table]]] = {
    "a prompt of the plan": ("plan", "plan.parquet", with_column("prompt", lambda old: [p and p + "!" for p in old])),
    "a row less": ("rows", "train-00001-of-00004.arrow", dropped),
    "a label that no class has": (
        "rows",
        "train-00002-of-00004.arrow",
        with_column("label", lambda old: [99, *old[1:]]),
    ),
    "a blank image": ("rows", "train-00001-of-00004.arrow", with_column("image", lambda old: [{}, *old[1:]])),
    "a row twice": ("counts", "train-00001-of-00004.arrow", with_column("row_id", lambda old: [old[1], *old[1:]])),
    "a status": ("counts", "provenance.parquet", with_column("status", lambda old: [*old[:-1], "failed"])),
    "a column more": (
        "rows",
        "train-00003-of-00004.arrow",
        lambda table: table.append_column("more", pa.array([0] * table.num_rows)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whoever_changes_a_set_is_found_out(fault: str, shelf: Shelf, diffaug: Command) -> None:
    """Also where run.json was made to agree with the changed files."""
    check, name, edit = FAULTS[fault]
    shelf.change(name, edit)
    said = diffaug("verify", shelf.place, "--json")
    told = json.loads(said.out)
    assert (said.code, told["passed"]) == (1, False)
    assert next(found["name"] for found in told["checks"] if found["outcome"] != "ok") == check


def test_a_flipped_bit_stops_everything(shelf: Shelf, diffaug: Command) -> None:
    path = shelf.folder / "train-00003-of-00004.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    told = json.loads(diffaug("verify", shelf.place, "--json").out)
    assert [(found["name"], found["outcome"]) for found in told["checks"]] == [("digests", "WRONG")]
    assert "has other bytes than run.json states" in told["checks"][0]["told"]


def test_another_version_of_the_method_is_said(
    shelf: Shelf, finished: Run, diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(discover_methods(), "genie", replace(find_method("genie"), VERSION=2))
    told = json.loads(diffaug("verify", shelf.place, "--json").out)
    assert told["passed"]
    assert told["checks"][-1]["told"] == "genie version 1, here 2; release schema 1 of 1"
    refused = diffaug("regen", shelf.place, finished.plan.rows[0].row_id, "--device", "cpu")
    assert "was made by genie version 1, this is genie 2" in refused.sentence


def one_level(shelf: Shelf, row: str, change: int) -> None:
    """The published image of a row and its digests, one value changed by so many levels."""
    digest = ""

    def repaint(table: pa.Table) -> pa.Table:
        nonlocal digest
        rows = table.to_pylist()
        for one in rows:
            if one["row_id"] == row:
                picture = np.array(decode_image(one["image"]["bytes"])).astype(int)
                picture[0, 0, 0] += change if picture[0, 0, 0] < 128 else -change
                painted = Image.fromarray(picture.astype(np.uint8))
                one["image"]["bytes"], digest = encode_image(painted, "png"), pixel_sha256(painted)
                one["pixel_sha256"] = digest
        return pa.Table.from_pylist(rows, table.schema)

    for path in sorted(shelf.folder.glob("train-*.arrow")):
        if row in read_stream(str(path)).column("row_id").to_pylist():
            shelf.change(path.name, repaint)
    ids = pq.read_table(shelf.folder / "provenance.parquet").column("row_id").to_pylist()
    shelf.change(
        "provenance.parquet",
        with_column("pixel_sha256", lambda old: [digest if i == row else o for i, o in zip(ids, old, strict=True)]),
    )


def made_elsewhere(shelf: Shelf) -> None:
    """As if the set had been made on a machine of the same name that computes other bits."""
    content = json.loads((shelf.folder / "run.json").read_text())
    for stack in content["stacks"]:
        stack["numerics"] = "feedfeedfeedfeed"
    (shelf.folder / "run.json").write_text(json.dumps(content))


def test_one_grey_level_is_wrong_on_the_same_stack_and_within_tolerance_on_another(
    shelf: Shelf, finished: Run, diffaug: Command
) -> None:
    row = finished.plan.rows[0].row_id
    one_level(shelf, row, 1)
    here = diffaug("verify", shelf.place, "--sample", 2, "--device", "cpu")
    assert here.code == 1
    assert (
        f"  rebuild: WRONG, row {row}: differs from the stored image by 0.000 grey levels on average, 1 at" in here.out
    )
    assert "  sample: WRONG, 1 of 2 rows are not what they should be" in here.out
    made_elsewhere(shelf)
    there = diffaug("verify", shelf.place, "--sample", 2, "--device", "cpu")
    assert there.code == 0, there.out
    assert "  sample: ok, within tolerance: at most 1 grey level on 1 of 2 rows (another CPU: " in there.out
    regen = diffaug("regen", shelf.place, row, "--device", "cpu")
    assert (regen.code, "within tolerance: at most 1 grey level" in regen.out) == (0, True)


def test_more_than_the_tolerance_is_wrong_on_any_stack(shelf: Shelf, finished: Run, diffaug: Command) -> None:
    one_level(shelf, finished.plan.rows[0].row_id, MOST_LEVELS + 1)
    made_elsewhere(shelf)
    said = diffaug("verify", shelf.place, "--sample", 1, "--device", "cpu", "--json")
    told = json.loads(said.out)
    assert (said.code, told["passed"]) == (1, False)
    assert [(c["name"], c["outcome"]) for c in told["checks"]][-2:] == [("rebuild", "WRONG"), ("sample", "WRONG")]


def test_what_is_not_here_is_neither_ok_nor_wrong(
    finished: Run, tmp_path: Path, diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(finished, tmp_path / "fashion")
    (tmp_path / "poor" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "poor" / "a" / "0.png")
    words = ("verify", shelf.place, "--sample", 2, "--device", "cpu")
    poor = diffaug(*words, "--source", tmp_path / "poor")
    assert poor.code == 3, poor
    assert poor.out.count("  rebuild: could not check: ") == 2 and "WRONG" not in poor.out
    assert "  sample: could not check: none of 2 rows could be made again or compared" in poor.out
    monkeypatch.setitem(discover_methods(), "genie", replace(find_method("genie"), VERSION=2))
    other = diffaug(*words, "--json")
    told = json.loads(other.out)
    assert (other.code, told["passed"]) == (3, True)
    assert [check["outcome"] for check in told["checks"]] == ["ok"] * 6 + ["could not check"] * 3
    monkeypatch.setattr(verify, "discover_methods", dict)
    unknown = diffaug("verify", shelf.place)
    assert (unknown.code, "plan: could not check: method 'genie' is not installed here" in unknown.out) == (0, True)


def test_a_sample_is_spread_over_the_plan(shelf: Shelf, finished: Run, diffaug: Command) -> None:
    ids = [row.row_id for row in finished.plan.rows]
    for sample, wanted in ((2, [ids[0], ids[5]]), (99, ids)):
        told = json.loads(diffaug("verify", shelf.place, "--sample", sample, "--device", "cpu", "--json").out)
        rebuilt = [check["told"].split()[1].rstrip(":") for check in told["checks"] if check["name"] == "rebuild"]
        assert rebuilt == wanted


def test_another_recipe_than_that_of_the_plan_is_wrong(shelf: Shelf, diffaug: Command) -> None:
    path = shelf.folder / "recipe.yaml"
    assert "seed: 0" in path.read_text()
    path.write_text(path.read_text().replace("seed: 0", "seed: 5"))
    shelf.agree("recipe.yaml")
    said = diffaug("verify", shelf.place)
    assert (said.code, "  plan: WRONG, " in said.out) == (1, True)


def test_rows_that_are_not_there(shelf: Shelf, diffaug: Command) -> None:
    assert "0 generated rows begin so; the first one is" in diffaug("regen", shelf.place, "zz").sentence
    assert "10 generated rows begin so" in diffaug("regen", shelf.place, "").sentence
    assert "is not there; check the address" in diffaug("verify", shelf.place + "/data").sentence


def test_a_recipe_is_enough_to_build_the_set(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    shelf = Shelf(finished, tmp_path / "fashion", recipe_only=True)
    words = ("--run", tmp_path / "again", "--workers", 1, "--device", "cpu")
    said = diffaug("build", shelf.place, *words)
    assert said.code == 0, said
    assert "10 of 10 images are bit-equal to the published ones (100.0%)" in said.out
    shelf.change("provenance.parquet", with_column("pixel_sha256", lambda old: [*old[:-1], "0" * 64]))
    said = diffaug("build", shelf.place, *words)
    assert (said.code, "9 of 10 images are bit-equal to the published ones (90.0%)" in said.out) == (1, True)
    made_elsewhere(shelf)
    said = diffaug("build", shelf.place, *words)
    assert (said.code, "(90.0%); they were made elsewhere (another CPU: " in said.out) == (0, True), said


def test_other_images_are_another_plan(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    shelf = Shelf(finished, tmp_path / "fashion", recipe_only=True)
    path = shelf.folder / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 5"))
    shelf.agree("recipe.yaml")
    assert "give --source with the very images" in diffaug("build", shelf.place, "--run", tmp_path / "again").sentence
    assert not (tmp_path / "again").exists()

"""A published set is enough to check it and to make its rows again; whoever changes it is found out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Command
from hub.server import LoopbackHub

from diffaug_datasets.methods import genie
from diffaug_datasets.publish import contents
from diffaug_datasets.publish.options import PublishOptions
from diffaug_datasets.publish.publisher import publish
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.store import Run, sha256_file

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
    real = contents.builder_facts
    monkeypatch.setattr(contents, "builder_facts", lambda name: replace(real(name), redistributable=False))
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
    assert lines == ["digests", "plan", "rows", "counts", "version", "rebuild", "rebuild", "sample"]
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
    monkeypatch.setattr(genie, "VERSION", 2)
    told = json.loads(diffaug("verify", shelf.place, "--json").out)
    assert told["passed"]
    assert told["checks"][-1]["told"] == "genie version 1, here 2; release schema 1 of 1"
    refused = diffaug("regen", shelf.place, finished.plan.rows[0].row_id, "--device", "cpu")
    assert "was made by genie version 1, this is genie 2" in refused.sentence


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


def test_other_images_are_another_plan(finished: Run, tmp_path: Path, diffaug: Command) -> None:
    shelf = Shelf(finished, tmp_path / "fashion", recipe_only=True)
    path = shelf.folder / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 5"))
    shelf.agree("recipe.yaml")
    assert "give --source with the very images" in diffaug("build", shelf.place, "--run", tmp_path / "again").sentence
    assert not (tmp_path / "again").exists()

"""Runs and published sets as plain files, read back by other programs; names from data; what a second run does."""

import csv
import hashlib
import json
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffaug_datasets.core.errors import DiffAugError, PublishError, RunError
from diffaug_datasets.core.images import source_id, xmp_identifier
from diffaug_datasets.release import exporting as module
from diffaug_datasets.release.exporting import FORMS, ExportRow, Form, export, safe_names
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.store import Run

WINDOWS = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def rows_of(run: Run) -> dict[str, dict[str, Any]]:
    """Every row of a run by its id, as its shards have them."""
    shards = (*run.plan.real_shards(), *run.plan.shards())
    return {row["row_id"]: row for shard in shards for row in run.table(shard).to_pylist()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_class_folders_hold_every_image_as_it_is(finished: Run, tmp_path: Path) -> None:
    done = export(finished.folder, tmp_path / "out")
    rows, listed = rows_of(finished), table(tmp_path / "out" / "train" / "metadata.csv")
    assert done.rows == {"train": 20} and (done.written, done.kept) == (21, 0)
    assert {row["row_id"] for row in listed} == rows.keys()
    for row in listed:
        path, known = tmp_path / "out" / "train" / row["file_name"], rows[row["row_id"]]
        assert path.read_bytes() == known["image"]["bytes"]
        assert path.stem == row["row_id"] and path.parent.name == row["label"].replace("/", "_").replace(" ", "_")
        if row["origin"] == "real":
            assert json.loads(row["source_ids"]) == [source_id(path.read_bytes())]
        else:
            assert xmp_identifier(path.read_bytes()) == row["urn"]
            details = json.loads(row["details"])
            assert (details["seed"], details["prompt"]) == (known["seed"], known["prompt"])
    assert done.class_folders["T-shirt/top"] == "T-shirt_top"


def test_datasets_reads_class_folders(finished: Run, tmp_path: Path) -> None:
    export(finished.folder, tmp_path / "out")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 20}
    known = rows_of(finished)
    for row in loaded["train"]:
        assert row["label"] == finished.plan.header.class_names[known[row["row_id"]]["label"]]
        assert row["class_id"] == known[row["row_id"]]["label"]


# What the documentation of each says that it takes for an image.
TORCHVISION = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
KERAS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


def by_class_folders(folder: Path, kinds: tuple[str, ...]) -> tuple[list[str], list[tuple[Path, int]]]:
    """Classes and (file, class id) as `torchvision.datasets.ImageFolder` and Keras document their layout.

    One folder per class, classes by the order of their names, files of other kinds and files beside the folders passed
    over. Neither torchvision nor TensorFlow or grain, on which Keras rests here, is a package that tests have.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [(f, i) for i, name in enumerate(classes) for f in sorted((folder / name).rglob("*")) if f.is_file()]
    return classes, [(file, label) for file, label in files if file.suffix.lower() in kinds]


@pytest.mark.parametrize("kinds", [TORCHVISION, KERAS])
def test_class_folders_are_those_of_torchvision_and_keras(
    with_test: Run, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    done = export(with_test.folder, tmp_path / "out")
    for split in ("train", "test"):
        with (tmp_path / "out" / split / "metadata.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["file_name"]: row for row in csv.DictReader(file)}
        classes, found = by_class_folders(tmp_path / "out" / split, kinds)
        assert classes == sorted(done.class_folders.values())
        assert {str(path.relative_to(tmp_path / "out" / split)) for path, _ in found} == set(rows)
        names = {folder: name for name, folder in done.class_folders.items()}
        for path, label in found:
            assert names[classes[label]] == rows[str(path.relative_to(tmp_path / "out" / split))]["label"]
            with Image.open(path) as picture:
                assert picture.size[0] > 0


@pytest.mark.full
def test_keras_reads_class_folders(with_test: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grain", reason="without TensorFlow, Keras reads folders by grain, which is not installed here")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras

    export(with_test.folder, tmp_path / "out")
    train = tmp_path / "out" / "train"
    read = keras.utils.image_dataset_from_directory(train, image_size=(32, 32), format="grain", shuffle=False)
    labels = [int(label) for _, batch in read for label in batch]
    assert labels == [label for _, label in by_class_folders(train, KERAS)[1]]


def test_splits_stay_apart_whatever_their_columns_lack(tmp_path: Path, with_test: Run) -> None:
    """Test rows have no prompt and no score, which must not change the type of a column."""
    for form in FORMS:
        done = export(with_test.folder, tmp_path / form, form)
        assert done.rows == {"train": 20, "test": 1000}
    cache = str(tmp_path / "cache")
    for name, place in (("imagefolder", "imagefolder"), ("webdataset", "webdataset"), ("parquet", "parquet")):
        loaded = datasets.load_dataset(name, data_dir=str(tmp_path / place), cache_dir=cache)
        assert {split: len(rows) for split, rows in loaded.items()} == {"train": 20, "test": 1000}, form
    assert loaded["train"].features["image"].mode == "RGB"
    assert loaded["train"].features["label"].names == list(with_test.plan.header.class_names)


@pytest.fixture(scope="module")
def with_test(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from small_release import made

    return made(tmp_path_factory.mktemp("export") / "run", include_test=True, scores={"encoder": None, "judge": None})


def test_tar_files_have_the_documented_layout(finished: Run, tmp_path: Path) -> None:
    """Files of a row lie behind one another and share a stem: key.png, key.cls, key.json."""
    export(finished.folder, tmp_path / "out", "webdataset")
    rows = rows_of(finished)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert len(members) == 3 * len(rows)
    for place in range(0, len(members), 3):
        (image, data), (label, number), (facts, text) = members[place : place + 3]
        key = image.removesuffix(".png")
        assert (label, facts) == (f"{key}.cls", f"{key}.json")
        assert data == rows[key]["image"]["bytes"] and int(number) == rows[key]["label"]
        assert json.loads(text)["row_id"] == key


def test_webdataset_reads_the_tar_files(finished: Run, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed here")
    export(finished.folder, tmp_path / "out", "webdataset")
    url = str(tmp_path / "out" / "train-000000.tar")
    read = list(wds.WebDataset(url, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json"))
    rows = rows_of(finished)
    assert len(read) == 20
    for image, label, facts in read:
        assert label == rows[facts["row_id"]]["label"] and image.size == (rows[facts["row_id"]]["width"],) * 2


def test_parquet_and_the_table_hold_what_the_run_holds(finished: Run, tmp_path: Path) -> None:
    export(finished.folder, tmp_path / "parquet", "parquet")
    rows = rows_of(finished)
    read = pq.read_table(tmp_path / "parquet" / "train-00000.parquet").to_pylist()
    assert {row["row_id"]: row for row in read} == rows
    export(finished.folder, tmp_path / "csv", "csv", synthetic_only=True)
    listed = table(tmp_path / "csv" / "train.csv")
    assert {row["row_id"] for row in listed} == {row_id for row_id, row in rows.items() if row["origin"] != "real"}
    for row in listed:
        known = rows[row["row_id"]]
        assert int(row["seed"]) == known["seed"] and float(row["strength"]) == known["strength"]
        assert (tmp_path / "csv" / row["file_name"]).read_bytes() == known["image"]["bytes"]


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_continues_and_a_finished_one_says_so(
    finished: Run, tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 6)
    monkeypatch.setattr(module, "FILE_ROWS", 6)
    whole = export(finished.folder, tmp_path / "whole", form)
    expected = digests(tmp_path / "whole")
    again = export(finished.folder, tmp_path / "whole", form)
    assert again.was_finished and (again.written, again.kept) == (0, whole.written)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 20
        if done == 11:
            raise Stopped

    with pytest.raises(Stopped):
        export(finished.folder, tmp_path / "out", form, on_row=stop)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert json.loads((tmp_path / "out" / "export.json").read_text())["finished"] is False
    continued = export(finished.folder, tmp_path / "out", form)
    assert not continued.was_finished and continued.kept > 0 and continued.written > 0
    assert digests(tmp_path / "out") == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_found_and_written_again(finished: Run, tmp_path: Path, form: Form) -> None:
    export(finished.folder, tmp_path / "out", form)
    expected = digests(tmp_path / "out")
    for name in expected.keys() - {"export.json"}:
        path = tmp_path / "out" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        break
    done = export(finished.folder, tmp_path / "out", form)
    assert done.written == 1 and not done.was_finished
    assert digests(tmp_path / "out") == expected


def test_a_folder_that_holds_something_else_is_left_alone(finished: Run, other_plan: Run, tmp_path: Path) -> None:
    export(finished.folder, tmp_path / "out")
    with pytest.raises(RunError, match=r"holds another export \(plan_id '.*'\); give another folder"):
        export(other_plan.folder, tmp_path / "out")
    with pytest.raises(RunError, match="holds another export"):
        export(finished.folder, tmp_path / "out", "csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="is not empty and holds no export of ours"):
        export(finished.folder, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="is a file, expected a folder"):
        export(finished.folder, tmp_path / "mine" / "thesis.txt")


def test_what_cannot_be_exported_is_told_in_a_sentence(copied: Callable[[], Run], tmp_path: Path) -> None:
    run = copied()
    with pytest.raises(PublishError, match="no such folder, expected a run folder, a published set"):
        export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(RunError, match=r"--as: got 'zip', expected one of imagefolder, webdataset, parquet, csv\."):
        export(run.folder, tmp_path / "out", "zip")  # type: ignore[arg-type]
    shard = run.folder / "shards" / "synthetic-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DiffAugError, match="damaged"):
        export(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_published_set_is_exported_too(finished: Run, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/shelf"
    publish(finished, address)
    done = export(address, tmp_path / "out")
    assert (done.name, done.plan_id, done.rows) == ("fashion_1shot_genie", finished.plan.id, {"train": 20})
    with pytest.raises(RunError, match="holds no images of this kind"):
        export(address, tmp_path / "other", config="fashion_1shot_genie_provenance")


def test_a_strangers_row_leads_nowhere() -> None:
    columns = {"row_id": "../../../etc/passwd", "label": 0, "image_format": "png", "plan_id": "0" * 64}
    with pytest.raises(DiffAugError, match="is no row of ours"):
        ExportRow.of(columns, b"", ("a",))
    with pytest.raises(DiffAugError, match="is no row of ours"):
        ExportRow.of({**columns, "row_id": "0" * 24, "label": 1}, b"", ("a",))


def test_formats_that_few_programs_read_become_png() -> None:
    buffer = BytesIO()
    Image.new("L", (5, 4), 77).save(buffer, "GIF")
    columns = {"row_id": "0" * 24, "label": 0, "image_format": "gif", "plan_id": "0" * 64}
    row = ExportRow.of(columns, buffer.getvalue(), ("a",))
    assert row.file == f"{'0' * 24}.png"
    assert Image.open(BytesIO(row.data)).convert("RGB").getpixel((0, 0)) == (77, 77, 77)


@given(st.lists(st.text(max_size=120), min_size=1, max_size=12))
def test_any_names_become_folders_that_any_file_system_keeps_apart(names: list[str]) -> None:
    safe = safe_names(names)
    assert len({name.casefold() for name in safe}) == len(names)
    for name in safe:
        assert name and len(name.encode()) <= 200 and name[0] not in "._" and name[-1] not in ". "
        assert not set(name) & set('/\\:*?"<>|. \0\n') and name.lower() not in WINDOWS


def test_names_that_mean_something_to_others_are_changed() -> None:
    names = ("..", "con", "CON", "a/b", "a_b", "A b", "test", "test tube", "my-val_9", "Löwenzahn", "contest", "COM¹")
    safe = dict(zip(names, safe_names(names), strict=True))
    assert safe == {
        "..": "class", "con": "con_", "CON": "CON_-2", "a/b": "a_b", "a_b": "a_b-4", "A b": "A_b-5", "test": "testx",
        "test tube": "testx_tube", "my-val_9": "my-valx_9", "Löwenzahn": "Löwenzahn", "contest": "contest",
        "COM¹": "COM1_",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="such folders are made here")
def test_a_class_called_test_is_no_split(tmp_path: Path) -> None:
    for name in safe_names(("test tube", "dev", "rose")):
        place = tmp_path / "out" / "train" / name
        place.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(place / "0.png")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3}

"""Tables of paths and labels: what they may say, what is left out of them, and that no path leaves their folder."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import RealSet, read_real, read_recipe_images

ROWS = [("x/0.png", "cat"), ("x/1.png", "dog"), ("x/2.png", "cat")]


def put(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n * 20, 90, 7)).save(root / name)
    return root


def table(path: Path, head: tuple[str, ...], rows: list[tuple[str, ...]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows])
    return path


def found(real: RealSet) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    return real.train.class_names, [(source.key, source.label) for source in real.train.sources]


WANTED = (("cat", "dog"), [("x/0.png", 0), ("x/1.png", 1), ("x/2.png", 0)])


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [(("file_name", "label"), ","), (("Path", "Class"), ";"), (("image", "species"), "\t"), (("img", "category"), ",")],
)
def test_a_csv_of_paths_and_labels(tmp_path: Path, head: tuple[str, ...], delimiter: str) -> None:
    put(tmp_path, *(path for path, _ in ROWS))
    assert found(read_real("imagefolder", table(tmp_path / "list.csv", head, [*ROWS], delimiter))) == WANTED


def test_parquet_and_json_lines_say_the_same(tmp_path: Path) -> None:
    put(tmp_path, *(path for path, _ in ROWS))
    columns = {"path": [path for path, _ in ROWS], "label": [label for _, label in ROWS], "score": [0.1, 0.2, 0.3]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    lines = [json.dumps({"path": path, "label": label}) for path, label in ROWS]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    for name in ("list.parquet", "list.jsonl"):
        assert found(read_real("imagefolder", tmp_path / name)) == WANTED


def test_a_split_column_and_numbers_in_their_order(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(5)]
    put(tmp_path, *names)
    rows = [
        ("0.png", "10", "train"),
        ("1.png", "9", "Training"),
        ("2.png", "9", ""),
        ("3.png", "10", "test"),
        ("4.png", "9", "val"),
    ]
    real = read_real("imagefolder", table(tmp_path / "t.csv", ("file", "label", "split"), rows))
    assert real.train.class_names == ("9", "10")
    assert [source.key for source in real.train.sources] == ["0.png", "1.png", "2.png"]
    assert real.test is not None
    assert [source.key for source in real.test.sources] == ["3.png"]
    assert real.survey.left_out == ("1 images of val (test is the test split)",)


def test_a_flat_folder_with_metadata_and_one_in_each_split(tmp_path: Path) -> None:
    flat = put(tmp_path / "flat", *(path for path, _ in ROWS))
    (flat / "x").rename(flat / "images")
    table(flat / "metadata.csv", ("file_name", "label"), [(p.replace("x/", "images/"), c) for p, c in ROWS])
    assert found(read_real("imagefolder", flat))[0] == ("cat", "dog")
    split = put(tmp_path / "split", "train/0.png", "train/1.png", "test/2.png")
    table(split / "train" / "metadata.csv", ("file_name", "label"), [("0.png", "cat"), ("1.png", "dog")])
    table(split / "test" / "metadata.csv", ("file_name", "label"), [("2.png", "cat")])
    real = read_real("imagefolder", split)
    assert found(real) == (("cat", "dog"), [("train/0.png", 0), ("train/1.png", 1)])
    assert real.test is not None
    assert [source.key for source in real.test.sources] == ["test/2.png"]


def test_class_folders_stand_before_the_labels_of_a_metadata_file(tmp_path: Path) -> None:
    put(tmp_path, "owl/0.png", "wren/1.png")
    table(tmp_path / "metadata.csv", ("file_name", "label"), [("owl/0.png", "x"), ("wren/1.png", "y")])
    assert read_real("imagefolder", tmp_path).train.class_names == ("owl", "wren")


def test_rows_that_cannot_be_used_are_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path, *(path for path, _ in ROWS))
    rows = [*ROWS, ("x/gone.png", "cat"), ("x/1.png", "cat"), ("x/2.png", "cat"), ("x/0.png", "")]
    real = read_real("imagefolder", table(tmp_path / "t.csv", ("path", "label"), [*rows, ("x/0.png", "cat")]))
    assert found(real)[1] == [("x/0.png", 0), ("x/2.png", 0)]
    missing, unlabelled, twice = real.survey.warnings
    assert missing == "t.csv: 1 row is left out, for their images are not there: x/gone.png"
    assert unlabelled == "t.csv: 1 row is left out, for they have no label"
    assert twice == "t.csv: 1 images are left out, for they stand there with several labels: x/1.png"


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "x/../../secret.png", "C:/secret.png"])
def test_no_path_leaves_the_folder_of_the_table(tmp_path: Path, path: str) -> None:
    put(tmp_path, "secret.png", "in/x/0.png")
    made = table(tmp_path / "in" / "t.csv", ("path", "label"), [("x/0.png", "a cat"), (path, "dog")])
    with pytest.raises(SourceError, match="lies outside the table's folder"):
        read_real("imagefolder", made)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "secret.png", "in/x/0.png")
    (tmp_path / "in" / "x" / "1.png").symlink_to(tmp_path / "secret.png")
    made = table(tmp_path / "in" / "t.csv", ("path", "label"), [("x/0.png", "a cat"), ("x/1.png", "dog")])
    with pytest.raises(SourceError, match="leads outside"):
        read_real("imagefolder", made)


def test_absolute_paths_below_the_table_are_fine(tmp_path: Path) -> None:
    put(tmp_path, *(path for path, _ in ROWS))
    rows = [(str(tmp_path.resolve() / path), label) for path, label in ROWS]
    assert found(read_real("imagefolder", table(tmp_path / "t.csv", ("path", "label"), rows))) == WANTED


def test_other_columns_are_named_in_the_recipe(tmp_path: Path) -> None:
    put(tmp_path, *(path for path, _ in ROWS))
    made = table(tmp_path / "t.csv", ("where", "what"), [*ROWS])
    with pytest.raises(SourceError, match="has the columns where, what, expected one of paths"):
        read_real("imagefolder", made)
    content = {"builder": "imagefolder", "method": "img2img", "source": str(made)}
    recipe = Recipe.from_dict({**content, "image_column": "where", "label_column": "what"})
    assert found(read_recipe_images(recipe)) == WANTED


def test_free_text_is_no_label(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(120)]
    put(tmp_path, *names)
    made = table(tmp_path / "t.csv", ("path", "label"), [(name, f"a photo of thing {name}") for name in names])
    with pytest.raises(SourceError, match="has 120 different labels for 120 images"):
        read_real("imagefolder", made)

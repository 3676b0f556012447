"""Url, author and licence of real images: from metadata files and Hub columns to the real rows of a run."""

import json
import unicodedata
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import stated_attribution
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.shards import read_stream
from diffaug_datasets.sources.real import read_real

ANNA = {"url": "https://a.example/1", "author": "Anna", "license": "CC BY 4.0"}


def put(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (n, 90, 7)).save(path)
    return root


def lines(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def facts(folder: Path, split: str = "train") -> dict[str, dict[str, str]]:
    table = read_real("imagefolder", folder).table(split)
    return {source.key: dict(source.attribution) for source in table.sources}


def test_what_a_row_states() -> None:
    row = {"URL": " https://x \n", "Artist": "A\tB", "author": "", "LICENCE": "CC0", "label": "cat", "license": None}
    assert stated_attribution(row) == (("url", "https://x"), ("author", "A B"), ("license", "CC0"))
    assert stated_attribution({"license": "x" * 900}) == (("license", "x" * 499 + "…"),)
    assert stated_attribution({"url": 3, "author": None, "title": "t"}) == ()


def test_a_jsonl_file_at_the_root_and_one_nearer(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/a/é.png", "train/b/0.png", "test/a/1.png")
    odd = unicodedata.normalize("NFD", "é.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "train/a/0.png", **ANNA}, {"file_name": "test/a/1.png", **ANNA})
    lines(tmp_path / "train" / "metadata.jsonl", {"file_name": f"a/{odd}", "license": "CC0"}, {"file_name": "gone.png"})
    assert facts(tmp_path) == {"train/a/0.png": {}, "train/a/é.png": {"license": "CC0"}, "train/b/0.png": {}}
    assert facts(tmp_path, "test") == {"test/a/1.png": ANNA}


def test_a_csv_file_and_a_byte_order_mark(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "a/1.png")
    text = '\ufefffile_name,author,licence,caption\n0.png,"Bo, ""B""",CC0,x\n1.png,,,y\n'
    (tmp_path / "a" / "metadata.csv").write_text(text, encoding="utf-8")
    assert facts(tmp_path) == {"a/0.png": {"author": 'Bo, "B"', "license": "CC0"}, "a/1.png": {}}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.jsonl", '{"file_name": "a/0.png"}\n{', "metadata.jsonl, line 2: is no JSON object; expected one"),
        ("metadata.jsonl", "[" * 9999, "metadata.jsonl, line 1: is no JSON object"),
        ("metadata.jsonl", '{"file": "a/0.png", "url": "u"}', "line 1: names no image; expected a 'file_name' beside"),
        ("metadata.csv", 'file_name,url\n"' + "x" * 200_000, r"metadata.csv, line \d: is no CSV"),
        ("metadata.csv", b"\xff\xfe\0", "got bytes that are not UTF-8"),
        ("metadata.csv", "file_name,author\na/0.png,Bj\u00f6rn".encode("latin-1"), "not UTF-8, .* save it as UTF-8"),
        ("metadata.parquet", b"PAR1 and then nothing", "metadata.parquet: is no Parquet file that can be read"),
    ],
)
def test_a_metadata_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    put(tmp_path, "a/0.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=reason):
        facts(tmp_path)


def told(folder: Path) -> tuple[str, ...]:
    return read_real("imagefolder", folder).survey.warnings


@pytest.mark.parametrize(
    "text",
    [
        "file_name,license\r\na\\0.png,CC0\r\n",
        "file_name;license\r\n.\\a\\0.png;CC0\r\n",
        "File_Name\tLicence\na/0.png\tCC0\n",
    ],
)
@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_files_of_other_systems(tmp_path: Path, text: str, code: str) -> None:
    put(tmp_path, "a/0.png")
    (tmp_path / "metadata.csv").write_bytes(text.encode(code))
    assert facts(tmp_path) == {"a/0.png": {"license": "CC0"}}
    assert told(tmp_path) == ()
    assert read_real("imagefolder", tmp_path).survey.layout == "class folders, metadata.csv (license of 1 image)"


def test_a_parquet_file(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "a/1.png")
    columns = {"file_name": ["a/0.png", "a\\1.png"], "Artist": ["Anna", None], "size": [[1], [2]]}
    pq.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    assert facts(tmp_path) == {"a/0.png": {"author": "Anna"}, "a/1.png": {}}
    pq.write_table(pa.table({"path": ["a/0.png"]}), tmp_path / "metadata.parquet")
    assert told(tmp_path) == ("metadata.parquet: has no 'file_name' column (columns: path), so nothing of it is used",)


UNMATCHED = {
    "case": ("A/0.PNG", "such as 'A/0.PNG' (there is 'a/0.png'); the license they state is lost"),
    "absolute": ("/data/a/0.png", "such as '/data/a/0.png' (expected a path relative to metadata.jsonl); the license"),
    "a drive": ("C:\\data\\a\\0.png", "such as 'C:/data/a/0.png' (expected a path relative to metadata.jsonl)"),
    "nothing there": ("a/9.png", "such as 'a/9.png'; the license they state is lost"),
    "a lone surrogate": ("a/\ud800.png", r"such as 'a/\\ud800.png'"),
}


@pytest.mark.parametrize("case", UNMATCHED)
def test_rows_that_match_no_image_are_said(tmp_path: Path, case: str) -> None:
    name, reason = UNMATCHED[case]
    put(tmp_path, "a/0.png", "a/1.png")
    rows = [{"file_name": name, "license": "CC0"}, {"file_name": "a/1.png"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [warning] = told(tmp_path)
    assert warning.startswith(f"metadata.jsonl: 1 of 2 rows match no image, {reason}")


def test_rows_of_images_that_are_left_out_are_no_fault(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "test/a/3.png")
    lines(tmp_path / "metadata.jsonl", *({"file_name": f"{n}.png", **ANNA} for n in ("train/a/0", "val/a/2")))
    assert told(tmp_path) == ()


def test_names_given_twice_hidden_files_and_second_files_are_said(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "a/1.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a/0.png", **ANNA}, {"file_name": "a/0.png", "license": "CC0"})
    (tmp_path / "metadata.csv").write_text("file_name,license\na/0.png,MIT\n")
    lines(tmp_path / "a" / "metadata.jsonl", {"file_name": "1.png"})
    assert set(told(tmp_path)) == {
        "metadata.jsonl: is read, and metadata.csv beside it is not",
        "metadata.jsonl: names a/0.png more than once, each time otherwise; the last row counts",
        "a/metadata.jsonl: counts alone for the images below it; what metadata.jsonl states of 1 of them is lost",
    }


def test_control_characters_and_lone_surrogates_leave_the_facts(tmp_path: Path) -> None:
    assert stated_attribution({"author": "A\x1b[31m\ud800 B"}) == (("author", "A\ufffd[31m\ufffd B"),)


def test_other_metadata_is_left_alone_and_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "data", "a/0.png")
    lines(tmp_path / "data" / "metadata.jsonl", {"id": 3}, {})
    assert facts(tmp_path / "data") == {"a/0.png": {}}
    lines(tmp_path / "secret.jsonl", {"file_name": "a/0.png", **ANNA})
    (tmp_path / "data" / "metadata.jsonl").unlink()
    (tmp_path / "data" / "metadata.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(SourceError, match="leads outside the dataset's folder"):
        facts(tmp_path / "data")


def test_columns_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(value: int) -> datasets.Dataset:
        buffer = BytesIO()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
        columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}
        columns |= {"artist": datasets.Value("string"), "license": datasets.Value("int32")}
        cell = {"bytes": buffer.getvalue(), "path": None}
        rows = {"image": [cell, cell], "label": [0, 0], "artist": [f"Anna {value}", None], "license": [1, 2]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))

    splits = datasets.DatasetDict(train=split(1), test=split(2))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **options: splits)
    found = read_real("imagefolder", "org/name")
    assert [source.attribution for source in found.train.sources] == [(("author", "Anna 1"),), ()]
    assert [source.attribution for source in found.table("test").sources] == [(("author", "Anna 2"),), ()]


def test_facts_reach_the_real_rows_and_no_plan_id(tmp_path: Path) -> None:
    put(tmp_path / "images", "train/a/0.png", "train/b/1.png", "test/a/2.png")
    recipe = config_recipe("imagefolder_full_txt2img", backbone="tiny", source=str(tmp_path / "images"))
    plain = prepare(recipe)
    names = ("train/a/0.png", "test/a/2.png")
    lines(tmp_path / "images" / "metadata.jsonl", *({"file_name": name, **ANNA} for name in names))
    told = prepare(recipe)
    assert told.plan.id == plain.plan.id
    before, after = write_run(plain, tmp_path / "plain"), write_run(told, tmp_path / "told")
    for shard, expected in (("real-00000", [ANNA, {}]), ("test-00000", [ANNA])):
        tables = [read_stream(str(run.shard_path(shard))) for run in (before, after)]
        assert set(tables[0].column("measured").to_pylist()) == {"{}"}
        assert [json.loads(text) for text in tables[1].column("measured").to_pylist()] == expected
        assert tables[0].schema == tables[1].schema


def test_fashion_states_nothing_and_its_rows_stay(tmp_path: Path) -> None:
    recipe = config_recipe("fashion_1shot_genie", include_test=False)
    run = write_run(prepare(recipe), tmp_path / "run")
    rows = read_stream(str(run.shard_path("real-00000")))
    assert set(rows.column("measured").to_pylist()) == {"{}"}

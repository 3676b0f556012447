"""What is found at a place: a messy folder in all its parts, archives, tables, wrapped folders."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from messy import ODD, messy_folder, picture

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.planning.inspect import inspect


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return messy_folder(tmp_path_factory.mktemp("messy"))


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


def test_a_messy_folder_is_shown_whole(messy: Path) -> None:
    found = inspect(str(messy))
    assert found.source == str(messy)
    assert found.counts == {
        "7": 4,
        "GoldenRetriever": 11,
        "Löwenzahn": 4,
        "deadbeef01": 4,
        ODD: 4,
        "n01440764": 4,
        "single": 1,
        "tabby_cat": 6,
    }
    assert found.test_counts is not None
    assert (found.test_counts["single"], found.test_counts["tabby_cat"]) == (0, 3)
    assert {image.name.rpartition("/")[2]: image.reason for image in found.real.skipped} == {
        "empty.jpg": "empty (0 bytes)",
        "half.jpg": "cut short, the file ends before the picture does",
        "page.jpg": "a web page (HTML) instead of an image",
        "dangling.png": f"leads outside the dataset's folder {str(messy)!r}",
    }
    assert (found.in_both, found.in_classes, found.repeats, len(found.doubled)) == (1, 1, 1, 2)
    assert found.partial
    left_out = "; ".join(found.real.survey.left_out)
    assert "folder train/linked/ (a link, which is not followed)" in left_out
    assert "folder train/no images yet/ (no image in it)" in left_out
    assert "1 hidden image; folders .hidden, __MACOSX" in left_out
    assert ".zip" in left_out
    odd = "\n".join(found.odd)
    for kind, name in {
        "animated": "moving.gif",
        "CMYK": "print.jpg",
        "16 bits": "deep.png",
        "as long as wide": "strip.png",
        "smaller than 64": "thumb.png",
        "one image only": "single",
        "no test image": "single",
    }.items():
        assert any(kind in line and name in line for line in found.odd), odd
    assert found.nameless == ("7", "deadbeef01")
    assert found.foreign == ("Löwenzahn",)
    assert found.phrases["n01440764"].text == "tench"


def test_every_odd_thing_is_worth_its_line(tmp_path: Path) -> None:
    """Nothing is said of a folder in which nothing is odd."""
    folder = put(tmp_path / "pets", "train/cat/0.png", "train/cat/1.png", "train/dog/2.png", "train/dog/3.png")
    found = inspect(str(folder))
    assert (found.odd, found.doubled, found.partial, found.real.skipped) == ((), (), False, ())
    assert (found.sizes.count, found.sizes.smallest, found.sizes.largest) == (4, (72, 72), (72, 72))
    assert (found.name, found.test_counts, found.licence) == ("pets", None, None)


def test_an_archive_is_unpacked_and_gone_into(tmp_path: Path) -> None:
    put(tmp_path / "x", "pets/cat/0.png", "pets/dog/1.png")
    with zipfile.ZipFile(tmp_path / "My pets.zip", "w") as packed:
        for path in (tmp_path / "x").rglob("*.png"):
            packed.write(path, path.relative_to(tmp_path / "x"))
        packed.writestr("../out.png", b"out")
    found = inspect(str(tmp_path / "My pets.zip"))
    assert (found.name, found.source) == ("My pets", str(tmp_path / "My pets" / "pets"))
    assert found.counts == {"cat": 1, "dog": 1}
    assert found.found_in == (
        "My pets.zip unpacked into My pets/, 2 files",
        "left in My pets.zip: 1 entry (a path out of the archive)",
        "the images lie in My pets/pets/",
    )


def test_a_table_and_a_folder_with_one(tmp_path: Path) -> None:
    put(tmp_path / "a", "pictures/0.png", "pictures/1.png", "pictures/2.png")
    rows = "path,species\npictures/0.png,owl\npictures/1.png,wren\npictures/2.png,owl\n"
    (tmp_path / "a" / "labels.csv").write_text(rows)
    for place in (tmp_path / "a" / "labels.csv", tmp_path / "a"):
        found = inspect(str(place))
        assert found.counts in ({"owl": 2, "wren": 1}, {"pictures": 3})
    assert found.source.endswith("labels.csv") or found.counts == {"pictures": 3}
    assert inspect(str(tmp_path / "a" / "labels.csv")).name == "labels"


def test_the_licence_that_all_images_state(tmp_path: Path) -> None:
    put(tmp_path, "owl/0.png", "wren/1.png")
    lines = [json.dumps({"file_name": name, "license": "CC BY 4.0"}) for name in ("owl/0.png", "wren/1.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert inspect(str(tmp_path)).licence == "cc-by-4.0"
    (tmp_path / "metadata.jsonl").write_text(lines[0])
    assert inspect(str(tmp_path)).licence is None


def test_a_class_is_never_left_empty_by_leaving_doubles_out(tmp_path: Path) -> None:
    put(tmp_path, "train/owl/0.png", "train/wren/1.png", "train/wren/2.png")
    for name in ("owl/0.png", "wren/1.png"):
        (tmp_path / "test" / name).parent.mkdir(parents=True)
        shutil.copy(tmp_path / "train" / name, tmp_path / "test" / name)
    found = inspect(str(tmp_path))
    assert found.in_both == 2
    assert [source.key for source in found.real.train.sources if source.id in found.doubled] == ["train/wren/1.png"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("nothing", "nothing is there; give a folder, an archive, a table or a Hub id."),
        ("a near name", "nothing is there; did you mean"),
        ("a text", "is a file of another kind; give a folder, .zip"),
        ("a rar", "is a file of another kind; unpack it and give the folder"),
        ("an empty folder", "found no class folder"),
    ],
)
def test_what_shows_no_class_is_refused_in_a_sentence(tmp_path: Path, make: str, said: str) -> None:
    place = tmp_path / {"a text": "x.txt", "a rar": "x.rar"}.get(make, "photos")
    if make == "a near name":
        (tmp_path / "photo").mkdir()
    elif make == "an empty folder":
        place.mkdir()
    elif make != "nothing":
        place.write_bytes(b"x")
    with pytest.raises(SourceError) as error:
        inspect(str(place))
    assert said in str(error.value)


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data" / "pets", "cat/0.png", "dog/1.png")
    monkeypatch.chdir(tmp_path)
    assert inspect("data/pets").source == str(tmp_path / "data" / "pets")
    with pytest.raises(SourceError, match="nothing is there; did you mean 'data/pets'"):
        inspect("data/pest")

"""The image folder: order, names, strays, links and damaged files."""

import hashlib
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.data.real import read_real


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return root


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as error:
        read_real("imagefolder", folder)
    return str(error.value)


def test_an_image_folder_without_a_split(tmp_path):
    found = read_real("imagefolder", put(tmp_path, "b_c/2.png", "b_c/10.png", "a/x.PNG"))
    assert found.train.class_names == ("a", "b_c")
    assert found.train.prompt_names == ("a", "b c")
    assert [s.key for s in found.train.sources] == ["a/x.PNG", "b_c/10.png", "b_c/2.png"]
    assert found.test is None
    assert found.read("train", 1) == (tmp_path / "b_c/10.png").read_bytes()
    assert found.train.sources[1].id == hashlib.sha256(found.read("train", 1)).hexdigest()


@pytest.mark.parametrize("test_folder", ["test", "val", "validation", "valid"])
def test_an_image_folder_with_a_split(tmp_path, test_folder):
    put(tmp_path, "train/a/0.png", "train/b/1.png", f"{test_folder}/b/2.png")
    found = read_real("imagefolder", str(tmp_path))
    assert [(s.label, s.key) for s in found.test.sources] == [(1, f"{test_folder}/b/2.png")]
    assert found.test.class_names == ("a", "b")


def test_test_stands_before_val_and_a_class_may_be_called_train(tmp_path):
    put(tmp_path / "x", "train/a/0.png", "test/a/1.png", "val/a/2.png")
    assert read_real("imagefolder", tmp_path / "x").test.sources[0].key == "test/a/1.png"
    put(tmp_path / "y", "train/0.png", "boat/1.png")
    assert read_real("imagefolder", tmp_path / "y").train.class_names == ("boat", "train")


def test_hidden_files_thumbnails_and_other_files_are_passed_over(tmp_path):
    put(tmp_path, "a/0.png", ".git/x.png", "__MACOSX/a/x.png", "a/.x.png", "a/._0.png", "a/.cache/y.png")
    for name in ("a/Thumbs.db", "a/notes.txt", "README.md"):
        (tmp_path / name).write_text("x")
    assert [s.key for s in read_real("imagefolder", tmp_path).train.sources] == ["a/0.png"]


def test_dotted_stems_nested_folders_and_odd_class_names_do_not_collide(tmp_path):
    odd = 'it\'s "é" & <x>, {y}'
    put(tmp_path, f"{odd}/a.b.jpg", f"{odd}/a.c.jpg", f"{odd}/deep/er/a.b.jpg", "日本語/1.png")
    found = read_real("imagefolder", tmp_path)
    assert found.train.class_names == (odd, "日本語")
    assert len({s.key for s in found.train.sources}) == 4
    assert all(decode_image(found.read("train", i)).size == (4, 4) for i in range(4))


def test_folder_names_become_nfc_and_the_file_is_still_found(tmp_path):
    put(tmp_path, unicodedata.normalize("NFD", "Café") + "/" + unicodedata.normalize("NFD", "é.png"))
    found = read_real("imagefolder", tmp_path)
    assert found.train.class_names == ("Café",)
    assert found.train.sources[0].key == "Café/é.png"
    assert found.read("train", 0) == png(0)


@pytest.mark.parametrize("twins", [("Cat", "cat"), ("é", unicodedata.normalize("NFD", "é"))])
def test_folders_that_differ_only_in_case_or_form_are_refused(tmp_path, twins):
    put(tmp_path, *(f"{name}/0.png" for name in twins))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system merges them already")
    assert "differ only in case or Unicode form, which other machines cannot tell apart; rename" in refused(tmp_path)


def test_an_empty_class_folder_is_refused_and_one_image_is_enough(tmp_path):
    put(tmp_path, "a/0.png")
    assert len(read_real("imagefolder", tmp_path).train) == 1
    (tmp_path / "b").mkdir()
    assert refused(tmp_path) == (
        f"{str(tmp_path / 'b')!r}: the class has no image; add one (.jpg, .jpeg, .jpe, .png, .webp, ...) or remove the "
        "folder."
    )


def test_a_folder_without_classes_is_refused(tmp_path):
    put(tmp_path, "0.png")
    assert refused(tmp_path) == f"{str(tmp_path)!r}: found no class folder; expected one folder of images a class."


def test_a_test_class_without_training_folder_is_refused(tmp_path):
    put(tmp_path, "train/a/0.png", "test/b/0.png")
    assert refused(tmp_path) == "test/b: no such class in train/; add it there or remove it here."


def test_picture_formats_that_are_not_read_are_named(tmp_path):
    put(tmp_path, "a/0.png", "a/x.HEIC")
    assert "x.HEIC': .HEIC is not read; convert it to .png or .jpg, or remove it." in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not an image", png(1)[:30]])
def test_a_corrupt_image_is_named(tmp_path, data):
    put(tmp_path, "a/0.png")
    (tmp_path / "a" / "bad.jpg").write_bytes(data)
    assert refused(tmp_path).startswith("a/bad.jpg: not a readable image, expected an intact one of JPEG, PNG")


def test_cmyk_turned_grey_and_palette_images_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (6, 4)).save(tmp_path / "a" / "0.jpg")
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "1.jpg", exif=exif)
    Image.new("L", (6, 4)).save(tmp_path / "a" / "2.png")
    Image.new("P", (6, 4)).save(tmp_path / "a" / "3.gif")
    found = read_real("imagefolder", tmp_path)
    assert [decode_image(found.read("train", i)).size for i in range(4)] == [(6, 4), (4, 6), (6, 4), (6, 4)]


def test_links_that_leave_the_folder_are_refused(tmp_path):
    put(tmp_path, "secret/0.png", "data/a/0.png")
    (tmp_path / "data/a/1.png").symlink_to(tmp_path / "secret/0.png")
    message = refused(tmp_path / "data")
    assert message == f"a/1.png: leads outside the dataset's folder {str(tmp_path / 'data')!r}; copy the image into it."


@pytest.mark.parametrize("place", ["b", "a/deep"])
def test_linked_folders_are_refused_and_not_walked(tmp_path, place):
    put(tmp_path, "secret/0.png", "data/a/0.png")
    (tmp_path / "data" / place).symlink_to(tmp_path / "secret", target_is_directory=True)
    assert "got a linked folder, expected a real one; copy its images here." in refused(tmp_path / "data")


def test_links_inside_the_folder_and_a_link_to_it_are_fine(tmp_path):
    put(tmp_path, "data/a/0.png")
    (tmp_path / "data/a/1.png").symlink_to(tmp_path / "data/a/0.png")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    found = read_real("imagefolder", tmp_path / "link")
    assert found.train.sources[0].id == found.train.sources[1].id

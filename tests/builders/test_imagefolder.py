"""The image folder: order, names, strays, links and damaged files."""

import hashlib
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image, formats
from diffaug_datasets.sources.real import read_real


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
        "folder, or leave it out with `partial: true`."
    )


def test_a_folder_without_classes_is_refused(tmp_path):
    nothing = f"{str(tmp_path)!r}: found no class folder; expected one folder of images per class"
    assert refused(tmp_path) == f"{nothing}."
    put(tmp_path, "0.png")
    assert refused(tmp_path) == (
        f"{nothing}; if '{tmp_path.name}' is a class with its 1 image, give the folder above: '{tmp_path.parent}'."
    )


def test_a_test_class_without_training_folder_is_refused(tmp_path):
    put(tmp_path, "train/a/0.png", "test/b/0.png")
    assert refused(tmp_path) == "test/b: no such class in train/; add it there or remove it here."


@pytest.mark.parametrize("data", [b"", b"not an image", png(1)[:30]])
def test_a_corrupt_image_is_named(tmp_path, data):
    put(tmp_path, "a/0.png")
    (tmp_path / "a" / "bad.jpg").write_bytes(data)
    assert refused(tmp_path).startswith("a/bad.jpg: ")
    found = read_real("imagefolder", tmp_path, on_bad_image="skip")
    assert [s.key for s in found.train.sources] == ["a/0.png"]
    assert [image.name for image in found.skipped] == ["a/bad.jpg"]
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"found no training image that can be used \(.*a/bad.jpg\) in"):
        read_real("imagefolder", tmp_path, on_bad_image="skip")


def test_a_skipped_image_is_in_no_split_class_or_episode(tmp_path):
    put(tmp_path, *(f"train/{c}/{n}.png" for c in "ab" for n in range(3)), "test/a/0.png", "test/b/0.png")
    for bad in ("train/a/1.png", "test/b/0.png"):
        (tmp_path / bad).write_bytes(b"")
    found = read_real("imagefolder", tmp_path, on_bad_image="skip")
    assert len(found.train) == 5 and [s.key for s in found.test.sources] == ["test/a/0.png"]
    assert [found.read("train", i) for i in range(5)] == [(tmp_path / s.key).read_bytes() for s in found.train.sources]
    (tmp_path / "train/a/0.png").unlink()
    (tmp_path / "train/a/1.png").unlink()
    (tmp_path / "test/b/0.png").unlink()
    drawn = read_real("imagefolder", tmp_path).train.digest
    (tmp_path / "train/a/0.png").write_bytes(b"<html>")
    assert read_real("imagefolder", tmp_path, on_bad_image="skip").train.digest == drawn


USUAL = ("jfif", "JPE", "jif", "pjpeg", "mpo", "pgm", "pbm", "apng", "tif")


def test_usual_suffixes_are_read_and_others_counted_by_name(tmp_path):
    put(tmp_path, "a/0.png", *(f"a/1.{suffix}" for suffix in USUAL))
    for name in ("a/1.jp2", "a/2.JP2", "a/3.cr2", "a/4.heic", "a/notes.txt", "a/LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    found = read_real("imagefolder", tmp_path)
    assert len(found.train) == 1 + len(USUAL)
    heic = () if "HEIF" in formats() else ("1 .heic (a/4.heic; `pip install pillow-heif` reads them)",)
    assert found.survey.left_out == (
        "1 .cr2 (a/3.cr2; convert them to .png or .jpg)",
        *heic,
        "2 .jp2 (a/1.jp2, a/2.JP2; convert them to .png or .jpg)",
        "2 files that are no images (no suffix, .txt)",
    )
    if "AVIF" in formats():
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / "5.avif")
        assert len(read_real("imagefolder", tmp_path).train) == 2 + len(USUAL)


def test_a_class_of_unreadable_files_says_so(tmp_path):
    put(tmp_path, "a/0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.CR2").write_bytes(b"x")
    assert (
        "the class has no image that is read (left out: 1 .cr2 (b/0.CR2; convert them to .png or .jpg)); add"
        in refused(tmp_path)
    )


SYSTEM = ("@eaDir", "#recycle", ".AppleDouble", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found",
          ".ipynb_checkpoints", ".thumbnails", ".git", "found.000", "@Recycle", "__pycache__")  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_system_folders_are_no_classes(tmp_path, name):
    put(tmp_path, "a/0.png", f"{name}/x.png", f"a/{name}/0.png")
    for junk in ("a/._0.png", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store", "a/ehthumbs.db"):
        (tmp_path / junk).write_bytes(b"x")
    found = read_real("imagefolder", tmp_path)
    assert [s.key for s in found.train.sources] == ["a/0.png"]
    assert (found.survey.left_out, found.survey.warnings) == ((f"folder {name}",), ())


PAIRS = [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "TEST"), ("train_set", "test_set"), ("trainset", "tst"),
         ("TrainData", "TestData"), ("train2017", "val2017"), ("training", "Validation"), ("trn", "dev"),
         ("train images", "eval"), ("Train-Set", "valid")]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_splits_by_any_usual_name_are_splits(tmp_path, train, test):
    put(tmp_path, f"{train}/x/0.png", f"{train}/y/1.png", f"{test}/x/2.png")
    found = read_real("imagefolder", tmp_path)
    assert (found.train.class_names, len(found.train), len(found.test)) == (("x", "y"), 2, 1)
    is_val = test.lower().startswith(("v", "d", "e"))
    role = " (serving as the test split)" if is_val else ""
    assert found.survey.layout == f"{train}/ and {test}/{role} with class folders"
    assert found.survey.left_out == ()


REFUSED = {
    "splits alone": (("Train/0.png", "Test/1.png"), "found Test/, Train/, which are splits, but no training folder"),
    "no training": (("test/a/0.png", "val/a/1.png"), "found test/, val/, which are splits, but no training folder"),
    "one split": (("train/0.png",), "found train/, which are splits, but no training folder with class folders"),
    "two trainings": (("train/a/0.png", "Training/a/1.png"), "found Training/, train/, expected one training folder"),
    "two tests": (("train/a/0.png", "test/a/1.png", "Testing/a/2.png"), "found Testing/, test/, expected one such"),
    "doubled": (("birds/a/0.png", "birds/b/0.png"), "birds/ (a/, b/); expected images right inside; if those are the "
                "classes, give --source {}/birds."),
    "deeper": (("x/y/a/0.png", "x/y/b/0.png"), "give --source {}/x/y."),
    "doubled split": (("train/train/a/0.png", "train/train/b/0.png"), "give --source {}/train/train."),
    "doubled flat split": (("train/train/0.png", "test/test/0.png"), "found only train/train/, which are names of"),
    "domains": (("art/cat/0.png", "art/dog/0.png", "photo/cat/1.png"), "art/ (cat/, dog/), photo/ (cat/); expected"),
    "classes first": (("cat/train/0.png", "cat/test/1.png", "dog/train/2.png"), "the class folders hold splits: cat/ "
                      "(test/, train/), dog/ (train/); expected the splits above the classes"),
    "test beside": (("cat/0.png", "dog/1.png", "test/cat/2.png"), "found test/ with class folders, but no train/"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_can_be_read_in_two_ways_is_refused_with_what_is_there(tmp_path, case):
    names, told = REFUSED[case]
    assert told.format(tmp_path) in refused(put(tmp_path, *names))


def test_class_folders_with_one_inner_folder_are_read_and_a_single_deep_class_is_said(tmp_path):
    put(tmp_path / "tiny", "train/n1/images/0.png", "train/n2/images/1.png", "val/images/2.png")
    found = read_real("imagefolder", tmp_path / "tiny")
    assert found.train.class_names == ("n1", "n2") and found.test is None
    assert found.survey.left_out == ("val/ (1 image without class folders, so no test split)",)
    put(tmp_path / "days", "a/mon/0.png", "a/tue/1.png", "b/2.png")
    found = read_real("imagefolder", tmp_path / "days")
    assert found.survey.warnings == ("class 'a' has no image right inside; used are those in mon/, tue/",)


LEFT_OUT = {
    "an unlabelled test": (("test/1.png", "test/2.png"), "test/ (2 images without class folders, so no test split)"),
    "unknown": (("test/unknown/1.png",), "test/ (1 image without class folders, so no test split)"),
    "an unused val": (("val/a/1.png", "test/a/2.png"), "val/ (1 image; test/ is the test split)"),
    "strays": (("0.png", "train/1.png"), "1 image beside the class folders"),
    "another folder": (("extra/1.png",), "extra/ (1 image beside train/)"),
    "hidden": (("train/a/.9.png",), "1 hidden image"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_not_used_is_said(tmp_path, case):
    names, told = LEFT_OUT[case]
    found = read_real("imagefolder", put(tmp_path, "train/a/0.png", "train/b/0.png", *names))
    assert found.train.class_names == ("a", "b") and len(found.train) == 2
    assert told in found.survey.left_out
    assert (found.test is None) == ("test/a/2.png" not in names)


def test_an_unlabelled_test_beside_classes_is_no_class_and_val_may_stand_in(tmp_path):
    put(tmp_path / "x", "a/0.png", "b/1.png", "test/2.png")
    found = read_real("imagefolder", tmp_path / "x")
    assert found.train.class_names == ("a", "b")
    assert found.survey.left_out == ("test/ (1 image without class folders, so no test split)",)
    put(tmp_path / "y", "train/a/0.png", "train/b/1.png", "test/2.png", "val/a/3.png")
    assert read_real("imagefolder", tmp_path / "y").test.sources[0].key == "val/a/3.png"


def test_a_test_class_in_another_case_is_hinted_at(tmp_path):
    put(tmp_path, "train/Cat/0.png", "test/cat/0.png")
    assert refused(tmp_path) == "test/cat: no such class in train/ (there it is 'Cat'); add it there or remove it here."


def test_the_same_bytes_twice_are_said_with_their_paths(tmp_path):
    put(tmp_path, *(f"train/{c}/{n}.png" for c in "ab" for n in range(7)), "test/a/0.png", "test/b/9.png")
    for n in range(5):
        (tmp_path / f"train/b/{n}.png").write_bytes((tmp_path / f"train/a/{n}.png").read_bytes())
    (tmp_path / "train/b/6.png").write_bytes((tmp_path / "train/b/5.png").read_bytes())
    (tmp_path / "test/a/0.png").write_bytes((tmp_path / "train/a/6.png").read_bytes())
    pairs = ", ".join(f"train/a/{n}.png = train/b/{n}.png" for n in range(3))
    assert read_real("imagefolder", tmp_path).survey.warnings == (
        f"5 images are there in more than one class, so its labels contradict each other: {pairs} and 2 more",
        "1 image is there in training and in test: train/a/6.png = test/a/0.png",
        "1 image is there more than once in a class: train/b/5.png = train/b/6.png",
    )


def test_a_folder_without_rights_is_one_sentence(tmp_path, monkeypatch):
    put(tmp_path, "a/0.png")

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", closed)
    assert refused(tmp_path) == f"'{tmp_path}': cannot be read (Permission denied); check the folder and its rights."


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
    assert message == (
        f"a/1.png: leads outside the dataset's folder {str(tmp_path / 'data')!r}; copy the image into it, or leave it "
        "out with `on_bad_image: skip`."
    )


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

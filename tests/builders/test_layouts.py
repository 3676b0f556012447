"""Each dataset's own folder layout, file for file, on small made-up images."""

from io import BytesIO
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.sources.real import class_phrases, find_builder, read_real

VALUES = count()


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        Image.new("RGB", (4, 4), (next(VALUES) % 256, 1, 2)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def refused(builder: str, folder: Path, partial: bool = True) -> str:
    with pytest.raises(SourceError) as error:
        read_real(builder, folder, partial=partial)
    return str(error.value)


def keys(table) -> list[tuple[int, str]]:
    return [(source.label, source.key) for source in table.sources]


@pytest.fixture
def cub(tmp_path) -> Path:
    paths = ["002.Laysan_Albatross/b.1.jpg", "001.Black_footed_Albatross/a.jpg", "002.Laysan_Albatross/b.2.jpg"]
    put(tmp_path, *(f"images/{path}" for path in paths))
    write(tmp_path, "images.txt", "".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    write(tmp_path, "image_class_labels.txt", "1 2\n2 1\n3 2\n")
    write(tmp_path, "train_test_split.txt", "1 1\n2 1\n3 0\n")
    write(tmp_path, "classes.txt", "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    return tmp_path


def test_cub_keeps_the_order_of_its_list_and_its_labels_verbatim(cub):
    found = read_real("cub", cub, partial=True)
    assert found.train.class_names == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert found.train.prompt_names == ("black footed albatross", "laysan albatross")
    assert found.train.metaclass == "bird"
    assert keys(found.train) == [
        (1, "images/002.Laysan_Albatross/b.1.jpg"),
        (0, "images/001.Black_footed_Albatross/a.jpg"),
    ]
    assert keys(found.test) == [(1, "images/002.Laysan_Albatross/b.2.jpg")]


def test_cub_one_folder_above_is_the_same_data(cub, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    cub.rename(above / "CUB_200_2011")
    found = read_real("cub", above, partial=True)
    assert found.train.sources[0].key == "CUB_200_2011/images/002.Laysan_Albatross/b.1.jpg"


def test_cub_without_partial_names_expected_and_found(cub):
    assert refused("cub", cub, partial=False) == (
        "cub: expected 200 classes, 5994 training images, 5794 test images, found 2 classes, 2 training images, 1 test "
        f"images in '{cub}'; complete the copy, or pass partial=True (`partial: true` in a recipe) to use it as it is."
    )


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_cub_names_a_missing_list(cub, name):
    (cub / name).unlink()
    assert refused("cub", cub) == f"{name}: expected in {str(cub)!r}, but not there; complete the copy."


def test_cub_names_a_missing_image(cub):
    (cub / "images/001.Black_footed_Albatross/a.jpg").unlink()
    assert refused("cub", cub).startswith("images/001.Black_footed_Albatross/a.jpg: expected in ")


@pytest.mark.parametrize("entry", ["../../secret.jpg", "001.Black_footed_Albatross/../../../secret.jpg"])
def test_cub_entries_cannot_leave_the_folder(cub, entry):
    write(cub, "images.txt", f"1 {entry}\n")
    assert refused("cub", cub) == (
        f"got the entry 'images/{entry}', expected a '/'-separated path inside the dataset's folder."
    )


@pytest.mark.parametrize(("name", "text"), [("image_class_labels.txt", "1 2\n"), ("train_test_split.txt", "1 7\n")])
def test_cub_lists_that_disagree_are_refused(cub, name, text):
    write(cub, name, text)
    assert "has no class or split in image_class_labels.txt, classes.txt, train_test_split.txt." in refused("cub", cub)


def test_cub_as_class_folders_is_read_too(tmp_path):
    put(tmp_path, "train/001.Black_footed_Albatross/a.jpg", "test/001.Black_footed_Albatross/b.jpg")
    found = read_real("cub", tmp_path, partial=True)
    assert found.train.prompt_names == ("black footed albatross",)
    assert len(found.test) == 1


@pytest.fixture
def imagenet_lt(tmp_path) -> Path:
    put(tmp_path, "train/n01443537/x_1.JPEG", "train/n01440764/y_2.JPEG", "val/n01440764/v_1.JPEG", "val/v_2.JPEG")
    write(tmp_path, "ImageNet_LT_train.txt", "train/n01443537/x_1.JPEG 1\ntrain/n01440764/y_2.JPEG 0\n")
    write(tmp_path, "ImageNet_LT_test.txt", "val/v_1.JPEG 0\nval/n01443537/v_2.JPEG 1\n")
    return tmp_path


def test_imagenet_lt_finds_validation_images_flat_or_by_class(imagenet_lt):
    found = read_real("imagenet_lt", imagenet_lt, partial=True)
    assert found.train.class_names == ("n01440764", "n01443537")
    assert found.train.prompt_names == ("tench", "goldfish")
    assert keys(found.train) == [(1, "train/n01443537/x_1.JPEG"), (0, "train/n01440764/y_2.JPEG")]
    assert keys(found.test) == [(0, "val/n01440764/v_1.JPEG"), (1, "val/v_2.JPEG")]


def test_imagenet_lt_lists_may_lie_in_their_own_folder(imagenet_lt):
    for name in ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"):
        write(imagenet_lt, f"ImageNet_LT/{name}", (imagenet_lt / name).read_text())
        (imagenet_lt / name).unlink()
    assert len(read_real("imagenet_lt", imagenet_lt, partial=True).train) == 2


def test_imagenet_lt_counts_are_checked(imagenet_lt):
    message = refused("imagenet_lt", imagenet_lt, partial=False)
    assert message.startswith("imagenet_lt: expected 1000 classes, 115846 training images, 50000 test images, found ")
    assert "pass partial=True" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train/n01443537/x_1.JPEG 0",
            "ImageNet_LT_train.txt: train/n01443537/x_1.JPEG has the label 0, which is n01440764 when WordNet ids are "
            "sorted.",
        ),
        ("train/n1/x.JPEG 1000", "ImageNet_LT_train.txt: train/n1/x.JPEG has the label '1000', expected 0 to 999."),
        ("train/n1/x.JPEG one", "ImageNet_LT_train.txt: train/n1/x.JPEG has the label 'one', expected 0 to 999."),
        ("../n1/x.JPEG 1", "got the entry '../n1/x.JPEG', expected a '/'-separated path inside the dataset's folder."),
        ("/etc/passwd 1", "got the entry '/etc/passwd', expected a '/'-separated path inside the dataset's folder."),
        ("lonely", "ImageNet_LT_train.txt, line 1: got 'lonely', expected two columns; restore the file."),
    ],
)
def test_imagenet_lt_lines_that_are_wrong_are_refused(imagenet_lt, line, message):
    write(imagenet_lt, "ImageNet_LT_train.txt", line + "\n")
    assert refused("imagenet_lt", imagenet_lt) == message


@pytest.mark.parametrize("name", ["ImageNet_LT_train.txt", "ImageNet_LT_test.txt"])
def test_imagenet_lt_names_a_missing_list(imagenet_lt, name):
    (imagenet_lt / name).unlink()
    assert refused("imagenet_lt", imagenet_lt).startswith(f"{name}: expected in ")


def test_imagenet_is_a_folder_of_wordnet_ids(tmp_path):
    put(tmp_path, "train/n02012849/a.JPEG", "train/n03126707/b.JPEG", "val/n03126707/c.JPEG")
    found = read_real("imagenet", tmp_path, partial=True)
    assert found.train.prompt_names == ("crane bird", "construction crane")
    assert found.test.labels == (1,)


@pytest.mark.parametrize("place", ["", "data/", "fgvc-aircraft-2013b/data/"])
def test_aircraft(tmp_path, place):
    put(tmp_path, *(f"{place}images/{n}.jpg" for n in ("1", "2", "3")))
    write(tmp_path, f"{place}variants.txt", "707-320\nF/A-18\n")
    write(tmp_path, f"{place}images_variant_trainval.txt", "2 F/A-18\n1 707-320\n")
    write(tmp_path, f"{place}images_variant_test.txt", "3 707-320\n")
    found = read_real("aircraft", tmp_path, partial=True)
    assert found.train.class_names == ("707-320", "F/A-18")
    assert keys(found.train) == [(1, f"{place}images/2.jpg"), (0, f"{place}images/1.jpg")]
    write(tmp_path, f"{place}images_variant_test.txt", "3 Zeppelin\n")
    assert refused("aircraft", tmp_path) == "image 3: got the variant 'Zeppelin', expected one of variants.txt."


def test_pets(tmp_path):
    put(tmp_path, *(f"images/{name}.jpg" for name in ("Abyssinian_1", "great_pyrenees_2", "Abyssinian_3")))
    write(tmp_path, "annotations/trainval.txt", "great_pyrenees_2 16 2 9\nAbyssinian_1 1 1 1\n")
    write(tmp_path, "annotations/test.txt", "Abyssinian_3 1 1 1\n")
    found = read_real("pets", tmp_path, partial=True)
    assert found.train.class_names == ("Abyssinian", "great_pyrenees")
    assert found.train.prompt_names == ("abyssinian", "great pyrenees")
    assert (found.train.labels, found.test.labels) == ((1, 0), (0,))
    write(tmp_path, "annotations/test.txt", "Abyssinian_3 2 1 1\n")
    assert refused("pets", tmp_path) == "annotations/test.txt: breed 2 has no training image; restore the lists."
    write(tmp_path, "annotations/test.txt", "Abyssinian_3 x 1 1\n")
    assert "got the class id 'x', expected a number from 1 to 37." in refused("pets", tmp_path)


def test_food101(tmp_path):
    put(tmp_path, "images/apple_pie/1.jpg", "images/waffles/2.jpg")
    write(tmp_path, "meta/classes.txt", "apple_pie\nwaffles\n")
    write(tmp_path, "meta/train.txt", "waffles/2\napple_pie/1\n")
    write(tmp_path, "meta/test.txt", "apple_pie/1\n")
    found = read_real("food101", tmp_path, partial=True)
    assert keys(found.train) == [(1, "images/waffles/2.jpg"), (0, "images/apple_pie/1.jpg")]
    write(tmp_path, "meta/test.txt", "stone/1\n")
    assert "got 'stone/1', expected a dish of meta/classes.txt." in refused("food101", tmp_path)


@pytest.mark.parametrize("place", ["", "256_ObjectCategories/"])
def test_caltech256_leaves_clutter_and_strays_out(tmp_path, place):
    put(tmp_path, f"{place}001.ak47/a.jpg", f"{place}056.dog/b.jpg", f"{place}056.dog/greg/c.jpg")
    put(tmp_path, f"{place}257.clutter/d.jpg")
    write(tmp_path, f"{place}056.dog/RENAME2", "x")
    found = read_real("caltech256", tmp_path, partial=True)
    assert found.train.class_names == ("001.ak47", "056.dog")
    assert keys(found.train) == [(0, f"{place}001.ak47/a.jpg"), (1, f"{place}056.dog/b.jpg")]
    assert found.test is None


def test_mini_imagenet_lists_its_novel_classes(tmp_path):
    put(tmp_path, "images/b1.jpg", "images/a/1.jpg")
    write(tmp_path, "train.csv", "filename,label\nelsewhere.jpg,n01440764\n")
    write(tmp_path, "test.csv", "filename,label\nb1.jpg,n02110341\na/1.jpg,n01930112\n")
    found = read_real("mini_imagenet", tmp_path, partial=True)
    assert found.train.class_names == ("n01930112", "n02110341") and found.test is None
    assert keys(found.train) == [(1, "images/b1.jpg"), (0, "images/a/1.jpg")]
    assert "expected 20 classes, 12000 training images" in refused("mini_imagenet", tmp_path, partial=False)
    for text, told in (
        ("file,label\n", "got the columns"),
        ("filename,label\nb1.jpg\n", "test.csv, line 2: got ['b1.jpg'], expected a file name and a label"),
        ("filename,label\n../../x.jpg,n02110341\n", "expected a '/'-separated path inside the dataset's folder"),
    ):
        write(tmp_path, "test.csv", text)
        assert told in refused("mini_imagenet", tmp_path)


def test_tiered_imagenet_takes_its_novel_classes_alone(tmp_path):
    put(tmp_path, "train/n01440764/x.jpg", "test/n02110341/b.jpg", "test/n02110341/a.JPEG", "test/n01930112/c.png")
    write(tmp_path, "test/n01930112/notes.txt", "x")
    write(tmp_path, "test/readme", "x")
    found = read_real("tiered_imagenet", tmp_path, partial=True)
    assert found.train.class_names == ("n01930112", "n02110341") and found.test is None
    names = ["n01930112/c.png", "n02110341/a.JPEG", "n02110341/b.jpg"]
    assert [source.key for source in found.train.sources] == [f"test/{name}" for name in names]


@pytest.mark.parametrize("place", ["", "bloodmnist/", "bloodmnist_64/"])
def test_medmnist_is_read_from_what_its_package_saves(tmp_path, place):
    names = ("train10_0.png", "train2_7.png", "val0_3.png", "test1_1.png", "test0_6.png")
    put(tmp_path, *(place + name for name in names))
    write(tmp_path, f"{place}notes.txt", "x")
    write(tmp_path, "bloodmnist.csv", "TRAIN,train2_7.png,7\n")
    listing = find_builder("bloodmnist").read(tmp_path)
    assert len(listing.class_names) == 8
    assert [(item.label, item.key) for item in listing.train] == [
        (7, f"{place}train2_7.png"),
        (0, f"{place}train10_0.png"),
    ]
    assert [(item.label, item.key) for item in listing.test] == [(6, f"{place}test0_6.png"), (1, f"{place}test1_1.png")]
    found = read_real("bloodmnist", tmp_path, partial=True)
    assert found.train.class_names == ("basophil", "platelet")
    put(tmp_path, f"{place}train3_8.png")
    assert "got class 8 for train3_8.png, expected 0 to 7" in refused("bloodmnist", tmp_path)


def test_medmnist_arrays_and_several_sizes_are_told_apart(tmp_path):
    assert find_builder("pathmnist").read(tmp_path) is None
    write(tmp_path, "pathmnist_64.npz", "x")
    assert "save them with `python -m medmnist save --flag=pathmnist --size=64 --folder=FOLDER" in refused(
        "pathmnist", tmp_path
    )
    put(tmp_path, "pathmnist/train0_0.png", "pathmnist_64/train0_0.png")
    assert "found images in pathmnist and pathmnist_64, expected them in one" in refused("pathmnist", tmp_path)


def test_waterbirds_have_the_species_of_cub(tmp_path):
    names = list(class_phrases("cub"))
    put(tmp_path, f"{names[0]}/a.jpg", f"{names[3]}/b.jpg")
    head = "img_id,img_filename,y,split,place,place_filename\n"
    write(tmp_path, "metadata.csv", head + f"1,{names[3]}/b.jpg,0,0,1,/p\n2,{names[0]}/a.jpg,0,2,0,/p\n")
    listing = find_builder("waterbirds").read(tmp_path)
    assert (len(listing.class_names), listing.train[0].label, listing.test[0].label) == (200, 3, 0)
    assert listing.train[0].columns == (("kind", "land bird"), ("place", "water"))
    assert listing.test[0].columns == (("kind", "land bird"), ("place", "land"))
    write(tmp_path, "metadata.csv", head + f"1,{names[3]}/b.jpg,0,0,2,/p\n")
    assert refused("waterbirds", tmp_path) == (
        f"metadata.csv: {names[3]}/b.jpg: got '2' as place, expected 0 or 1; restore the file."
    )
    write(tmp_path, "metadata.csv", head + "1,../x.jpg,0,0,1,/p\n")
    assert refused("waterbirds", tmp_path) == (
        "metadata.csv: got the file '../x.jpg', expected one in a CUB species folder."
    )


def test_flowers_are_pooled_and_cut_in_half(tmp_path):
    put(tmp_path, *(f"train/1/{i}.jpg" for i in range(5)), *(f"test/1/{i}.jpg" for i in range(5, 9)))
    found = read_real("flowers", tmp_path, partial=True)
    assert (len(found.train), len(found.test)) == (4, 5)
    assert found.train.prompt_names == ("pink primrose",)
    assert {s.id for s in found.train.sources}.isdisjoint(s.id for s in found.test.sources)
    assert found.read("train", 0) == (tmp_path / found.train.sources[0].key).read_bytes()
    assert "expected 102 classes, 8189 images, found 1 classes, 9 images" in refused("flowers", tmp_path, partial=False)


@pytest.mark.parametrize("builder", ["cub", "imagenet_lt", "aircraft", "pets", "food101", "caltech256", "waterbirds"])
def test_a_folder_in_another_layout_is_left_to_the_image_folder(tmp_path, builder):
    put(tmp_path, "zebra/a.jpg")
    assert find_builder(builder).read(tmp_path) is None

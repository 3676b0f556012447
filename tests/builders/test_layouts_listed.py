"""Datasets that come as one folder per class, with or without lists: Caltech-101, ImageNet-100, Semi-Aves, textures."""

import numpy as np
import pytest
from test_layouts import keys, put, refused, write

from diffaug_datasets.sources.real import find_builder, read_real

CALTECH = ("accordion", "BACKGROUND_Google", "Faces", "yin_yang")


@pytest.mark.parametrize("place", ["", "101_ObjectCategories/", "caltech-101/101_ObjectCategories/"])
def test_caltech101_is_cut_in_half_as_da_fusion_cuts_it(tmp_path, place):
    put(tmp_path, *(f"{place}{name}/image_{i:04d}.jpg" for name in CALTECH for i in range(1, 6)))
    put(tmp_path, f"{place}Faces/thumb.jpg", f"{place}tmp/stray.png")
    listing = find_builder("caltech101").read(tmp_path)
    assert listing.class_names == CALTECH  # in the order of small letters
    rng, train, test = np.random.default_rng(0), [], []
    for label, name in enumerate(CALTECH):
        first, second = np.array_split(rng.permutation(5), 2)
        train += [(label, f"{place}{name}/image_{i + 1:04d}.jpg") for i in first]
        test += [(label, f"{place}{name}/image_{i + 1:04d}.jpg") for i in second]
    found = read_real("caltech101", tmp_path, partial=True)
    assert keys(found.train) == train and keys(found.test) == test
    assert found.train.prompt_names == ("accordion", "background google", "faces", "yin yang")
    assert "expected 102 classes, 9144 images, found 4 classes, 20 images" in refused("caltech101", tmp_path, False)


@pytest.mark.parametrize("held", ["test", "val"])
def test_imagenet100_takes_its_hundred_classes_of_imagenet(tmp_path, held):
    put(
        tmp_path,
        "train/n01440764/tench.JPEG",
        "train/n02701002/b.JPEG",
        "train/n02701002/a.JPEG",
        "train/n01558993/c.JPEG",
    )
    put(tmp_path, f"{held}/n01558993/v.JPEG", f"{held}/n01440764/w.JPEG")
    write(tmp_path, "train/n01558993/notes.txt", "x")
    found = read_real("imagenet100", tmp_path, partial=True)
    assert found.train.class_names == ("n01558993", "n02701002")
    assert found.train.prompt_names[1] == "ambulance"
    assert keys(found.train) == [
        (0, "train/n01558993/c.JPEG"),
        (1, "train/n02701002/a.JPEG"),
        (1, "train/n02701002/b.JPEG"),
    ]
    assert keys(found.test) == [(0, f"{held}/n01558993/v.JPEG")]
    assert "expected 100 classes, found 2 classes" in refused("imagenet100", tmp_path, partial=False)


def test_imagenet100_classes_are_a_hundred_of_imagenets():
    classes = find_builder("imagenet100").CLASSES
    assert len(set(classes)) == 100 and list(classes) == sorted(classes)
    assert all(find_builder("imagenet100").prompt_name(wnid) != wnid for wnid in classes)


@pytest.mark.parametrize("place", ["", "semi_aves/", "semi_fgvc/semi_aves/"])
def test_semi_aves_lists_its_labelled_images(tmp_path, place):
    put(tmp_path, *(f"{place}trainval_images/{i}.jpg" for i in range(3)), f"{place}test/a b.jpg")
    write(tmp_path, f"{place}splits/semi_aves_class_names.txt", "1 Corvus_corax\n0 Cardinalis_cardinalis\n-1 Unknown\n")
    write(tmp_path, f"{place}splits/l_train_val.txt", "trainval_images/1.jpg 1\ntrainval_images/0.jpg 0\n")
    write(tmp_path, f"{place}splits/test.txt", "test/a b.jpg 1\n")
    found = read_real("inat", tmp_path, partial=True)
    assert found.train.prompt_names == ("Cardinalis cardinalis", "Corvus corax")
    assert keys(found.train) == [(1, f"{place}trainval_images/1.jpg"), (0, f"{place}trainval_images/0.jpg")]
    assert keys(found.test) == [(1, f"{place}test/a b.jpg")]
    for line, told in (
        ("../x.jpg 1", "expected a '/'-separated path inside the dataset's folder"),
        ("a.jpg 2", "splits/test.txt: got the line 'a.jpg 2', expected a path and a class from 0 to 1."),
        ("a.jpg", "got the line 'a.jpg', expected a path and a class"),
    ):
        write(tmp_path, f"{place}splits/test.txt", line + "\n")
        assert told in refused("inat", tmp_path)
    write(tmp_path, f"{place}splits/semi_aves_class_names.txt", "0 A\n2 B\n")
    assert "got 2 classes whose numbers do not run from 0" in refused("inat", tmp_path)
    write(tmp_path, f"{place}splits/semi_aves_class_names.txt", "A\n")
    assert "class_names.txt, line 1: got 'A', expected a number and a name" in refused("inat", tmp_path)


@pytest.mark.parametrize("place", ["", "dtd/"])
def test_textures_train_on_the_first_partitions_train_and_val(tmp_path, place):
    put(tmp_path, *(f"{place}images/{n}.jpg" for n in ("braided/b_1", "banded/a_1", "banded/a_2", "braided/b_2")))
    write(tmp_path, f"{place}labels/train1.txt", "braided/b_1.jpg\n")
    write(tmp_path, f"{place}labels/val1.txt", "banded/a_1.jpg\n")
    write(tmp_path, f"{place}labels/test1.txt", "banded/a_2.jpg\nbraided/b_2.jpg\n")
    found = read_real("dtd", tmp_path, partial=True)
    assert found.train.class_names == ("banded", "braided") and found.train.metaclass == "texture"
    assert keys(found.train) == [(1, f"{place}images/braided/b_1.jpg"), (0, f"{place}images/banded/a_1.jpg")]
    assert found.test.labels == (0, 1)
    write(tmp_path, f"{place}labels/test1.txt", "knitted/k_1.jpg\n")
    assert "the texture 'knitted' has no training image" in refused("dtd", tmp_path)
    write(tmp_path, f"{place}labels/test1.txt", "k_1.jpg\n")
    assert "got the line 'k_1.jpg', expected a texture and a file" in refused("dtd", tmp_path)


@pytest.mark.parametrize("builder", ["caltech101", "imagenet100", "inat", "dtd", "pascal", "coco"])
def test_a_folder_in_another_layout_is_left_to_the_image_folder(tmp_path, builder):
    put(tmp_path, "zebra/a.jpg")
    assert find_builder(builder).read(tmp_path) is None

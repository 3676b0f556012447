"""PASCAL and COCO: every image is of the class of its largest object, as DA-Fusion takes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_layouts import keys, put, refused, write

from diffaug_datasets.sources.real import find_builder, read_real

BOAT, PERSON, SOFA = 4, 15, 18


def masks(root: Path, image: str, kinds: list[list[int]], objects: list[list[int]]) -> None:
    """Both palette images of a segmentation."""
    for folder, values in (("SegmentationClass", kinds), ("SegmentationObject", objects)):
        path = root / folder / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(values, dtype=np.uint8)).convert("P")
        picture.putpalette([0, 0, 0] * 256)
        picture.putdata([value for row in values for value in row])
        picture.save(path)


@pytest.fixture(params=["", "VOC2012/", "VOCdevkit/VOC2012/"])
def voc(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    place, root = request.param, tmp_path / request.param
    put(tmp_path, *(f"{place}JPEGImages/{name}.jpg" for name in ("2007_1", "2007_2", "2008_3", "unlisted")))
    write(root, "ImageSets/Segmentation/train.txt", "2007_1\n2008_3\n")
    write(root, "ImageSets/Segmentation/val.txt", "2007_2\n")
    # Two persons of 3 and 2 pixels and a boat of 4; the background and the border are larger than all of them.
    persons, boat, border = [PERSON] * 5, [BOAT] * 4, [255] * 6
    kinds = [[0] * 5, [*persons], [*boat, 255], [*border[:5]]]
    objects = [[0] * 5, [1, 1, 1, 2, 2], [3, 3, 3, 3, 255], [*border[:5]]]
    masks(root, "2007_1", kinds, objects)
    masks(root, "2008_3", [[SOFA, 255]], [[1, 255]])
    masks(root, "2007_2", [[PERSON, PERSON, BOAT, 255]], [[1, 1, 2, 255]])
    return tmp_path, place


def test_pascal_images_are_of_the_class_of_the_object_with_most_pixels(voc):
    folder, place = voc
    listing = find_builder("pascal").read(folder)
    assert len(listing.class_names) == 20 and listing.class_names[BOAT - 1] == "boat"
    assert [(item.label, item.key) for item in listing.train] == [
        (BOAT - 1, f"{place}JPEGImages/2007_1.jpg"),
        (SOFA - 1, f"{place}JPEGImages/2008_3.jpg"),
    ]
    assert [item.label for item in listing.test] == [PERSON - 1]
    found = read_real("pascal", folder, partial=True)
    assert found.train.class_names == ("boat", "sofa")
    assert "expected 20 classes, 1464 training images, 1449 test images" in refused("pascal", folder, partial=False)


def test_pascal_segmentations_that_are_wrong_are_refused(voc):
    folder, place = voc
    masks(folder / place, "2008_3", [[0, 255]], [[0, 255]])
    assert "2008_3.png: no object of a class from 1 to 20; restore the file." in refused("pascal", folder)
    masks(folder / place, "2008_3", [[SOFA, 255]], [[1, 1, 255]])
    assert "got (1, 2), expected (1, 3) as objects" in refused("pascal", folder)
    Image.new("RGB", (2, 1)).save(folder / place / "SegmentationObject" / "2008_3.png")
    assert "got an image of mode RGB, expected a palette image" in refused("pascal", folder)
    (folder / place / "SegmentationClass" / "2008_3.png").unlink()
    assert "2008_3.png: expected in" in refused("pascal", folder)


def instances(folder: Path, split: str, objects: list[tuple[int, int, float]], extra: int = 0) -> None:
    """A file of annotations: image, category and area of each object; images 1 to 4."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "license": 1} for i in (3, 1, 2, 4)]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "area": a, "segmentation": [[0.0, 1.5]], "iscrowd": 0}
        for n, (i, c, a) in enumerate(objects)
    ]
    categories = [{"id": 3, "name": "car", "supercategory": "vehicle"}, {"id": 1, "name": "person"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    content["categories"] += [{"id": 9 + n, "name": f"more {n}"} for n in range(extra)]
    write(folder, f"annotations/instances_{split}.json", json.dumps(content))


def test_coco_images_are_of_the_category_of_the_largest_annotation(tmp_path):
    put(tmp_path, *(f"{split}/{i:012d}.jpg" for split in ("train2017", "val2017") for i in range(1, 5)))
    instances(tmp_path, "train2017", [(1, 1, 10.0), (1, 3, 10.5), (3, 1, 4), (3, 3, 4), (2, 3, 0)])
    instances(tmp_path, "val2017", [(4, 1, 1)])
    found = read_real("coco", tmp_path, partial=True)
    assert found.train.class_names == ("person", "car")
    assert keys(found.train) == [
        (0, "train2017/000000000003.jpg"),  # as large as the car after it
        (1, "train2017/000000000001.jpg"),
        (1, "train2017/000000000002.jpg"),
    ]
    assert keys(found.test) == [(0, "val2017/000000000004.jpg")]
    assert "expected 80 classes, 117266 training images, 4952 test images" in refused("coco", tmp_path, partial=False)


def test_coco_files_that_are_wrong_are_refused(tmp_path):
    assert find_builder("coco").read(tmp_path) is None
    instances(tmp_path, "train2017", [(1, 1, 10.0)])
    instances(tmp_path, "val2017", [(4, 1, 1)], extra=1)
    assert "its categories are not those of annotations/instances_train2017.json" in refused("coco", tmp_path)
    instances(tmp_path, "val2017", [(4, 7, 1)])
    assert "val2017: an object is of category 7, which is not listed" in refused("coco", tmp_path)
    write(tmp_path, "annotations/instances_val2017.json", '{"annotations": [{"area": 1}]}')
    assert "got {'area': 1} among annotations, which lacks what COCO has" in refused("coco", tmp_path)
    write(tmp_path, "annotations/instances_val2017.json", "{}")
    assert "got no images or no categories" in refused("coco", tmp_path)
    (tmp_path / "annotations/instances_val2017.json").unlink()
    assert "instances_val2017.json: expected in" in refused("coco", tmp_path)

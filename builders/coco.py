"""COCO 2017 as DA-Fusion takes it: every image with an object is of the class of its largest one.

117,266 training and 4,952 validation images of 80 classes; the largest object is the annotation of the largest `area`,
the first of them where several are as large. Labels are the names of the categories in the order of their numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_key
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.long_json import items_of

NAME = "coco"
TITLE = "COCO 2017, largest objects"
HOMEPAGE = "https://cocodataset.org/"
LICENCE = "CC BY 4.0 for the annotations; the photographs belong to their owners on Flickr, whose terms apply"
LICENCE_ID = "other"
LICENCE_URL = "https://cocodataset.org/#termsofuse"
OFFICIAL = {"classes": 80, "train": 117_266, "test": 4952}
CITATION = """@inproceedings{coco,
  title = {Microsoft COCO: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and others},
  booktitle = {European Conference on Computer Vision},
  year = {2014}
}"""

PLACES = ("", "coco/", "coco2017/")
SPLITS = ("train2017", "val2017")


class Annotations(NamedTuple):
    """What counts of a file: names of images and categories by number; image -> (area, category) of its largest."""

    images: Mapping[int, str]
    categories: Mapping[int, str]
    largest: Mapping[int, tuple[float, int]]


def prompt_name(label: str) -> str:
    """The label as it is: "traffic light"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """train2017/, val2017/ and annotations/instances_{train,val}2017.json; None if neither file is there."""
    files = [f"annotations/instances_{split}.json" for split in SPLITS]
    place = next((p for p in PLACES if any((folder / p / file).is_file() for file in files)), None)
    if place is None:
        return None
    fetch = FolderFetch(folder.resolve())
    train, test = (_annotations(fetch, place + file) for file in files)
    numbers = sorted(train.categories)
    if test.categories != train.categories:
        raise SourceError(f"{files[1]}: its categories are not those of {files[0]}; restore the files.")
    order = {number: label for label, number in enumerate(numbers)}
    splits = (_listed(found, order, place + split) for found, split in zip((train, test), SPLITS, strict=True))
    return Listing(tuple(train.categories[number] for number in numbers), *splits)


def _annotations(fetch: FolderFetch, key: str) -> Annotations:
    images: dict[int, str] = {}
    categories: dict[int, str] = {}
    largest: dict[int, tuple[float, int]] = {}
    for kind, item in items_of(fetch.opened(key), key):
        try:
            if kind == "images":
                images[int(item["id"])] = str(item["file_name"])
            elif kind == "categories":
                categories[int(item["id"])] = str(item["name"])
            elif kind == "annotations":
                image, area = int(item["image_id"]), float(item["area"])
                if image not in largest or area > largest[image][0]:
                    largest[image] = area, int(item["category_id"])
        except (KeyError, TypeError, ValueError):
            shown = str(item)[:80]
            raise SourceError(
                f"{key}: got {shown} among {kind}, which lacks what COCO has; restore the file."
            ) from None
    if not (images and categories):
        raise SourceError(f"{key}: got no images or no categories, expected COCO's instances; restore the file.")
    return Annotations(images, categories, largest)


def _listed(found: Annotations, order: Mapping[int, int], place: str) -> tuple[Listed, ...]:
    """The images that have an object, in the order of the file."""
    if unknown := {category for _, category in found.largest.values()} - order.keys():
        raise SourceError(f"{place}: an object is of category {min(unknown)}, which is not listed; restore the file.")
    return tuple(
        Listed(f"{place}/{check_key(name)}", order[found.largest[image][1]])
        for image, name in found.images.items()
        if image in found.largest
    )

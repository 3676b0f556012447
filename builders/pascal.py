"""PASCAL VOC 2012 as DA-Fusion takes it: images with segmentation, each of the class of its largest object.

1,464 training and 1,449 validation images of 20 classes; the largest object is the one with the most pixels in
SegmentationObject, its class what SegmentationClass has at its first pixel.
"""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import check_image
from diffaug_datasets.core.sources import Listed, Listing
from diffaug_datasets.sources.folders import FolderFetch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "pascal"
TITLE = "PASCAL VOC 2012, largest objects"
HOMEPAGE = "https://doi.org/10.1007/s11263-009-0275-4"
LICENCE = "the photographs belong to their owners on Flickr, whose terms apply; research use"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
OFFICIAL = {"classes": 20, "train": 1464, "test": 1449}
CITATION = """@article{pascal_voc,
  title = {The Pascal Visual Object Classes (VOC) Challenge},
  author = {Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  year = {2010}
}"""

PLACES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
TRAIN, TEST = "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"
CLASSES = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorcycle", "person", "potted plant", "sheep", "sofa", "train", "television"),
)
BACKGROUND, BORDER = 0, 255


def prompt_name(label: str) -> str:
    """The label as it is: "potted plant"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """ImageSets/Segmentation/, JPEGImages/, SegmentationClass/ and SegmentationObject/; None if no list is there."""
    place = next((p for p in PLACES if any((folder / p / name).is_file() for name in (TRAIN, TEST))), None)
    if place is None:
        return None
    fetch = FolderFetch(folder.resolve())
    splits = (
        tuple(Listed(f"{place}JPEGImages/{image}.jpg", _largest(fetch, place, image)) for image in names)
        for names in (fetch.text(place + name).split() for name in (TRAIN, TEST))
    )
    return Listing(CLASSES, *splits)


def _largest(fetch: FolderFetch, place: str, image: str) -> int:
    """The class of the object with the most pixels, from 0."""
    import numpy as np

    kinds, objects = (
        _indices(fetch, f"{place}{kind}/{image}.png") for kind in ("SegmentationClass", "SegmentationObject")
    )
    if kinds.shape != objects.shape:
        raise SourceError(
            f"{place}SegmentationClass/{image}.png: got {kinds.shape}, expected {objects.shape} as objects."
        )
    numbers, first, counts = np.unique(objects, return_index=True, return_counts=True)
    counts[np.isin(numbers, (BACKGROUND, BORDER))] = 0
    label = int(kinds.flat[first[counts.argmax()]]) - 1 if counts.any() else -1
    if not 0 <= label < len(CLASSES):
        raise SourceError(
            f"{place}SegmentationObject/{image}.png: no object of a class from 1 to 20; restore the file."
        )
    return label


def _indices(fetch: FolderFetch, key: str) -> "NDArray[np.uint8]":
    """The numbers of a palette image, [h w]."""
    import numpy as np
    from PIL import Image

    data = fetch(key)
    check_image(data, key)
    with Image.open(BytesIO(data)) as image:
        if image.mode not in ("P", "L"):
            raise SourceError(f"{key}: got an image of mode {image.mode}, expected a palette image of object numbers.")
        return np.asarray(image, dtype=np.uint8)

"""Food-101: 101 dishes, 101,000 photographs; the training images are deliberately not cleaned."""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing
from diffaug_datasets.sources.folders import FolderFetch

NAME = "food101"
TITLE = "Food-101"
METACLASS = "food"
HOMEPAGE = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
LICENCE = "the photographs belong to their owners on Foodspotting; research use"
LICENCE_URL = HOMEPAGE
HUB_ID = "ethz/food101"
OFFICIAL = {"classes": 101, "train": 75_750, "test": 25_250}
CITATION = """@inproceedings{food101,
  title = {Food-101: Mining Discriminative Components with Random Forests},
  author = {Bossard, Lukas and Guillaumin, Matthieu and Van Gool, Luc},
  booktitle = {European Conference on Computer Vision},
  year = {2014}
}"""

CLASSES, TRAIN, TEST = "meta/classes.txt", "meta/train.txt", "meta/test.txt"


def prompt_name(label: str) -> str:
    """ "apple_pie" -> "apple pie"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """images/<dish>/ and meta/{classes,train,test}.txt; None if there is no meta/classes.txt."""
    if not (folder / CLASSES).is_file():
        return None
    fetch = FolderFetch(folder.resolve())
    names, train, test = (fetch.text(name).split() for name in (CLASSES, TRAIN, TEST))
    order = {name: label for label, name in enumerate(names)}
    return Listing(tuple(names), *(tuple(_listed(order, entry) for entry in split) for split in (train, test)))


def _listed(order: dict[str, int], entry: str) -> Listed:
    dish = entry.split("/")[0]
    if dish not in order:
        raise SourceError(f"{TRAIN}, {TEST}: got {entry!r}, expected a dish of {CLASSES}.")
    return Listed(f"images/{entry}.jpg", order[dish])

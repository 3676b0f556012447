"""Caltech-101 as DA-Fusion takes it: 102 folders, 9,144 photographs, the clutter of BACKGROUND_Google among them.

There is no official split. Every class is cut in half (`half_split`, seed 0; of an odd count training has the larger
half), in the order of the names in small letters; theirs takes files in the order that the file system gives them.
"""

import re
from pathlib import Path

from diffaug_datasets.core.protocols import half_split
from diffaug_datasets.core.sources import Listed, Listing

NAME = "caltech101"
TITLE = "Caltech-101"
HOMEPAGE = "https://data.caltech.edu/records/mzrjq-6wc02"
LICENCE = "CC BY 4.0 for the collection; the photographs belong to their owners"
LICENCE_ID = "cc-by-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"
OFFICIAL = {"classes": 102, "total": 9144}
CITATION = """@inproceedings{caltech101,
  title = {Learning Generative Visual Models from Few Training Examples},
  author = {Fei-Fei, Li and Fergus, Rob and Perona, Pietro},
  booktitle = {Computer Vision and Pattern Recognition Workshop},
  year = {2004}
}"""

PLACES = ("", "101_ObjectCategories/", "caltech-101/101_ObjectCategories/", "caltech101/101_ObjectCategories/")
IMAGE = re.compile(r"image_\d{4}\.jpg")


def prompt_name(label: str) -> str:
    """ "Faces_easy" -> "faces easy"."""
    return label.replace("_", " ").lower()


def read(folder: Path) -> Listing | None:
    """accordion/image_0001.jpg and so on, in 101_ObjectCategories/ or right in `folder`; None where no such file is."""
    found = ((place, _classes(folder / place)) for place in PLACES if (folder / place).is_dir())
    place, classes = next((pair for pair in found if pair[1]), ("", {}))
    if not classes:
        return None
    names = tuple(sorted(classes, key=str.lower))
    items = (Listed(f"{place}{name}/{image}", i) for i, name in enumerate(names) for image in classes[name])
    return Listing(names, tuple(items))


def regroup(listing: Listing) -> Listing:
    """All images pooled, every class cut in half."""
    return half_split(listing, seed=0, odd="train")


def _classes(place: Path) -> dict[str, list[str]]:
    """Folder -> its images, of the folders that hold images named as Caltech-101 names them."""
    folders = (path for path in place.iterdir() if path.is_dir())
    images = {path.name: sorted(p.name for p in path.iterdir() if IMAGE.fullmatch(p.name)) for path in folders}
    return {name: found for name, found in images.items() if found}

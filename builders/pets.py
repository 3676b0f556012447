"""Oxford-IIIT Pet: 37 breeds of cats and dogs, 7,349 photographs; training is the authors' trainval."""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, pairs
from diffaug_datasets.sources.folders import FolderFetch

NAME = "pets"
TITLE = "Oxford-IIIT Pet"
METACLASS = "animal"
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
LICENCE = "CC BY-SA 4.0; the photographs belong to their owners"
LICENCE_ID = "cc-by-sa-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
HUB_ID = "timm/oxford-iiit-pet"
OFFICIAL = {"classes": 37, "train": 3680, "test": 3669}
CITATION = """@inproceedings{oxford_pets,
  title = {Cats and Dogs},
  author = {Parkhi, Omkar M. and Vedaldi, Andrea and Zisserman, Andrew and Jawahar, C. V.},
  booktitle = {Computer Vision and Pattern Recognition},
  year = {2012}
}"""

TRAIN, TEST = "annotations/trainval.txt", "annotations/test.txt"


def prompt_name(label: str) -> str:
    """ "Egyptian_Mau" -> "egyptian mau"."""
    return label.replace("_", " ").lower()


def read(folder: Path) -> Listing | None:
    """images/ and annotations/{trainval,test}.txt ("Abyssinian_100 1 1 1"); None if neither list is there."""
    if not any((folder / name).is_file() for name in (TRAIN, TEST)):
        return None
    fetch = FolderFetch(folder.resolve())
    train, test = (pairs(fetch.text(name), name) for name in (TRAIN, TEST))
    breeds = {_breed_id(row): image.rsplit("_", 1)[0] for image, row in train}
    order = {breed: label for label, breed in enumerate(sorted(breeds))}
    if unknown := {_breed_id(row) for _, row in test} - breeds.keys():
        raise SourceError(f"{TEST}: breed {min(unknown)} has no training image; restore the lists.")
    splits = (
        tuple(Listed(f"images/{image}.jpg", order[_breed_id(row)]) for image, row in rows) for rows in (train, test)
    )
    return Listing(tuple(breeds[breed] for breed in order), *splits)


def _breed_id(row: str) -> int:
    first = row.split()[0]
    if not first.isdecimal():
        raise SourceError(f"{TRAIN}, {TEST}: got the class id {first!r}, expected a number from 1 to 37.")
    return int(first)

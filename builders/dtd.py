"""Describable Textures: 47 textures, 5,640 photographs, the first of its ten partitions; training is train and val."""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_key
from diffaug_datasets.sources.folders import FolderFetch

NAME = "dtd"
TITLE = "Describable Textures"
METACLASS = "texture"
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
LICENCE = "made available for research purposes; the photographs belong to their owners"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
OFFICIAL = {"classes": 47, "train": 3760, "test": 1880}
CITATION = """@inproceedings{dtd,
  title = {Describing Textures in the Wild},
  author = {Cimpoi, Mircea and Maji, Subhransu and Kokkinos, Iasonas and Mohamed, Sammy and Vedaldi, Andrea},
  booktitle = {Computer Vision and Pattern Recognition},
  year = {2014}
}"""

TRAIN, VAL, TEST = "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"


def prompt_name(label: str) -> str:
    """ "polka-dotted" -> "polka-dotted"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """images/<texture>/ and labels/{train,val,test}1.txt, in `folder` or in dtd/ below it; None if no list is there."""
    place = next((p for p in ("", "dtd/") if any((folder / p / name).is_file() for name in (TRAIN, VAL, TEST))), None)
    if place is None:
        return None
    fetch = FolderFetch(folder.resolve())
    train, val, test = (_entries(fetch.text(place + name), name) for name in (TRAIN, VAL, TEST))
    names = tuple(sorted({entry.split("/")[0] for entry in (*train, *val)}))
    order = {name: label for label, name in enumerate(names)}
    if unknown := {entry.split("/")[0] for entry in test} - order.keys():
        raise SourceError(f"{TEST}: the texture {min(unknown)!r} has no training image; restore the lists.")
    splits = (
        tuple(Listed(f"{place}images/{entry}", order[entry.split("/")[0]]) for entry in part)
        for part in ((*train, *val), test)
    )
    return Listing(names, *splits)


def _entries(text: str, name: str) -> list[str]:
    """Lines such as `banded/banded_0002.jpg`."""
    found = [check_key(line.strip()) for line in text.splitlines() if line.strip()]
    if strange := next((entry for entry in found if entry.count("/") != 1), None):
        raise SourceError(
            f"{name}: got the line {strange!r}, expected a texture and a file, as in banded/banded_0002.jpg."
        )
    return found

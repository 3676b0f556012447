"""FGVC-Aircraft: 100 aircraft variants, 10,000 photographs; training is the authors' trainval."""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, pairs
from diffaug_datasets.sources.folders import FolderFetch

NAME = "aircraft"
TITLE = "FGVC-Aircraft"
METACLASS = "aircraft"
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
LICENCE = "exclusively for non-commercial research"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
HUB_ID = "Donghyun99/FGVC-Aircraft"
HUB_TRAIN = ("train", "val", "validation", "trainval")
HUB_TEST = ("test",)
OFFICIAL = {"classes": 100, "train": 6667, "test": 3333}
CITATION = """@techreport{fgvc_aircraft,
  title = {Fine-Grained Visual Classification of Aircraft},
  author = {Maji, Subhransu and Rahtu, Esa and Kannala, Juho and Blaschko, Matthew and Vedaldi, Andrea},
  number = {arXiv:1306.5151},
  year = {2013}
}"""

PLACES = ("", "data/", "fgvc-aircraft-2013b/data/")
VARIANTS, TRAIN, TEST = "variants.txt", "images_variant_trainval.txt", "images_variant_test.txt"


def prompt_name(label: str) -> str:
    """The variant as it is: "737-200"; the prompt adds the metaclass."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """variants.txt, the two variant lists and images/; None if there is no variants.txt."""
    place = next((place for place in PLACES if (folder / place / VARIANTS).is_file()), None)
    if place is None:
        return None
    fetch = FolderFetch(folder.resolve())
    names = tuple(line.strip() for line in fetch.text(place + VARIANTS).splitlines() if line.strip())
    train, test = (
        tuple(_listed(names, place, *pair) for pair in pairs(fetch.text(place + name), name)) for name in (TRAIN, TEST)
    )
    return Listing(names, train, test)


def _listed(names: tuple[str, ...], place: str, image: str, variant: str) -> Listed:
    if variant not in names:
        raise SourceError(f"image {image}: got the variant {variant!r}, expected one of {VARIANTS}.")
    return Listed(f"{place}images/{image}.jpg", names.index(variant))

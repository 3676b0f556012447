"""Caltech-UCSD Birds-200-2011: 200 bird species, 11,788 photographs; the first benchmark of Diff-Mix and Diff-II.

Prompt phrases are lower case with spaces for underscores ("black footed albatross"); possessives, "whip-poor-will",
"chuck-will's-widow", the two genus names and the misspelt arctic tern are set right in `names/cub.json`.
"""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, pairs
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.real import class_phrases

NAME = "cub"
TITLE = "CUB-200-2011"
METACLASS = "bird"
HOMEPAGE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
LICENCE = "non-commercial research and education; the photographs belong to their owners"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
REDISTRIBUTABLE = False
HUB_ID = "bentrevett/caltech-ucsd-birds-200-2011"
OFFICIAL = {"classes": 200, "train": 5994, "test": 5794}
GROUPS = (20, 5)
CITATION = """@techreport{cub200_2011,
  title = {The Caltech-UCSD Birds-200-2011 Dataset},
  author = {Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and Belongie, Serge},
  institution = {California Institute of Technology},
  number = {CNS-TR-2011-001},
  year = {2011}
}"""

IMAGES, LABELS, SPLIT, CLASSES = "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"


def prompt_name(label: str) -> str:
    """ "001.Black_footed_Albatross" -> "black footed albatross"; other spellings follow the plain rule."""
    return class_phrases("cub").get(label) or label.lstrip("0123456789.").replace("_", " ").lower()


def read(folder: Path) -> Listing | None:
    """The four list files and images/, in `folder` or in CUB_200_2011/ below it; None if no list file is there."""
    place = "CUB_200_2011/" if (folder / "CUB_200_2011").is_dir() else ""
    if not any((folder / place / name).is_file() for name in (IMAGES, LABELS, SPLIT, CLASSES)):
        return None
    fetch = FolderFetch(folder.resolve())
    paths, labels, split, classes = (
        dict(pairs(fetch.text(place + name), name)) for name in (IMAGES, LABELS, SPLIT, CLASSES)
    )
    order = {class_id: label for label, class_id in enumerate(classes)}
    items: dict[str, list[Listed]] = {"1": [], "0": []}
    for image_id, path in paths.items():
        label, side = order.get(labels.get(image_id, "")), items.get(split.get(image_id, ""))
        if label is None or side is None:
            raise SourceError(f"{IMAGES}: image {image_id} has no class or split in {LABELS}, {CLASSES}, {SPLIT}.")
        side.append(Listed(f"{place}images/{path}", label))
    return Listing(tuple(classes.values()), tuple(items["1"]), tuple(items["0"]))

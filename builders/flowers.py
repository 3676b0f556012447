"""Oxford Flowers-102: 102 species, 8,189 photographs, split as Diff-Mix's code splits them.

All images are pooled and every class is cut in half (`half_split`, seed 0), not the official 1020/1020/6149. The halves
equal that code's where names sort as the original file names do.
"""

from diffaug_datasets.core.protocols import half_split
from diffaug_datasets.core.sources import Listing
from diffaug_datasets.sources.real import class_phrases

NAME = "flowers"
TITLE = "Oxford Flowers-102"
METACLASS = "flower"
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
HUB_ID = "dpdl-benchmark/oxford_flowers102"
HUB_TRAIN = ("train", "validation")
HUB_TEST = ("test",)
OFFICIAL = {"classes": 102, "total": 8189}
GROUPS = (30, 10)
CITATION = """@inproceedings{flowers102,
  title = {Automated Flower Classification over a Large Number of Classes},
  author = {Nilsback, Maria-Elena and Zisserman, Andrew},
  booktitle = {Indian Conference on Computer Vision, Graphics and Image Processing},
  year = {2008}
}"""


def prompt_name(label: str) -> str:
    """ "1" -> "pink primrose", as folders are often numbered; a name stays a name."""
    return class_phrases("flowers").get(label) or label.replace("_", " ")


def regroup(listing: Listing) -> Listing:
    """All images pooled, every class cut in half."""
    return half_split(listing, seed=0)

"""DermaMNIST: seven kinds of pigmented skin lesions under the dermatoscope, 28 x 28 (or more); from MedMNIST v2."""

from pathlib import Path

from diffaug_datasets.core.sources import Listing

from ._medmnist import saved_listing

NAME = "dermamnist"
TITLE = "DermaMNIST"
METACLASS = "skin lesion"
HOMEPAGE = "https://medmnist.com"
LICENCE = "CC BY-NC 4.0"
LICENCE_ID = "cc-by-nc-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-nc/4.0/"
REDISTRIBUTABLE = True
OFFICIAL = {"classes": 7, "train": 7007, "test": 2005}
CITATION = """@article{ham10000,
  title = {The HAM10000 dataset, a large collection of multi-source dermatoscopic images of common pigmented lesions},
  author = {Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  journal = {Scientific Data},
  year = {2018}
}"""

CLASSES = (
    "actinic keratoses and intraepithelial carcinoma",
    "basal cell carcinoma",
    "benign keratosis-like lesions",
    "dermatofibroma",
    "melanoma",
    "melanocytic nevi",
    "vascular lesions",
)


def prompt_name(label: str) -> str:
    """The label as it is: "basal cell carcinoma"."""
    return label


def read(folder: Path) -> Listing | None:
    """The images that the `medmnist` package saves."""
    return saved_listing(folder, NAME, CLASSES)

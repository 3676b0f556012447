"""PathMNIST: nine tissues in patches of colorectal cancer slides, 28 x 28 (or 64, 128, 224); from MedMNIST v2.

The test images are from another clinical centre than the training images.
"""

from pathlib import Path

from diffaug_datasets.core.sources import Listing

from ._medmnist import saved_listing

NAME = "pathmnist"
TITLE = "PathMNIST"
METACLASS = "tissue"
HOMEPAGE = "https://medmnist.com"
LICENCE = "CC BY 4.0"
LICENCE_ID = "cc-by-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"
REDISTRIBUTABLE = True
OFFICIAL = {"classes": 9, "train": 89_996, "test": 7180}
CITATION = """@article{medmnist_v2,
  title = {MedMNIST v2 - A Large-Scale Lightweight Benchmark for 2D and 3D Biomedical Image Classification},
  author = {Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and others},
  journal = {Scientific Data},
  year = {2023}
}"""

CLASSES = (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)


def prompt_name(label: str) -> str:
    """The label as it is: "smooth muscle"."""
    return label


def read(folder: Path) -> Listing | None:
    """The images that the `medmnist` package saves."""
    return saved_listing(folder, NAME, CLASSES)

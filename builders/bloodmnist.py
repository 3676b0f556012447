"""BloodMNIST: eight kinds of blood cells under the microscope, 28 x 28 (or 64, 128, 224); from MedMNIST v2."""

from pathlib import Path

from diffaug_datasets.core.sources import Listing

from ._medmnist import saved_listing

NAME = "bloodmnist"
TITLE = "BloodMNIST"
METACLASS = "blood cell"
HOMEPAGE = "https://medmnist.com"
LICENCE = "CC BY 4.0"
LICENCE_ID = "cc-by-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"
REDISTRIBUTABLE = True
OFFICIAL = {"classes": 8, "train": 11_959, "test": 3421}
CITATION = """@article{bloodmnist,
  title = {A dataset of microscopic peripheral blood cell images for development of automatic recognition systems},
  author = {Acevedo, Andrea and Merino, Anna and Alferez, Santiago and Molina, Angel and Boldu, Laura and others},
  journal = {Data in Brief},
  year = {2020}
}"""

CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)


def prompt_name(label: str) -> str:
    """What stands before a parenthesis: "immature granulocytes"."""
    return label.partition("(")[0]


def read(folder: Path) -> Listing | None:
    """The images that the `medmnist` package saves."""
    return saved_listing(folder, NAME, CLASSES)

"""EuroSAT (RGB): ten kinds of land use in 27,000 Sentinel-2 patches of 64 x 64, with the split of the Hub copy."""

import re

NAME = "eurosat"
TITLE = "EuroSAT"
METACLASS = "satellite image"
HOMEPAGE = "https://github.com/phelber/EuroSAT"
LICENCE = "MIT; Copernicus Sentinel data"
LICENCE_ID = "mit"
LICENCE_URL = "https://github.com/phelber/EuroSAT"
REDISTRIBUTABLE = True
HUB_ID = "timm/eurosat-rgb"
OFFICIAL = {"classes": 10, "train": 16_200, "test": 5400}
CITATION = """@article{eurosat,
  title = {EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover Classification},
  author = {Helber, Patrick and Bischke, Benjamin and Dengel, Andreas and Borth, Damian},
  journal = {IEEE Journal of Selected Topics in Applied Earth Observations and Remote Sensing},
  year = {2019}
}"""


def prompt_name(label: str) -> str:
    """ "AnnualCrop" -> "annual crop"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).replace("_", " ").lower()

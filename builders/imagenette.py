"""Imagenette (version 2): ten easy ImageNet classes, in folders named by WordNet id. Derived from ImageNet, so its
terms apply to the images whatever the repository's licence says."""

from diffaug_datasets.sources.real import class_phrases

NAME = "imagenette"
TITLE = "Imagenette"
HOMEPAGE = "https://github.com/fastai/imagenette"
LICENCE = "Apache-2.0 for the selection; ImageNet terms (non-commercial research) for the images"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
OFFICIAL = {"classes": 10, "train": 9469, "test": 3925}
CITATION = """@misc{imagenette,
  title = {Imagenette},
  author = {Howard, Jeremy},
  year = {2019},
  url = {https://github.com/fastai/imagenette}
}"""


def prompt_name(label: str) -> str:
    """ "n01440764" -> "tench"."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")

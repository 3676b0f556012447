"""CIFAR-100: a hundred classes, 60,000 images of 32 x 32, fine labels. Read from the Hub or from class folders."""

NAME = "cifar100"
TITLE = "CIFAR-100"
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCE_URL = HOMEPAGE
HUB_ID = "uoft-cs/cifar100"
HUB_LABEL = "fine_label"
OFFICIAL = {"classes": 100, "train": 50_000, "test": 10_000}
CITATION = """@techreport{cifar100,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}"""


def prompt_name(label: str) -> str:
    """ "lawn_mower" -> "lawn mower"; the Hub copy's "cra" is the crab."""
    return {"cra": "crab"}.get(label, label.replace("_", " "))

"""CIFAR-10: ten classes, 60,000 images of 32 x 32. Read from the Hub or from class folders (never from pickles)."""

NAME = "cifar10"
TITLE = "CIFAR-10"
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCE_URL = HOMEPAGE
HUB_ID = "uoft-cs/cifar10"
OFFICIAL = {"classes": 10, "train": 50_000, "test": 10_000}
CITATION = """@techreport{cifar10,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}"""


def prompt_name(label: str) -> str:
    """The label as it is: "airplane"."""
    return label.replace("_", " ")

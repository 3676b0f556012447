"""STL-10: ten classes, 13,000 labelled images of 96 x 96 from ImageNet; the unlabelled ones are not read."""

NAME = "stl10"
TITLE = "STL-10"
HOMEPAGE = "https://cs.stanford.edu/~acoates/stl10/"
LICENCE = "images taken from ImageNet: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
HUB_ID = "tanganke/stl10"
OFFICIAL = {"classes": 10, "train": 5000, "test": 8000}
CITATION = """@inproceedings{stl10,
  title = {An Analysis of Single-Layer Networks in Unsupervised Feature Learning},
  author = {Coates, Adam and Lee, Honglak and Ng, Andrew Y.},
  booktitle = {Artificial Intelligence and Statistics},
  year = {2011}
}"""


def prompt_name(label: str) -> str:
    """The label as it is: "airplane"."""
    return label.replace("_", " ")

"""Stanford Cars: 196 makes, models and years, 16,185 photographs. Read from the Hub or from class folders."""

NAME = "cars"
TITLE = "Stanford Cars"
METACLASS = "car"
HOMEPAGE = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
LICENCE = "ImageNet terms: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
HUB_ID = "tanganke/stanford_cars"
OFFICIAL = {"classes": 196, "train": 8144, "test": 8041}
CITATION = """@inproceedings{stanford_cars,
  title = {3D Object Representations for Fine-Grained Categorization},
  author = {Krause, Jonathan and Stark, Michael and Deng, Jia and Fei-Fei, Li},
  booktitle = {IEEE Workshop on 3D Representation and Recognition},
  year = {2013}
}"""


def prompt_name(label: str) -> str:
    """ "AM_General_Hummer_SUV_2000" -> "AM General Hummer SUV 2000"."""
    return label.replace("_", " ")

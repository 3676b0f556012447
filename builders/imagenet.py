"""ImageNet (ILSVRC2012): 1000 classes; tested on the validation images. Folders train/<wnid>/ and val/<wnid>/.

Labels are WordNet ids in sorted order; prompts use `names/imagenet.json`: the first synonym, made plain and unique
(*crane* the bird and the machine, two *maillot*, *cardigan* the dog and the garment, *missile* and *projectile*).
"""

from diffaug_datasets.sources.real import class_phrases

NAME = "imagenet"
TITLE = "ImageNet"
HOMEPAGE = "https://image-net.org/challenges/LSVRC/2012/"
LICENCE = "ImageNet terms of access: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
HUB_ID = "ILSVRC/imagenet-1k"
HUB_TEST = ("validation", "val")
OFFICIAL = {"classes": 1000, "train": 1_281_167, "test": 50_000}
CITATION = """@article{ilsvrc,
  title = {ImageNet Large Scale Visual Recognition Challenge},
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and others},
  journal = {International Journal of Computer Vision},
  year = {2015}
}"""


def prompt_name(label: str) -> str:
    """ "n02012849" -> "crane bird"; a list of synonyms, as on the Hub, gives its first."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")

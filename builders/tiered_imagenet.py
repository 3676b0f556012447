"""tiered-ImageNet: its 160 test classes, 206,209 ImageNet images in folders named by WordNet id; no test split.

Its other 448 classes train feature extractors and take no part. An episode draws classes and queries from these 160
(`tiered_imagenet_5way1shot_genie`). GeNIe takes the images at full resolution, not those of 84 x 84.
"""

import re
from pathlib import Path

from diffaug_datasets.core.sources import Listed, Listing
from diffaug_datasets.sources.real import class_phrases

NAME = "tiered_imagenet"
TITLE = "tiered-ImageNet"
HOMEPAGE = "https://github.com/renmengye/few-shot-ssl-public"
LICENCE = "ImageNet terms of access: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
OFFICIAL = {"classes": 160, "train": 206_209}
CITATION = """@inproceedings{tiered_imagenet,
  title = {Meta-Learning for Semi-Supervised Few-Shot Classification},
  author = {Ren, Mengye and Triantafillou, Eleni and Ravi, Sachin and Snell, Jake and Swersky, Kevin and others},
  booktitle = {International Conference on Learning Representations},
  year = {2018}
}"""

IMAGES = (".jpg", ".jpeg", ".png")


def prompt_name(label: str) -> str:
    """ "n02110341" -> "dalmatian dog"."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")


def read(folder: Path) -> Listing | None:
    """`test/<wnid>/`; None where no such folder is."""
    place = folder / "test"
    names = tuple(sorted(p.name for p in place.iterdir() if _is_class(p.name))) if place.is_dir() else ()
    if not names:
        return None
    images = [sorted(p.name for p in (place / name).iterdir() if p.suffix.lower() in IMAGES) for name in names]
    return Listing(
        names, tuple(Listed(f"test/{names[i]}/{file}", i) for i, group in enumerate(images) for file in group)
    )


def _is_class(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None

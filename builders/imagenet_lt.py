"""ImageNet-LT: 115,846 ImageNet images of 1000 classes, 1280 to 5 a class; tested on the ILSVRC validation images.

A protocol itself: its configurations have no protocol part (`imagenet_lt_genie`). Labels are WordNet ids in sorted
order; prompts use the phrases of `names/imagenet.json`. Needs ILSVRC2012 and the lists of the OLTR authors.
"""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_key, pairs
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.real import class_phrases

NAME = "imagenet_lt"
TITLE = "ImageNet-LT"
HOMEPAGE = "https://liuziwei7.github.io/projects/LongTail.html"
LICENCE = "ImageNet terms of access: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
REDISTRIBUTABLE = False
OFFICIAL = {"classes": 1000, "train": 115_846, "test": 50_000}
GROUP_COUNTS = ((385, 88_693), (479, 25_510), (136, 1643))  # arXiv 2008.07073, statistics of long-tailed datasets
PROTOCOL = "full"
GROUPS = (100, 20)
CITATION = """@inproceedings{imagenet_lt,
  title = {Large-Scale Long-Tailed Recognition in an Open World},
  author = {Liu, Ziwei and Miao, Zhongqi and Zhan, Xiaohang and Wang, Jiayun and Gong, Boqing and Yu, Stella X.},
  booktitle = {Computer Vision and Pattern Recognition},
  year = {2019}
}"""

TRAIN, TEST = "ImageNet_LT_train.txt", "ImageNet_LT_test.txt"


def prompt_name(label: str) -> str:
    """ "n02012849" -> "crane bird"; a list of synonyms gives its first."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")


def read(folder: Path) -> Listing | None:
    """`train/<wnid>/`, `val/` and the lists, beside them or in ImageNet_LT/; None if neither list is there."""
    place = "ImageNet_LT/" if (folder / "ImageNet_LT").is_dir() else ""
    if not any((folder / place / name).is_file() for name in (TRAIN, TEST)):
        return None
    names, fetch = tuple(class_phrases("imagenet")), FolderFetch(folder.resolve())
    train, test = (
        tuple(_listed(folder, names, name, *pair) for pair in pairs(fetch.text(place + name), name, last=True))
        for name in (TRAIN, TEST)
    )
    return Listing(names, train, test)


def _listed(folder: Path, names: tuple[str, ...], name: str, path: str, label: str) -> Listed:
    if not label.isdecimal() or int(label) >= len(names):
        raise SourceError(f"{name}: {path} has the label {label!r}, expected 0 to {len(names) - 1}.")
    wnid, parts = names[int(label)], check_key(path).split("/")
    if len(parts) == 3 and parts[1] != wnid:
        raise SourceError(f"{name}: {path} has the label {label}, which is {wnid} when WordNet ids are sorted.")
    return Listed(_sorted_place(folder, path, wnid), int(label))


def _sorted_place(folder: Path, path: str, wnid: str) -> str:
    """Validation images lie in one folder or, as most copies have them, in one folder per class."""
    flat = f"{path.split('/')[0]}/{path.rsplit('/', 1)[-1]}"
    deep = f"{path.split('/')[0]}/{wnid}/{path.rsplit('/', 1)[-1]}"
    return next((place for place in (path, deep, flat) if (folder / place).is_file()), path)

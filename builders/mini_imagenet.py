"""mini-ImageNet: the 20 test classes of Ravi and Larochelle's split, 600 ImageNet images each; no test split.

Its other 80 classes train feature extractors and take no part. An episode draws classes and queries from these 20
(`mini_imagenet_5way1shot_genie`). GeNIe takes the images at full resolution, not those of 84 x 84.
"""

import csv
from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_key
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.real import class_phrases

NAME = "mini_imagenet"
TITLE = "mini-ImageNet"
HOMEPAGE = "https://arxiv.org/abs/1606.04080"
LICENCE = "ImageNet terms of access: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = "https://image-net.org/download"
OFFICIAL = {"classes": 20, "train": 12_000}
CITATION = """@inproceedings{mini_imagenet,
  title = {Matching Networks for One Shot Learning},
  author = {Vinyals, Oriol and Blundell, Charles and Lillicrap, Timothy and Kavukcuoglu, Koray and Wierstra, Daan},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2016}
}"""

LIST = "test.csv"


def prompt_name(label: str) -> str:
    """ "n02110341" -> "dalmatian dog"."""
    return class_phrases("imagenet").get(label) or label.split(",")[0].replace("_", " ")


def read(folder: Path) -> Listing | None:
    """`test.csv` (columns filename and label) beside `images/`; None if the list is not there."""
    if not (folder / LIST).is_file():
        return None
    rows = list(csv.reader(FolderFetch(folder.resolve()).text(LIST).splitlines()))
    if not rows or [cell.strip() for cell in rows[0]] != ["filename", "label"]:
        raise SourceError(f"{LIST}: got the columns {rows[:1]}, expected filename and label; restore the file.")
    items = [_pair(number, row) for number, row in enumerate(rows[1:], 2) if row]
    names = tuple(sorted({label for _, label in items}))
    return Listing(names, tuple(Listed(f"images/{check_key(name)}", names.index(label)) for name, label in items))


def _pair(number: int, row: list[str]) -> tuple[str, str]:
    if len(row) != 2 or not all(cell.strip() for cell in row):
        raise SourceError(f"{LIST}, line {number}: got {row!r}, expected a file name and a label; restore the file.")
    return row[0].strip(), row[1].strip()

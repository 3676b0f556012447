"""Waterbirds: CUB birds on land or water backgrounds, to test how far a classifier leans on the background.

The classes are CUB's 200 species, so that a classifier trained on CUB is tested here; split 0 trains, split 2 tests.
Every row keeps the kind of its bird and the place behind it, whose four pairs are the groups of the dataset.
"""

import csv
from io import StringIO
from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.real import class_phrases

NAME = "waterbirds"
TITLE = "Waterbirds"
METACLASS = "bird"
HOMEPAGE = "https://github.com/kohpangwei/group_DRO"
LICENCE = "made from CUB-200-2011 and Places: non-commercial research and education"
LICENCE_ID = "other"
LICENCE_URL = HOMEPAGE
OFFICIAL = {"classes": 200, "train": 4795, "test": 5794}
GROUPS = (20, 5)
CITATION = """@inproceedings{waterbirds,
  title = {Distributionally Robust Neural Networks for Group Shifts},
  author = {Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy},
  booktitle = {International Conference on Learning Representations},
  year = {2020}
}"""

COLUMNS = {
    "kind": "land bird or water bird, by the species",
    "place": "the background: land or water",
}

TABLE = "metadata.csv"
VALUES = {"kind": {"0": "land bird", "1": "water bird"}, "place": {"0": "land", "1": "water"}}
HEADINGS = {"kind": "y", "place": "place"}  # in the table


def prompt_name(label: str) -> str:
    """As CUB: "001.Black_footed_Albatross" -> "black footed albatross"."""
    return class_phrases("cub").get(label) or label.lstrip("0123456789.").replace("_", " ").lower()


def read(folder: Path) -> Listing | None:
    """metadata.csv with the columns img_filename, y, split and place, beside the species folders; None without it."""
    if not (folder / TABLE).is_file():
        return None
    rows = list(csv.DictReader(StringIO(FolderFetch(folder.resolve()).text(TABLE))))
    names = tuple(class_phrases("cub"))
    train, test = (tuple(_listed(names, row) for row in rows if row.get("split") == side) for side in ("0", "2"))
    return Listing(names, train, test)


def _listed(names: tuple[str, ...], row: dict[str, str]) -> Listed:
    path = row.get("img_filename") or ""
    if path.split("/")[0] not in names:
        raise SourceError(f"{TABLE}: got the file {path!r}, expected one in a CUB species folder.")
    columns = []
    for name, heading in HEADINGS.items():
        if (value := VALUES[name].get(row.get(heading) or "")) is None:
            raise SourceError(
                f"{TABLE}: {path}: got {row.get(heading)!r} as {heading}, expected 0 or 1; restore the file."
            )
        columns.append((name, value))
    return Listed(path, names.index(path.split("/")[0]), tuple(columns))

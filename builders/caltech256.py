"""Caltech-256: 256 object categories, 29,780 photographs; the 257th, clutter, is left out. No official test split."""

import re
from pathlib import Path

from diffaug_datasets.core.sources import Listed, Listing

NAME = "caltech256"
TITLE = "Caltech-256"
HOMEPAGE = "https://data.caltech.edu/records/nyy15-4j048"
LICENCE = "CC BY 4.0 for the collection; the photographs belong to their owners"
LICENCE_ID = "cc-by-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"
OFFICIAL = {"classes": 256, "train": 29_780}
CITATION = """@techreport{caltech256,
  title = {Caltech-256 Object Category Dataset},
  author = {Griffin, Gregory and Holub, Alex and Perona, Pietro},
  institution = {California Institute of Technology},
  number = {CNS-TR-2007-001},
  year = {2007}
}"""

CLUTTER = "257.clutter"


def prompt_name(label: str) -> str:
    """ "145.motorbikes-101" -> "motorbikes", "101.head-phones" -> "head phones"."""
    return re.sub(r"^\d+\.|-101$", "", label).replace("-", " ").replace("_", " ")


def read(folder: Path) -> Listing | None:
    """001.ak47/ and so on, in `folder` or in 256_ObjectCategories/ below it; only the .jpg files right inside count."""
    place = "256_ObjectCategories/" if (folder / "256_ObjectCategories").is_dir() else ""
    folders = sorted(path.name for path in (folder / place).iterdir() if re.fullmatch(r"\d{3}\..+", path.name))
    names = tuple(name for name in folders if name != CLUTTER)
    if not names:
        return None
    images = [sorted(path.name for path in (folder / place / name).glob("*.jpg")) for name in names]
    items = (Listed(f"{place}{names[i]}/{image}", i) for i, group in enumerate(images) for image in group)
    return Listing(names, tuple(items))

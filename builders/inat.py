"""Semi-Aves of iNaturalist, as UniDiffDA reads it: 200 species of birds; training is the labelled images and val.

Of the challenge's lists the unlabelled ones are not read.
"""

from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_key
from diffaug_datasets.sources.folders import FolderFetch

NAME = "inat"
TITLE = "iNaturalist, Semi-Aves"
METACLASS = "bird"
HOMEPAGE = "https://github.com/cvl-umass/semi-inat-2020"
LICENCE = "each photograph has its own licence on iNaturalist, many non-commercial; research use"
LICENCE_ID = "other"
LICENCE_URL = "https://www.inaturalist.org/pages/terms"
OFFICIAL = {"classes": 200, "train": 5959, "test": 8000}
CITATION = """@article{semi_aves,
  title = {The Semi-Supervised iNaturalist-Aves Challenge at FGVC7 Workshop},
  author = {Su, Jong-Chyi and Maji, Subhransu},
  journal = {arXiv:2103.06937},
  year = {2021}
}"""

PLACES = ("", "semi_aves/", "semi_fgvc/semi_aves/")
TRAIN, TEST, CLASSES = "splits/l_train_val.txt", "splits/test.txt", "splits/semi_aves_class_names.txt"


def prompt_name(label: str) -> str:
    """ "Cardinalis_cardinalis" -> "Cardinalis cardinalis"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing | None:
    """splits/ with l_train_val.txt, test.txt ("path label") and the names of classes; None if there are no names."""
    place = next((place for place in PLACES if (folder / place / CLASSES).is_file()), None)
    if place is None:
        return None
    fetch = FolderFetch(folder.resolve())
    names = _names(fetch.text(place + CLASSES))
    splits = (
        tuple(_listed(place, line, name, len(names)) for line in _lines(fetch, place, name)) for name in (TRAIN, TEST)
    )
    return Listing(names, *splits)


def _lines(fetch: FolderFetch, place: str, name: str) -> list[str]:
    return [line.strip() for line in fetch.text(place + name).splitlines() if line.strip()]


def _names(text: str) -> tuple[str, ...]:
    """Lines such as `0 Cardinalis_cardinalis`; -1 stands for what is not labelled."""
    found: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        label, _, name = line.strip().partition(" ")
        if line.strip() and (not label.removeprefix("-").isdecimal() or not name.strip()):
            raise SourceError(
                f"{CLASSES}, line {number}: got {line!r}, expected a number and a name; restore the file."
            )
        if label.isdecimal():
            found[int(label)] = name.strip()
    if sorted(found) != list(range(len(found))) or not found:
        raise SourceError(f"{CLASSES}: got {len(found)} classes whose numbers do not run from 0; restore the file.")
    return tuple(found[label] for label in sorted(found))


def _listed(place: str, line: str, name: str, classes: int) -> Listed:
    path, _, label = line.rpartition(" ")
    if not path or not label.isdecimal() or int(label) >= classes:
        raise SourceError(f"{name}: got the line {line!r}, expected a path and a class from 0 to {classes - 1}.")
    return Listed(f"{place}{check_key(path)}", int(label))

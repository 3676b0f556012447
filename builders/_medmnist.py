"""The folders that the `medmnist` package saves: one file per image, with its split and class in the file's name."""

import re
from collections.abc import Sequence
from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing

FILE = re.compile(r"(?P<split>train|val|test)(?P<number>\d{1,9})_(?P<label>\d{1,3})\.(?:png|bmp)", re.ASCII)


def saved_listing(folder: Path, name: str, class_names: Sequence[str]) -> Listing | None:
    """The images of `python -m medmnist save --flag=NAME --folder=FOLDER`, in the order of their numbers.

    They lie in `folder`, or in `<name>/` or `<name>_<size>/` below it; the validation split is left out. None where
    neither they nor a `<name>*.npz` are.

    Raises:
        SourceError: several such folders, arrays alone, or an image of a class that the dataset does not have.
    """
    places = [path for path in (folder, *sorted(folder.glob(f"{name}*"))) if path.is_dir() and _images(path)]
    if len(places) > 1:
        folders = " and ".join(path.name for path in places)
        raise SourceError(
            f"{name}: found images in {folders}, expected them in one of these; name that one as the source."
        )
    if not places:
        if arrays := sorted(path.name for path in folder.glob(f"{name}*.npz")):
            size = arrays[0].removeprefix(name).removesuffix(".npz").lstrip("_") or "28"
            raise SourceError(
                f"{name}: found {arrays[0]}, expected image files; save them with "
                f"`python -m medmnist save --flag={name} --size={size} --folder=FOLDER --root={folder}`, name FOLDER."
            )
        return None
    [place] = places
    prefix = "" if place == folder else f"{place.name}/"
    splits: dict[str, list[Listed]] = {"train": [], "val": [], "test": []}
    for match in sorted(_images(place), key=lambda match: (int(match["number"]), match[0])):
        label = int(match["label"])
        if label >= len(class_names):
            raise SourceError(f"{name}: got class {label} for {match[0]}, expected 0 to {len(class_names) - 1}.")
        splits[match["split"]].append(Listed(prefix + match[0], label))
    return Listing(tuple(class_names), tuple(splits["train"]), tuple(splits["test"]) or None)


def _images(place: Path) -> list[re.Match[str]]:
    return [match for path in place.iterdir() if (match := FILE.fullmatch(path.name))]

"""Any folder of images: one folder a class, with train/ and test/ (or val/) above them where there is a split.

Labels are the folder names (Unicode NFC) in sorted order; prompts read them with spaces for underscores. Hidden files,
Thumbs.db and files that are no images are passed over.
"""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.sources import Listed, Listing, check_folder_names

NAME = "imagefolder"
TITLE = "images"

TEST_FOLDERS = ("test", "val", "validation", "valid")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef", ".exr")


def prompt_name(label: str) -> str:
    """ "golden_retriever" -> "golden retriever"."""
    return label.replace("_", " ")


def read(folder: Path) -> Listing:
    """Classes and images of a folder, in an order that does not depend on the machine.

    Raises:
        SourceError: no class folder, one without images, names that other machines would merge, linked folders, or a
            test class that has no training folder.
    """
    if not _class_folders(folder / "train"):
        names, items = _split(folder, "", None)
        return Listing(names, items)
    names, train = _split(folder, "train", None)
    test = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    return Listing(names, train, None if test is None else _split(folder, test, names)[1])


def _split(root: Path, split: str, known: tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[Listed, ...]]:
    folders = _class_folders(root / split)
    if not folders:
        raise SourceError(f"{str(root / split)!r}: found no class folder; expected one folder of images a class.")
    check_folder_names(path.name for path in folders)
    names = known or tuple(_nfc(path.name) for path in folders)
    items: list[Listed] = []
    for path in folders:
        if _nfc(path.name) not in names:
            raise SourceError(f"{split}/{path.name}: no such class in train/; add it there or remove it here.")
        keys = sorted(_image_keys(root, path), key=lambda key: (_nfc(key), key))
        if not keys and known is None:
            kinds = ", ".join(SUFFIXES[:5])
            raise SourceError(f"{str(path)!r}: the class has no image; add one ({kinds}, ...) or remove the folder.")
        items += [Listed(key, names.index(_nfc(path.name))) for key in keys]
    return names, tuple(items)


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))
    return sorted(found, key=lambda path: (_nfc(path.name), path.name))


def _image_keys(root: Path, folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        for linked in (Path(place, name) for name in ("", *folders)):
            if linked.is_symlink():
                raise SourceError(f"{str(linked)!r}: got a linked folder, expected a real one; copy its images here.")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and _is_image(Path(place, name)):
                yield Path(place, name).relative_to(root).as_posix()


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in UNREAD:
        raise SourceError(f"{str(path)!r}: {path.suffix} is not read; convert it to .png or .jpg, or remove it.")
    return path.suffix.lower() in SUFFIXES


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)

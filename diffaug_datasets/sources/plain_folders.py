"""A plain folder of images as `datasets` reads it with `imagefolder`: the same images in the same order, in one look.

`datasets` looks through a folder some forty times for names that mean a split, which takes half a minute of a hundred
thousand files. What such a name might be in, or what is more than images, is left to it.
"""

import os
from pathlib import Path, PurePath

WHOLE = "train"  # of a folder that has one split, it may be called so
SPLIT_WORDS = ("train", "valid", "dev", "val", "test", "eval")  # any that `datasets` knows begins or is one of these
SPECIAL = (".", "__")


def plain_images(folder: Path, extensions: frozenset[str]) -> list[str] | None:
    """The images below a folder, as sorted paths relative to it, with slashes; None where it holds anything else.

    Anything else: links, hidden names, names that may mean a split, files without one of the `extensions` (such as
    `.png`). A folder `train` that holds all of them is none.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            entries = list(os.scandir(folder / below))
        except OSError:
            return None
        for entry in entries:
            name = f"{below}{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.is_symlink() or entry.name.startswith(SPECIAL) or _is_split(name):
                return None
            if not is_folder and PurePath(entry.name).suffix.lower() not in extensions:
                return None
            waiting += [f"{name}/"] * is_folder
            found += [name] * (not is_folder)
    beside = [name for name in found if not name.startswith(f"{WHOLE}/")]
    return sorted(found) if found and len(beside) in (0, len(found)) else None


def _is_split(name: str) -> bool:
    """Whether a path may mean a split, but for the folder of all."""
    rest = name.removeprefix(f"{WHOLE}/").lower() if name.startswith(f"{WHOLE}/") else name.lower()
    return rest != WHOLE and any(word in rest for word in SPLIT_WORDS)

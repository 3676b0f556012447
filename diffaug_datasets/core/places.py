"""Which fields of a recipe may name a file or folder, and which folder a relative one starts from.

A field says so by its type, `Annotated[str, Place()]`: in the recipe, in what lies inside it, in a method's `Config`.
When a recipe is read, each place that is there becomes absolute: those of a file from the file's folder on, those of
the command line and of Python from the current one. After that a relative text is a name (on the Hub, in the
package), whatever the current folder of the process that works with it holds.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationInfo

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:@[\w./-]+)?", re.ASCII)
PATHS = ("/", "~/", "./", "../", ".\\", "..\\")


@dataclass(frozen=True)
class Place:
    """Marks a field whose text may be a path.

    `counts`: name and digest of what lies there count for the plan id; False where the plan has a digest of its own.
    `packaged`: texts that are never a path. `bare`: a text without a slash is one even where nothing lies; else it is a
    name then. `files`: what ends so is a path for sure. `only_files`: everything else is a name for sure.
    """

    counts: bool = True
    packaged: tuple[str, ...] = ()
    bare: bool = False
    files: tuple[str, ...] = ()
    only_files: bool = False

    def absolute(self, text: str, folder: Path) -> str:
        """The absolute path that a text means from a folder; a name as it is."""
        is_file = text.casefold().endswith(self.files) if self.files else False
        if not text or text in self.packaged or "://" in text or (self.only_files and not is_file):
            return text
        bare = not ("/" in text or "\\" in text or text.startswith("~"))
        could_be_name = not is_file and (HUB_NAME.fullmatch(text) or (bare and not self.bare))
        try:
            path = folder / Path(text).expanduser()
            return text if could_be_name and not path.exists() else str(path.resolve())
        except (OSError, ValueError, RuntimeError):  # no text that a path can be, or nobody's home: its reader says so
            return text


def absolute_places(model: type[BaseModel], content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a model's fields with every place in it absolute."""
    made = dict(content)
    for name, field in model.model_fields.items():
        key = field.alias or name
        value, place = made.get(key), place_of(model, name)
        inner = field.annotation
        if place and isinstance(value, os.PathLike):
            made[key] = str((folder / os.fspath(value)).resolve())
        elif place and isinstance(value, str):
            made[key] = place.absolute(value, folder)
        elif isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            made[key] = absolute_places(inner, value, folder)
    return made


def place_of(model: type[BaseModel], name: str) -> Place | None:
    """The mark of a field; None where it names no place."""
    return next((mark for mark in model.model_fields[name].metadata if isinstance(mark, Place)), None)


def starting_folder(info: ValidationInfo) -> Path | None:
    """The folder that a validation takes relative places from; None where they are absolute or names already."""
    context: Mapping[str, Path | None] = info.context or {}
    return context.get("folder", Path())


def local_path(text: str) -> Path | None:
    """The path that a place of a recipe is; None for a name."""
    path = Path(text)
    return path if path.is_absolute() else None


def on_the_hub(name: str) -> str:
    """How `datasets` is told a Hub id, also where the current folder holds a folder so called, which it would take."""
    return f"hf://datasets/{name}" if Path(name).exists() else name

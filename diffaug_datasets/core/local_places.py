"""Folders of this machine in a recipe, under names that mean the same anywhere: what plans and releases say of them."""

from pathlib import Path, PurePath
from typing import Any

from diffaug_datasets.core.backbone_spec import folder_digest
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.places import PATHS, local_path

PACKAGED = ("tiny", "shots")
MODELS = ("encoder", "judge")


def is_local(text: str) -> bool:
    """Whether a string of a recipe is a place of this machine; a prompt, which fills names in, is none."""
    return (text.startswith(PATHS) or local_path(text) is not None) and "{" not in text


def is_local_model(model: str) -> bool:
    """The same of what names a model."""
    return model not in PACKAGED and is_local(model)


def model_name(model: str) -> str:
    """A model's folder as `name@digest`, as rows record models; a Hub id and a packaged model stay what they are.

    Where no model lies there, the name alone.
    """
    if not is_local_model(model):
        return model
    folder = Path(model).expanduser()
    try:
        return f"{folder.resolve().name}@{folder_digest(folder)[:12]}"
    except (BackboneError, OSError):
        return PurePath(model).name


def placeless(value: Any, key: str = "") -> Any:
    """JSON-like content with every place of this machine replaced by its name and, for a model, its digest."""
    if isinstance(value, dict):
        return {name: placeless(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return model_name(value) if key in MODELS else PurePath(value).name if is_local(value) else value

"""The recipe as others may read it: nothing in it names a place of the publisher's machine."""

from pathlib import Path, PurePath
from typing import Any

from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.real import HUB_ID

LOCAL = ("/", "~", "./", "../", ".\\", "..\\")


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without local paths: a local source is left out, a local model keeps the name of its folder."""
    content = _named(recipe.model_dump(mode="json", by_alias=True))
    content["source"] = _public_source(recipe.source)
    return Recipe.from_dict(content)


def _public_source(source: str | None) -> str | None:
    return source if source and HUB_ID.fullmatch(source) and not is_local(source) else None


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and is_local(value) else value


def is_local(text: str) -> bool:
    """Whether a string of a recipe is a place of this machine."""
    return text.startswith(LOCAL) or ("/" in text and "\n" not in text and len(text) < 256 and Path(text).exists())

"""The recipe as others may read it: nothing in it names a place of the publisher's machine."""

from pathlib import Path

from diffaug_datasets.core.backbone_spec import TINY
from diffaug_datasets.core.local_places import is_local, is_local_model, placeless
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.real import HUB_ID


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without local paths: a local source is left out, a local model keeps its folder's name and digest."""
    content = placeless(recipe.model_dump(mode="json", by_alias=True))
    content["source"] = _public_source(recipe.source)
    if recipe.backbone.id != TINY and is_local_model(recipe.backbone.id):
        content["backbone"]["id"] = Path(recipe.backbone.id).expanduser().resolve().name  # as the plan names it
    return Recipe.from_dict(content, folder=None)


def _public_source(source: str | None) -> str | None:
    return source if source and HUB_ID.fullmatch(source) and not is_local(source) else None


def local_models(recipe: Recipe) -> list[str]:
    """The keys of a recipe that name a folder of this machine whose model the images rest on."""
    encoder = getattr(recipe.method_config, "encoder", None)
    named = {"backbone.id": recipe.backbone.id, "config.encoder": encoder}
    return [key for key, model in named.items() if isinstance(model, str) and is_local_model(model)]

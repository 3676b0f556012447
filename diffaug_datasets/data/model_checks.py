"""The models that a recipe names, looked at before anything is planned: what lies on this machine, without torch."""

from diffaug_datasets.core.backbone_check import check_backbone
from diffaug_datasets.core.model_check import check_model
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.run.schedule_check import check_steps


def check_models(recipe: Recipe) -> None:
    """Raises BackboneError where a backbone, an encoder or a judge is damaged, cannot be driven, or does not fit."""
    settings = check_backbone(recipe.backbone)
    if settings is not None:
        check_steps(recipe, settings)
    for encoder in (recipe.scores.encoder, getattr(recipe.method_config, "encoder", None)):
        if encoder:
            check_model(encoder, "encoder")
    if recipe.scores.judge:
        check_model(recipe.scores.judge, "judge")

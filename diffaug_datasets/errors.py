"""What can go wrong, as exceptions: each is one clear sentence on what was found, what was expected and what to do."""

from diffaug_datasets.core.errors import (
    BackboneError,
    DiffAugError,
    PlanError,
    PublishError,
    RecipeError,
    RunError,
    SourceError,
)

__all__ = ["BackboneError", "DiffAugError", "PlanError", "PublishError", "RecipeError", "RunError", "SourceError"]

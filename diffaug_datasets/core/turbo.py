"""What the profile turbo leaves out, known at plan: rows that the whole U-Net computes, by step. No torch is needed."""

from collections.abc import Iterable

from diffaug_datasets.core.errors import PlanError
from diffaug_datasets.core.method import branches
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow


def evaluations(recipe: Recipe, row: PlanRow) -> int:
    """U-Net rows for one image, as the recipe's method and its profile have them."""
    if not recipe.profile.is_turbo:
        return recipe.method_definition.evaluations(recipe.method_config, row)
    profile, labels, start = recipe.profile, _labels(recipe), row.start_step or 0
    whole = (step for step in range(start, labels) if profile.is_whole(step, start))
    return sum(branches(row) if profile.is_guided(step, labels) else 1 for step in whole)


def check_turbo(recipe: Recipe, rows: Iterable[PlanRow]) -> None:
    """Whether turbo knows where a method's steps are: it must sample each row once, from its first step to the last.

    Raises:
        PlanError: turbo was asked for, and the method does something else.
    """
    if not recipe.profile.is_turbo:
        return
    method, config = recipe.method_definition, recipe.method_config
    labels = _labels(recipe)
    odd = (r for r in rows if method.evaluations(config, r) != branches(r) * (labels - (r.start_step or 0)))
    steered = config.requirements.controlnet is not None
    if steered or next(odd, None) is not None:
        how = "is steered by a ControlNet" if steered else "does not sample each image once, step by step"
        raise PlanError(f"profile: turbo leaves out steps, and {method.NAME} {how}; use fast, or another method.")


def _labels(recipe: Recipe) -> int:
    """Evaluations from the first step to the last: PLMS takes its first step twice."""
    config = recipe.method_config
    return int(getattr(config, "num_inference_steps", 0)) + (getattr(config, "sampler", "") == "plms")

"""What the units of a plan take, in rows that the U-Net computes: known before anything is made, without torch."""

from collections.abc import Mapping

from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Plan, Shard
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.models.model_folder import embeds_guidance

TRAINING = 3  # a step back costs two steps forward


def fit_evaluations(unit: FitUnit) -> int:
    """U-Net rows of a fit, as its payload says: training steps times batch, or calls of an image (its steps, where it
    states none) times images; else none.
    """
    if training := _training(unit):
        return training
    return int(unit.content.get("calls", unit.content.get("steps", 0))) * len(unit.content.get("images", ()))


def fit_work(unit: FitUnit) -> int:
    """What a fit takes, in evaluations without gradients."""
    return fit_evaluations(unit) * (TRAINING if _training(unit) else 1)


def shard_evaluations(recipe: Recipe, shard: Shard) -> tuple[int, int]:
    """U-Net rows of a shard, and how many of them are idle.

    Every batch has its planned shape, and its longest row decides how often the network is called.
    """
    config, size, method = recipe.method_config, recipe.batch_size, recipe.method_definition
    in_one_branch = embeds_guidance(recipe.backbone)

    def cost(row: PlanRow) -> int:
        """A network that is told the scale of guidance has one branch whatever it is, as an unguided row."""
        return method.evaluations(config, row.model_copy(update={"guidance_scale": 1.0}) if in_one_branch else row)

    costs = [[cost(row) for row in batch if row] for batch in shard.batches(size)]
    computed = sum(size * max(rows) for rows in costs)
    return computed, computed - sum(map(sum, costs))


def unit_work(recipe: Recipe, plan: Plan) -> Mapping[str, int]:
    """Name of every fit and shard -> its part of the whole work; at least 1, for there are other things to do too."""
    shards = {shard.name: max(len(shard.rows), shard_evaluations(recipe, shard)[0]) for shard in plan.shards()}
    return {**{unit.name: max(1, fit_work(unit)) for unit in plan.fits}, **shards}


def _training(unit: FitUnit) -> int:
    """U-Net rows that a fit is trained with; 0 for one that is computed without gradients."""
    config = unit.content.get("config")
    if not isinstance(config, dict) or "steps" not in config:
        return 0
    return int(config["steps"]) * int(config.get("batch", 1))

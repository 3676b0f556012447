"""Whether a recipe's steps fit the schedule of its backbone: asked at plan, and again where the backbone is loaded."""

from typing import TYPE_CHECKING, Any, Protocol

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.scheduler_config import Spacing
from diffaug_datasets.numerics.timesteps import LABELS

if TYPE_CHECKING:
    from diffaug_datasets.run.context import LoadBackbone


class Timeline(Protocol):
    """What labels hang on: `SchedulerSettings`, or the `Schedule` of a loaded model."""

    @property
    def num_train_timesteps(self) -> int:
        """T."""

    @property
    def steps_offset(self) -> int:
        """Added to 'leading' labels."""

    @property
    def spacing(self) -> Spacing | None:
        """None = as each sampler has it."""


def check_steps(recipe: Recipe, timeline: Timeline) -> None:
    """Raises BackboneError where a sampler cannot take its steps, or a plan decided on labels that are not visited."""
    config = recipe.method_config
    sampler = getattr(config, "sampler", "ddim")
    for key, solver in (("num_inference_steps", sampler), ("inversion_steps", "ddim")):
        steps = getattr(config, key, None)
        if steps is None:
            continue
        told = {"spacing": timeline.spacing} if timeline.spacing else {}
        try:
            labels = LABELS[solver](steps, timeline.num_train_timesteps, timeline.steps_offset, **told)
        except ValueError as error:
            raise BackboneError(
                f"backbone {recipe.backbone.id!r} was trained on {timeline.num_train_timesteps} timesteps "
                f"({error}): change config.{key}, or choose another model."
            ) from None
        is_usual = timeline.num_train_timesteps == 1000 and labels == LABELS[solver](steps)
        if getattr(recipe.module, "USUAL_LABELS", False) and not is_usual:
            raise _unusual(recipe, solver, timeline)


def _unusual(recipe: Recipe, sampler: str, timeline: Timeline) -> BackboneError:
    got = f"{timeline.num_train_timesteps} timesteps, steps_offset {timeline.steps_offset}"
    if timeline.spacing:
        got += f", timestep_spacing {timeline.spacing!r}"
    return BackboneError(
        f"backbone {recipe.backbone.id!r} has a schedule of its own ({got}), but {recipe.method} with {sampler} "
        "decides on Stable Diffusion's labels (1000 timesteps, steps_offset 1, no timestep_spacing): choose another "
        "model, sampler or method."
    )


def checked_loader(load: "LoadBackbone", recipe: Recipe) -> "LoadBackbone":
    """A loader that also asks whether the recipe's steps fit what it loads."""

    def loaded(spec: Any, device: str) -> Any:
        backbone = load(spec, device)
        check_steps(recipe, backbone.schedule)
        return backbone

    return loaded

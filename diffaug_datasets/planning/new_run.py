"""A new run: from what a person names (a recipe, a file, a config name) to a priced plan and its folder.

Needs no torch. The command line, `load_builder` and a person's own script all come through here.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import load_yaml
from diffaug_datasets.core.memory import few_collections
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.recipe import Recipe, with_absolute_places
from diffaug_datasets.planning.catalogue import config_recipe, merged, shipped_recipes
from diffaug_datasets.planning.prepare import Prepared, prepare, refuse_other_plan, write_run
from diffaug_datasets.planning.price import Price, price
from diffaug_datasets.run.place import address_of, place_of, scheme_of
from diffaug_datasets.run.remote import RemoteRun, cached_at
from diffaug_datasets.run.store import RUNS, Run, default_folder, on_this_machine
from diffaug_datasets.sources.real import SeenSources

RecipeName = Recipe | str | os.PathLike[str]
"""A recipe; or the name of one: a YAML file, a shipped recipe, a config name or preset such as `cub_5shot_diffii`."""


def plan(recipe: RecipeName, folder: str | os.PathLike[str] | None = None, **changes: Any) -> Run:
    """Draw every row of an augmented dataset and write the plan as a run folder; no image is generated yet.

    Needs no GPU and no torch. The same recipe and real images give the same plan, with the same `run.plan.id`, on any
    machine. Planning again into the same folder completes it and changes nothing.

    Args:
        recipe: a `Recipe`, a YAML file, a shipped recipe, or a config name `BUILDER_PROTOCOL_METHOD`.
        folder: the run folder to write, or an address such as s3://bucket/run; default: `runs/NAME-PLANID`.
        changes: recipe keys that replace the recipe's own (`source="photos"`, `per_class=50`); a mapping such as
            `config={"strength": 0.3}` is merged key by key.

    Raises:
        RecipeError: a key or a value that a recipe cannot have; names the key and what is allowed.
        SourceError: real images are missing, damaged or not what the builder expects.
        BackboneError: a model that the recipe names is damaged or cannot be driven.
        PlanError: the plan cannot be drawn, or the folder holds another one.
        RunError: the disk lacks room for the finished run, or the folder cannot be written.

    >>> from diffaug_datasets import plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> len(run.plan.rows), run.plan.header.class_names[1], run.plan.rows[0].num_inference_steps
    (20, 'Trouser', 2)
    """
    drawn = price_plan(find_recipe(recipe, changes), folder)
    for text in drawn.warnings:
        warnings.warn(text, stacklevel=2)
    return drawn.write()


@dataclass(frozen=True)
class PricedPlan:
    """A plan that was drawn but is not written yet, what it will cost, and the folder that it would go to.

    `address`: where else it goes, such as s3://bucket/run; the folder is the cache of that on this machine then.
    """

    prepared: Prepared
    folder: Path
    price: Price
    address: str | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong with the plan or its real images, a sentence each."""
        return (*self.prepared.plan.header.warnings, *self.prepared.real.survey.warnings)

    def check(self) -> None:
        """All that can be said against writing the run folder before a file of it is written.

        Raises:
            RunError: the disk lacks room for what will come.
            PlanError: the folder holds another plan.
        """
        self.price.check(self.folder)
        if self.address is not None:
            if place_of(self.address).get("plan.json") is not None:
                refuse_other_plan(Run.open(self.address), self.prepared.plan)
        elif (self.folder / "plan.json").exists():
            refuse_other_plan(Run.open(self.folder), self.prepared.plan)

    @property
    def where(self) -> str:
        """The folder or address that a person gives for the run."""
        return self.address or str(self.folder)

    @few_collections()
    def write(self) -> Run:
        """The run folder, written after the same checks; sent to its address, where it has one."""
        self.check()
        run = write_run(self.prepared, self.folder)
        if self.address is None:
            return run
        RemoteRun(self.address, run.plan.id, run.plan).upload_plan()
        return Run.open(self.address)


@few_collections()
def price_plan(
    recipe: Recipe,
    folder: str | os.PathLike[str] | None = None,
    parent: Path = RUNS,
    seen: SeenSources | None = None,
) -> PricedPlan:
    """Read the real images, draw the plan and price it; writes nothing.

    `folder` is where the run would go, an address such as s3://bucket/run too; by default `NAME-PLANID` in `parent`.
    `seen`: of plans before, see `prepare`.

    Raises:
        DiffAugError: one sentence on the source, the recipe, a model or the plan.
    """
    address = None if folder is None or scheme_of(folder) is None else address_of(folder)
    given = None if folder is None or address else on_this_machine(os.fspath(folder))
    refuse_idle(recipe)
    prepared = prepare(recipe, seen=seen)
    place = cached_at(address, prepared.plan.id) if address else given or default_folder(prepared.plan, parent)
    return PricedPlan(prepared, place, price(prepared, place), address)


def refuse_idle(recipe: Recipe) -> None:
    """Raises RecipeError where a key of `config` was set that nothing reads; plans that are kept may hold such keys."""
    for key, value, why in recipe.method_config.set_in_vain():
        raise RecipeError(f"config.{key}: got {value!r}, but nothing reads it where {why}; take it out.")


def find_recipe(
    recipe: RecipeName, changes: Mapping[str, Any] | None = None, tell: Callable[[str], None] = warnings.warn
) -> Recipe:
    """The recipe that a person means, with changes on top; relative places in the changes start at this folder.

    A text is a file where it ends in .yaml or .yml or such a file is there, else a shipped recipe or a config name.
    Where the changes name another method, keys of `config` that it does not have are dropped, and `tell` is told.

    Raises:
        RecipeError: one sentence that names the key or the name, and what is allowed.
    """
    changes = changes or {}
    if isinstance(recipe, Recipe):
        base = recipe
    elif not isinstance(recipe, str) or Path(recipe).suffix in (".yaml", ".yml") or Path(recipe).is_file():
        base = Recipe.from_yaml(Path(recipe))
    elif shipped := shipped_recipes().get(recipe):
        base = Recipe.from_dict(load_yaml(shipped.read_text("utf-8")))
    elif Path(recipe).is_dir():
        raise RecipeError(f"{recipe!r}: is a folder, not a recipe; `diffaug new {recipe}` writes one for its images.")
    else:
        return config_recipe(recipe, **changes)
    if not changes:
        return base
    placed = with_absolute_places({"method": base.method, **changes}, Path())
    content = base.model_dump(mode="json", by_alias=True)
    content["config"] = _config_of_method(base, str(placed["method"]), tell)
    return Recipe.from_dict(merged(content, placed), folder=None)


def _config_of_method(base: Recipe, method: str, tell: Callable[[str], None]) -> dict[str, object]:
    """What of a recipe's `config` another method has too; what it has not is dropped with a word."""
    config = dict(base.config)
    if method == base.method or method not in discover_methods():
        return config
    fields = discover_methods()[method].Config.model_fields
    if dropped := [key for key in config if key not in fields]:
        keys = ", ".join(dropped)
        tell(f"method: {method} in the place of {base.method}, so config.{keys} of the recipe is dropped")
    return {key: value for key, value in config.items() if key in fields}

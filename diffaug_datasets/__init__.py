"""Reproducible, diffusion-augmented datasets for image classification.

What a person does is offered here: `augment` photographs in one call, or `plan` a dataset, `generate` its images,
`publish` and `verify` the set, `load` it or prepare it with `load_builder`, and mix it with real images for training.
Each name is imported when it is first used, so that `import diffaug_datasets` stays cheap. Authors of methods, datasets
and model families import `diffaug_datasets.plugin`.

These two modules and the command line are the public interface. Everything else may change in any release.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from diffaug_datasets.core.identity import __version__ as __version__

if TYPE_CHECKING:
    from diffaug_datasets import errors as errors
    from diffaug_datasets.core.errors import (
        BackboneError,
        DiffAugError,
        PlanError,
        PublishError,
        RecipeError,
        RunError,
        SourceError,
    )
    from diffaug_datasets.core.recipe import Recipe
    from diffaug_datasets.planning.new_run import plan
    from diffaug_datasets.release.contents import PublishOptions
    from diffaug_datasets.release.publishing import publish
    from diffaug_datasets.release.read import load
    from diffaug_datasets.release.verify import verify
    from diffaug_datasets.run.execute import generate
    from diffaug_datasets.run.store import Run
    from diffaug_datasets.train.augmenting import augment
    from diffaug_datasets.train.builder import list_builders, load_builder
    from diffaug_datasets.train.mixing import MixedDataset, MixedStream

__all__ = [
    "BackboneError",
    "DiffAugError",
    "MixedDataset",
    "MixedStream",
    "PlanError",
    "PublishError",
    "PublishOptions",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "SourceError",
    "augment",
    "generate",
    "list_builders",
    "load",
    "load_builder",
    "plan",
    "publish",
    "verify",
]

_HOMES = {
    "MixedDataset": "train.mixing",
    "MixedStream": "train.mixing",
    "PublishOptions": "release.contents",
    "Recipe": "core.recipe",
    "Run": "run.store",
    "augment": "train.augmenting",
    "generate": "run.execute",
    "list_builders": "train.builder",
    "load": "release.read",
    "load_builder": "train.builder",
    "plan": "planning.new_run",
    "publish": "release.publishing",
    "verify": "release.verify",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__", "errors"]


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module(f"{__name__}.errors")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)

"""Reproducible, diffusion-augmented datasets for image classification.

The whole public surface; each name is imported when it is first used, so that `import diffaug_datasets` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.identity import __version__ as __version__

if TYPE_CHECKING:
    from diffaug_datasets.core.recipe import Recipe
    from diffaug_datasets.release.read import load
    from diffaug_datasets.run.store import Run
    from diffaug_datasets.train.builder import list_builders, load_builder
    from diffaug_datasets.train.mixing import MixedDataset, MixedStream

__all__ = ["MixedDataset", "MixedStream", "Recipe", "Run", "list_builders", "load", "load_builder"]

_HOMES = {
    "MixedDataset": "train.mixing",
    "MixedStream": "train.mixing",
    "Recipe": "core.recipe",
    "Run": "run.store",
    "list_builders": "train.builder",
    "load_builder": "train.builder",
    "load": "release.read",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

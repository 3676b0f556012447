"""Reproducible, diffusion-augmented datasets for image classification.

The whole public surface; each name is imported when it is first used, so that `import diffaug_datasets` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffaug_datasets.core.recipe import Recipe
    from diffaug_datasets.data.builder import list_builders, load_builder
    from diffaug_datasets.data.loader import load
    from diffaug_datasets.data.mixed import MixedDataset, MixedStream
    from diffaug_datasets.run.store import Run

__version__ = "0.1.0"
__all__ = ["MixedDataset", "MixedStream", "Recipe", "Run", "list_builders", "load", "load_builder"]

_HOMES = {
    "MixedDataset": "data.mixed",
    "MixedStream": "data.mixed",
    "Recipe": "core.recipe",
    "Run": "run.store",
    "list_builders": "data.builder",
    "load_builder": "data.builder",
    "load": "data.loader",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""What a user can get wrong. `cli.py` turns these into one sentence and exit code 2; anything else is our fault.

What is installed only where it is needed, and the line that installs it from what exists: a clone of the project.
"""

from diffaug_datasets.core.printable import printable, without_secrets


class DiffAugError(Exception):
    """One clear sentence: what we got, what we expected, what to do.

    Whoever prints it, it names no password of an address and holds no character that drives a terminal.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(without_secrets(str(sentence))))


class RecipeError(DiffAugError):
    """A recipe or a configuration name that cannot be used."""


class SourceError(DiffAugError):
    """Real images that are missing, unreadable or not what the builder expects."""


class PlanError(DiffAugError):
    """A plan that cannot be drawn, or does not belong to the recipe beside it."""


class RunError(DiffAugError):
    """A run folder that is locked, damaged, full or made by something else."""


class BackboneError(DiffAugError):
    """A diffusion model that cannot be reached or does not fit."""


class PublishError(DiffAugError):
    """A release that may not go out, a place that does not take it, or a published set that cannot be trusted."""


GENERATING = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "jaxtyping")
EXTRAS = {
    **dict.fromkeys(GENERATING, "generate"),
    "sklearn": "eval",
    "faiss": "retrieval",
}


def install(extra: str) -> str:
    """The line for a sentence; the package lies on no index, so no other one is true."""
    return f"`pip install '.[{extra}]'` in your clone of diffaug-datasets"

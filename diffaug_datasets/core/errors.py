"""What a user can get wrong. `cli.py` turns these into one sentence and exit code 2; anything else is our fault.

What is installed only where it is needed, and the line that installs it from what exists: a clone of the project.
"""

from diffaug_datasets.core.printable import printable, without_secrets


class DiffAugError(Exception):
    """One clear sentence: what we got, what we expected, what to do.

    Whoever prints it, it names no password of an address and holds no character that drives a terminal.

    >>> from diffaug_datasets import DiffAugError, plan
    >>> try:
    ...     run = plan("fashion_5shot_txt2img", per_class=0)
    ... except DiffAugError as error:
    ...     print(error)
    per_class: got 0, input should be greater than or equal to 1.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(printable(without_secrets(str(sentence))))


class RecipeError(DiffAugError):
    """A recipe or a configuration name that cannot be used.

    >>> from diffaug_datasets import Recipe
    >>> Recipe.from_dict({"builder": "fashion", "methd": "txt2img"})
    Traceback (most recent call last):
    diffaug_datasets.core.errors.RecipeError: methd: unknown key; did you mean 'method'; allowed are ...
    """


class SourceError(DiffAugError):
    """Real images that are missing, unreadable or not what the builder expects.

    >>> from diffaug_datasets import plan
    >>> run = plan("imagefolder_full_img2img", source="no-such-folder")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.SourceError: imagefolder: got '...no-such-folder', where no folder is, expected ...
    """


class PlanError(DiffAugError):
    """A plan that cannot be drawn, or does not belong to the recipe beside it.

    >>> from diffaug_datasets import plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=3, config={"num_inference_steps": 2})
    Traceback (most recent call last):
    diffaug_datasets.core.errors.PlanError: runs/shirts: holds another plan; what differs: recipe.per_class: 2 -> 3. ...
    """


class RunError(DiffAugError):
    """A run folder that is locked, damaged, full or made by something else.

    >>> from diffaug_datasets import Run
    >>> Run.open("runs/none")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.RunError: runs/none: no plan.json here; ...
    """


class BackboneError(DiffAugError):
    """A diffusion model that cannot be reached or does not fit.

    >>> from diffaug_datasets import plan
    >>> run = plan("fashion_5shot_txt2img", backbone="no-such-model")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.BackboneError: backbone 'no-such-model' is neither a folder nor a Hub id: ...
    """


class PublishError(DiffAugError):
    """A release that may not go out, a place that does not take it, or a published set that cannot be trusted.

    >>> from diffaug_datasets import plan, publish
    >>> run = plan("fashion_5shot_txt2img", "runs/unfinished", per_class=1)
    >>> publish(run, "org/name")
    Traceback (most recent call last):
    diffaug_datasets.core.errors.PublishError: runs/unfinished: not finished; ...
    """


GENERATING = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "jaxtyping")
EXTRAS = {
    **dict.fromkeys(GENERATING, "generate"),
    **dict.fromkeys(("scipy", "sklearn", "statsmodels"), "eval"),
    "faiss": "retrieval",
}


def install(extra: str) -> str:
    """The line for a sentence; the package lies on no index, so no other one is true."""
    return f"`pip install '.[{extra}]'` in your clone of diffaug-datasets"

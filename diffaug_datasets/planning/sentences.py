"""Language enhancement: from the name of a class to many sentences that hold it, each a prompt (He et al. 2023).

1. a word-to-sentence model is asked for `per_class` + 50 sentences of every class's name   `LanguageModel.drawn`
2. what it said twice is taken out, and so is what is empty                                 `write_sentences`
3. the first `per_class` that are left are the class's prompts, behind a prefix             for `config.prompts`

The steps are those of the authors' code (CVMI-Lab/SyntheticData at 062ac23, src/LE.py:9-25, src/glide/glide_zsl.py:76),
whose model is a T5 fine-tuned on CommonGen. Departs from it where a class has fewer different sentences than asked for:
there it stops with an error, here the class keeps what it has. Like captions, a step before planning: the file is data.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import read_recipe_images

SPARE = 50  # sentences that are asked for beyond those wanted, as many are said twice
AUTHORS_MODEL = "mrm8488/t5-base-finetuned-common_gen"
Say = Callable[[str, int, int], list[str]]
"""Words, a count and a seed -> so many sentences."""


@dataclass(frozen=True)
class SentenceOptions:
    """`model`: a folder or a Hub id; `per_class`: sentences of a class at most; `prefix`: before each of them."""

    model: str = AUTHORS_MODEL
    per_class: int = 200
    prefix: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class Sentences:
    """Class label -> its prompts, in the order they were said; `fewer`: classes that have not as many as wanted."""

    by_label: dict[str, list[str]]
    fewer: tuple[str, ...]

    def to_json(self) -> str:
        """The file's text, as `config.prompts` reads it."""
        return json.dumps(self.by_label, indent=1, ensure_ascii=False) + "\n"


def write_sentences(recipe: Recipe, options: SentenceOptions, say: Say | None = None) -> Sentences:
    """Sentences of every class of a recipe. `say`: who says them; None: the model of the options.

    Raises:
        DiffAugError: the images or the model cannot be reached, or a class has no sentence.
    """
    table = read_recipe_images(recipe).train
    if say is None:
        from diffaug_datasets.models.captioning import LanguageModel

        say = LanguageModel.load(options.model, options.device).drawn
    found: dict[str, list[str]] = {}
    for label, name in zip(table.class_names, table.prompt_names, strict=True):
        said = say(name, options.per_class + SPARE, uint63(f"{recipe.seed}|sentences|{label}") >> 1)
        plain = (" ".join(text.replace("{", " ").replace("}", " ").split()) for text in said)
        different = [text for text in dict.fromkeys(plain) if text]
        if not different:
            raise RecipeError(f"sentences: the model says nothing of class {label!r}; use another --model.")
        found[label] = [f"{options.prefix}{text}" for text in different[: options.per_class]]
    return Sentences(found, tuple(label for label, texts in found.items() if len(texts) < options.per_class))

"""A commented recipe for images of one's own, written to a file that `diffaug plan` takes as it stands."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import dump_yaml, load_yaml, write_text
from diffaug_datasets.core.models import TINY, local_path
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import merged
from diffaug_datasets.planning.inspect import Inspection
from diffaug_datasets.planning.prepare import check_models
from diffaug_datasets.planning.suggest import GIVEN, Machine, Suggested, backbone_id, shard_rows, suggest, this_machine
from diffaug_datasets.sources.hub import DATASET_ID
from diffaug_datasets.sources.names import Phrase

WIDTH = 118  # characters of a comment line
NAME_ME = "NAME ME"
SHARD_WHY = "about a minute of work here: images of a shard that was stopped are made again"
GROUPS = (
    ("Your images", ("builder", "source", "partial", "on_bad_image", "without")),
    ("What they are: flows into config names, prompts, cards and what you may publish", ("name", "title", "licence")),
    ("", ("citation", "homepage", "metaclass")),
    ("label: what prompts call it", ("classes",)),
    ("What is made of them; `diffaug methods` lists the methods", ("protocol", "method", "config")),
    ("", ("per_image", "per_class", "backbone", "batch_size", "shard_rows", "seed", "scores")),
)


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that is not written yet: what was found, what is suggested, the recipe and its text."""

    found: Inspection
    suggested: Suggested
    recipe: Recipe
    text: str
    file: Path

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Labels that say nothing to a model and for which the recipe has no other words yet."""
        return tuple(label for label in self.found.nameless if self.recipe.classes.get(label, label) == label)

    def write(self, force: bool = False) -> Path:
        """Write the file, whole.

        Raises:
            RecipeError: it is there already.
            RunError: it cannot be written.
        """
        check_free(self.file, force)
        write_text(self.file, self.text)
        return self.file


def new_recipe(
    found: Inspection,
    file: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    changes: Mapping[str, object] | None = None,
    machine: Machine | None = None,
) -> NewRecipe:
    """The recipe that suits images that were looked at.

    Args:
        found: what `inspect` found.
        file: where it is to be written; default: `NAME.yaml` here.
        backbone: the diffusion model, a folder or a Hub id; default: by what the machine has.
        changes: keys that replace the suggested ones.
        machine: what images are made with; default: this one.

    Raises:
        RecipeError: a change that a recipe cannot have.
        BackboneError: the backbone is no model that runs here.
    """
    machine = machine or this_machine()
    suggested = suggest(found, machine, backbone_id(backbone))
    target = Path(file) if file is not None else Path(f"{suggested.content['name']}.yaml")
    content = merged(suggested.content, changes or {})
    content["source"] = _place(found.source, target)
    model = content.get("backbone")
    if isinstance(model, Mapping) and local_path(str(model.get("id"))):
        content["backbone"] = {**model, "id": _near(str(model["id"]), target)}
    if changes and "method" in changes and "config" not in changes:
        content.pop("config", None)
    reasons = dict(_kept_reasons(suggested, changes or {}))
    recipe = Recipe.from_dict(content, folder=target.absolute().parent)
    check_models(recipe)
    if "shard_rows" not in content and (rows := shard_rows(recipe, machine)):
        content["shard_rows"], reasons["shard_rows"] = rows, SHARD_WHY
    text = recipe_text(content, replace(suggested, reasons=reasons), found.phrases)
    recipe = Recipe.from_dict(load_yaml(text), folder=target.absolute().parent)
    return NewRecipe(found, suggested, recipe, text, target)


def check_free(file: Path, force: bool) -> None:
    """Raises RecipeError where a file is there already and may not be written over."""
    if file.exists() and not force:
        raise RecipeError(f"{file}: is there already; give another file with -o, or --force to write over it.")


def recipe_text(content: Mapping[str, object], suggested: Suggested, phrases: Mapping[str, Phrase]) -> str:
    """The file: keys in groups, each with its reason above or beside it, class by class what is to be looked at."""
    lines = ["# A recipe for images of your own, suggested by `diffaug new`; `diffaug plan` takes it as it stands."]
    rest = [key for key in content if key not in {key for _, keys in GROUPS for key in keys}]
    for heading, keys in (*GROUPS, ("", tuple(rest))):
        here = [key for key in keys if key in content]
        if heading and here:
            lines += ["", f"# {heading}"]
        for key in here:
            lines += _lines(key, content[key], suggested.reasons.get(key, ""), phrases)
    model = content.get("backbone")
    if (model.get("id") if isinstance(model, Mapping) else model) != TINY and "scores" not in content:
        lines += ["", "# Measures whether images show their class, with a model of the Hub:"]
        lines += ["# scores: {encoder: openai/clip-vit-base-patch32}"]
    return "\n".join(lines) + "\n"


def _lines(key: str, value: object, why: str, phrases: Mapping[str, Phrase]) -> list[str]:
    """A key as it stands in the file; the reason beside it where the line has room, else above."""
    if key == "classes" and isinstance(value, Mapping) and value:
        return ["classes:", *(_class_line(label, text, phrases.get(label)) for label, text in value.items())]
    text = dump_yaml({key: value}).rstrip("\n").split("\n")
    if not why:
        return text
    if len(text) == 1 and len(text[0]) + len(why) + 3 <= WIDTH:
        return [f"{text[0]} # {why}"]
    return [*(f"# {line}" for line in _wrapped(why)), *text]


def _class_line(label: str, text: object, phrase: Phrase | None) -> str:
    line = "  " + dump_yaml({label: text}).strip().replace("\n", " ")
    if phrase is None or phrase.text != text:
        return line
    if phrase.code:
        return f"{line} # {NAME_ME}: {phrase.code}, which no model knows"
    if phrase.is_foreign:
        return f"{line} # prompts are in English for most models: give the English word"
    return f"{line} # {phrase.origin}" if phrase.origin else line


def _wrapped(text: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)


def _kept_reasons(suggested: Suggested, changes: Mapping[str, object]) -> Mapping[str, str]:
    return {key: GIVEN if key in changes else why for key, why in suggested.reasons.items()}


def _place(source: str, file: Path) -> str:
    """The source as a recipe names it: a Hub id as it is, a folder or file as it is seen from the recipe."""
    return source if DATASET_ID.fullmatch(source) else _near(source, file)


def _near(place: str, file: Path) -> str:
    """A path as it is seen from the recipe: relative where both may move together, else absolute."""
    relative = Path(os.path.relpath(Path(place).resolve(), file.absolute().parent.resolve()))
    is_near = relative.parts[:2] != ("..", "..")
    return (
        f"./{relative.as_posix()}"
        if is_near and relative.parts[:1] != ("..",)
        else (relative.as_posix() if is_near else place)
    )

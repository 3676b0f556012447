"""Prompt text: templates filled with a class phrase and the suffix lists that ship with the package."""

import json
from functools import cache
from importlib.resources import files

from diffaug_datasets.core.errors import RecipeError


def fill(template: str, name: str, metaclass: str = "", label: str = "") -> str:
    """The template with `{name}`, `{metaclass}` and `{synonyms}` (of the label) filled in, spaces collapsed.

    >>> fill("a photo of a {name} {metaclass}", "lazuli bunting", "bird")
    'a photo of a lazuli bunting bird'
    >>> fill("a photo of a {synonyms}.", "tench", label="n01440764")
    'a photo of a tench, Tinca tinca.'
    """
    text = template.replace("{name}", name).replace("{metaclass}", metaclass)
    text = text.replace("{synonyms}", synonyms(label, name)) if "{synonyms}" in text else text
    return " ".join(text.split())


def synonyms(label: str, name: str) -> str:
    """All names of an ImageNet class, by its WordNet id or as the Hub's label lists them; else the one name."""
    return _imagenet_synonyms().get(label) or (label if ", " in label else name)


@cache
def _imagenet_synonyms() -> dict[str, str]:
    table = files("diffaug_datasets.builders") / "names" / "imagenet.json"
    return {wnid: names for wnid, names, _ in json.loads(table.read_text(encoding="utf-8"))}


def with_suffix(prompt: str, suffix: str) -> str:
    """Prompt and context suffix, one space between (Diff-II, stage one of two-stage denoising)."""
    return f"{prompt} {suffix}" if suffix else prompt


@cache
def shipped_suffixes() -> dict[str, tuple[str, ...]]:
    """List name -> context suffixes: Diff-II appendix A.5.1 and the embedded default's own."""
    assets = files("diffaug_datasets") / "assets"
    lists = json.loads((assets / "diffii_suffixes.json").read_text(encoding="utf-8"))
    tiny = json.loads((assets / "tiny" / "suffixes.json").read_text(encoding="utf-8"))
    lists["fashion"] = [entry["text"] for entry in tiny["suffixes"]]
    return {name: tuple(entries) for name, entries in lists.items() if isinstance(entries, list)}


def suffixes_for(builder: str, protocol: str) -> tuple[str, ...]:
    """The shipped list for a dataset and protocol; a list of the dataset serves its other protocols; else none.

    Diff-II's lists are named `flower_lt_if100`, `pet_5shot`: a builder's plural and `lt100` are translated.
    """
    name, form = builder.removesuffix("s"), protocol.split("_seed")[0]
    wanted = f"{name}_lt_if{form[2:]}" if form.startswith("lt") else f"{name}_{form}"
    lists = shipped_suffixes()
    near = [key for key in (wanted, builder, *lists) if key in lists and key.startswith((name, builder))]
    return lists[near[0]] if near else ()


def suffix_list(name: str) -> tuple[str, ...]:
    """The shipped list of that name.

    Raises:
        RecipeError: there is none.
    """
    lists = shipped_suffixes()
    if name not in lists:
        raise RecipeError(f"config.suffixes: got {name!r}, expected a list of texts or one of {', '.join(lists)}.")
    return lists[name]

"""Recipes by name: a config (`cub_5shot_diffii` is builder, protocol and the method's slug) or a preset.

A preset is a published setting of a method on a dataset (`planning.presets`): `diff_ii@cub_5shot` is the paper's,
`diff_ii@cub_5shot_code` that of the authors' code. Both stand for the package's defaults with a few changes on top.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TypedDict

import yaml

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.presets import Preset, presets
from diffaug_datasets.planning.presets import merged as merged
from diffaug_datasets.sources.real import builder_facts, discover_builders

NAME_PARTS = ("builder", "protocol", "method")  # of a config name
USUAL_PROTOCOLS = ("full", "5shot", "10shot", "lt100", "10pct")


class _Default(TypedDict):
    """An entry of `defaults.yaml`: keys that are set when builder, protocol and method match these patterns."""

    when: dict[str, str]
    set: dict[str, object]


def config_recipe(name: str, /, **overrides: object) -> Recipe:
    """The recipe of a config name or preset, with the caller's changes on top (`config` is merged key by key).

    Where these name another builder, protocol or method, the defaults are the ones that go with it.

    Raises:
        RecipeError: no such name, or a change that a recipe does not take.
    """
    preset = find_preset(name) if "@" in name else None
    names = dict(zip(NAME_PARTS, parse_config_name(preset.config if preset else name), strict=True))
    names |= {key: value for key in NAME_PARTS if isinstance(value := overrides.get(key), str)}
    if preset and names["method"] != preset.method:
        preset = None  # its settings are those of another method
    content: dict[str, object] = dict(names)
    for rule in _defaults():
        if all(fnmatch.fnmatchcase(names[key], pattern) for key, pattern in rule["when"].items()):
            content = merged(content, rule["set"])
    content = merged(content, preset.changes if preset else {})
    return Recipe.from_dict(merged(content, overrides))


def config_name(builder: str, protocol: str, method: str, own: str | None = None) -> str:
    """`{builder}_{protocol}_{slug}`, which `parse_config_name` takes apart; a fixed protocol is left out.

    `own`: what the recipe calls images of one's own, in the builder's place.
    """
    fixed = builder_facts(builder).protocol
    return "_".join(part for part in (own or builder, protocol, find_method(method).SLUG) if part != fixed)


def parse_config_name(name: str) -> tuple[str, str, str]:
    """(builder, protocol, method) of a config name.

    Raises:
        RecipeError: says which part is not known and what is.
    """
    builders = sorted(discover_builders(), key=len, reverse=True)
    builder = next((b for b in builders if name == b or name.startswith(f"{b}_")), None)
    if builder is None:
        guess = _guess(name)
        raise RecipeError(f"{name!r}: begins with no builder; {guess}expected one of {', '.join(sorted(builders))}.")
    slugs = {method.SLUG: method.NAME for method in discover_methods().values()}
    protocol, _, slug = name.removeprefix(builder).removeprefix("_").rpartition("_")
    if slug not in slugs:
        guess = _guess(name)
        raise RecipeError(
            f"{name!r}: ends in no method; {guess}expected {builder}_..._ and one of {', '.join(sorted(slugs))}."
        )
    fixed = builder_facts(builder).protocol
    return builder, parse_protocol(protocol or fixed or "full").name, slugs[slug]


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        RecipeError: there is none; names those of the method.
    """
    if name not in presets():
        method = name.partition("@")[0]
        known = [one for one in presets() if one.startswith(f"{method}@")]
        allowed = ", ".join(known) or f"one of {', '.join(sorted({p.method for p in presets().values()}))}, then @"
        near = difflib.get_close_matches(name, presets(), n=1)
        guess = f"; did you mean {near[0]!r}?" if near else "."
        raise RecipeError(f"{name!r}: no such preset; expected {allowed}{guess}")
    return presets()[name]


@cache
def shipped_recipes() -> Mapping[str, Traversable]:
    """Name -> file of every recipe inside the package (`defaults` says what config names stand for)."""
    folder = files("diffaug_datasets") / "recipes"
    named = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return {name: named[name] for name in sorted(named) if name != "defaults"}


def _guess(name: str) -> str:
    """`did you mean 'cub_5shot_genie'; ` where a config or a shipped recipe is near; or ''."""
    slugs = {method.NAME: method.SLUG for method in discover_methods().values()}
    spelt = name
    for method, slug in slugs.items():  # the method's name in the place of its slug is the commonest slip
        if name.endswith(f"_{method}") and method != slug:
            spelt = f"{name.removesuffix(method)}{slug}"
    protocols = {*USUAL_PROTOCOLS, *re.findall(r"_([1-9]\d*shot|lt\d+|\d+pct)(?=_)", spelt)}
    configs = [f"{b}_{p}_{s}" for b in discover_builders() for p in sorted(protocols) for s in sorted(slugs.values())]
    known = [*shipped_recipes(), *configs]
    near = difflib.get_close_matches(spelt, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}; " if near else ""


@cache
def _defaults() -> list[_Default]:
    text = (files("diffaug_datasets") / "recipes" / "defaults.yaml").read_text(encoding="utf-8")
    rules: list[_Default] = yaml.safe_load(text)
    return rules

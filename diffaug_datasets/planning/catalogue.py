"""Recipes by name: a config (`cub_5shot_diffii` is builder, protocol and the method's slug) or a preset.

A preset is a published setting of a method on a dataset: `diff_ii@cub_5shot` is the paper's, `diff_ii@cub_5shot_code`
that of the authors' code. Both stand for the package's defaults with a few changes on top.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NotRequired, TypedDict

import yaml

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import builder_facts, discover_builders


@dataclass(frozen=True)
class Preset:
    """Settings of one method on one dataset.

    `config`: the name of the config that they change; `source`: where they were published; `unsure`: keys whose numbers
    we have at second hand alone; `changes`: keys of a recipe.
    """

    name: str
    config: str
    source: str
    unsure: tuple[str, ...]
    changes: Mapping[str, object]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.name.partition("@")[0]


class _Published(TypedDict):
    """An entry of `presets.yaml`: one setting that a publication uses on several datasets and protocols."""

    method: str
    builders: list[str]
    protocols: NotRequired[list[str]]
    variant: NotRequired[str]
    source: str
    unsure: NotRequired[list[str]]
    set: dict[str, object]


class _Default(TypedDict):
    """An entry of `defaults.yaml`: keys that are set when builder, protocol and method match these patterns."""

    when: dict[str, str]
    set: dict[str, object]


def config_recipe(name: str, **overrides: object) -> Recipe:
    """The recipe of a config name or preset, with the caller's changes on top (`config` is merged key by key).

    Raises:
        RecipeError: no such name, or a change that a recipe does not take.
    """
    preset = find_preset(name) if "@" in name else None
    builder, protocol, method = parse_config_name(preset.config if preset else name)
    names = {"builder": builder, "protocol": protocol, "method": method}
    content: dict[str, object] = dict(names)
    for rule in _defaults():
        if all(fnmatch.fnmatchcase(names[key], pattern) for key, pattern in rule["when"].items()):
            content = merged(content, rule["set"])
    content = merged(content, preset.changes if preset else {})
    return Recipe.from_dict(merged(content, overrides))


def merged(content: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`content` with `changes` on top; mappings are merged, everything else is replaced."""
    result = dict(content)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def config_name(builder: str, protocol: str, method: str) -> str:
    """`{builder}_{protocol}_{slug}`, which `parse_config_name` takes apart; a fixed protocol is left out."""
    fixed = builder_facts(builder).protocol
    return "_".join(part for part in (builder, protocol, find_method(method).SLUG) if part != fixed)


def parse_config_name(name: str) -> tuple[str, str, str]:
    """(builder, protocol, method) of a config name.

    Raises:
        RecipeError: says which part is not known and what is.
    """
    builders = sorted(discover_builders(), key=len, reverse=True)
    builder = next((b for b in builders if name == b or name.startswith(f"{b}_")), None)
    if builder is None:
        raise RecipeError(f"{name!r}: begins with no builder; expected one of {', '.join(sorted(builders))}.")
    slugs = {method.SLUG: method.NAME for method in discover_methods().values()}
    protocol, _, slug = name.removeprefix(builder).removeprefix("_").rpartition("_")
    if slug not in slugs:
        raise RecipeError(
            f"{name!r}: ends in no method; expected {builder}_..._ and one of {', '.join(sorted(slugs))}."
        )
    fixed = builder_facts(builder).protocol
    return builder, parse_protocol(protocol or fixed or "full").name, slugs[slug]


@cache
def presets() -> Mapping[str, Preset]:
    """Every preset by name, in the order of the file."""
    text = (files("diffaug_datasets") / "recipes" / "presets.yaml").read_text(encoding="utf-8")
    entries: list[_Published] = yaml.safe_load(text)
    return {preset.name: preset for entry in entries for preset in _expanded(entry)}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        RecipeError: there is none; names those of the method.
    """
    if name not in presets():
        method = name.partition("@")[0]
        known = [one for one in presets() if one.startswith(f"{method}@")]
        allowed = ", ".join(known) or f"one of {', '.join(sorted({p.method for p in presets().values()}))}, then @"
        raise RecipeError(f"{name!r}: no such preset; expected {allowed}.")
    return presets()[name]


def _expanded(entry: _Published) -> Iterator[Preset]:
    """One preset for each builder and protocol of an entry."""
    slug = find_method(entry["method"]).SLUG
    for builder in entry["builders"]:
        for protocol in entry.get("protocols", [""]):
            setting = "_".join(filter(None, (builder, protocol)))
            name = "_".join(filter(None, (f"{entry['method']}@{setting}", entry.get("variant"))))
            unsure = tuple(entry.get("unsure", ()))
            yield Preset(name, f"{setting}_{slug}", entry["source"], unsure, entry["set"])


@cache
def _defaults() -> list[_Default]:
    text = (files("diffaug_datasets") / "recipes" / "defaults.yaml").read_text(encoding="utf-8")
    rules: list[_Default] = yaml.safe_load(text)
    return rules

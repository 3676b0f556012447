"""Config names and the recipe behind each: `cub_5shot_diffii` is builder, protocol and the method's slug.

A preset's name stands for a recipe too: `diff_ii@cub_5shot_code` (`data.presets`).

Published settings by name: `diff_ii@cub_5shot` is the paper's, `diff_ii@cub_5shot_code` the authors' code.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import builder_facts, discover_builders


@dataclass(frozen=True)
class Preset:
    """Settings of one method on one dataset; `unsure` names keys whose numbers we have at second hand alone."""

    name: str
    config: str
    source: str
    unsure: tuple[str, ...]
    changes: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.name.partition("@")[0]


@cache
def presets() -> Mapping[str, Preset]:
    """Every preset by name, in the order of the file."""
    text = (files("diffaug_datasets") / "recipes" / "presets.yaml").read_text(encoding="utf-8")
    return {preset.name: preset for entry in yaml.safe_load(text) for preset in _expanded(entry)}


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


def _expanded(entry: Mapping[str, Any]) -> Iterator[Preset]:
    """One preset for each builder and protocol of an entry."""
    slug = find_method(entry["method"]).SLUG
    for builder in entry["builders"]:
        for protocol in entry.get("protocols", [""]):
            setting = "_".join(filter(None, (builder, protocol)))
            name = "_".join(filter(None, (f"{entry['method']}@{setting}", entry.get("variant"))))
            unsure = tuple(entry.get("unsure", ()))
            yield Preset(name, f"{setting}_{slug}", entry["source"], unsure, entry["set"])


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
    parsed = parse_protocol(protocol or fixed or "full").name
    return builder, parsed, slugs[slug]


def config_name(recipe: Recipe) -> str:
    """`{builder}_{protocol}_{slug}`; a builder that is a protocol itself has no second part."""
    fixed = builder_facts(recipe.builder).protocol
    parts = [recipe.builder, recipe.protocol, recipe.module.SLUG]
    return "_".join(part for part in parts if part != fixed)


def config_recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe of a config name or preset, with the caller's changes on top (`config` is merged key by key)."""
    preset = find_preset(name) if "@" in name else None
    builder, protocol, method = parse_config_name(preset.config if preset else name)
    content: dict[str, Any] = {"builder": builder, "protocol": protocol, "method": method}
    for rule in _defaults():
        if all(fnmatch.fnmatchcase(content[key], pattern) for key, pattern in rule["when"].items()):
            content = merged(content, rule["set"])
    content = merged(content, preset.changes if preset else {})
    return Recipe.from_dict(merged(content, overrides))


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with `changes` on top; mappings are merged, everything else is replaced."""
    result = dict(content)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@cache
def _defaults() -> list[dict[str, Any]]:
    text = (files("diffaug_datasets") / "recipes" / "defaults.yaml").read_text(encoding="utf-8")
    rules: list[dict[str, Any]] = yaml.safe_load(text)
    return rules

"""Published settings by name: `diff_ii@cub_5shot` is the paper's, `diff_ii@cub_5shot_code` the authors' code."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import find_method


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

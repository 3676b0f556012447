"""Presets: published settings of a method on a dataset, and where each of their values stands.

`diff_ii@cub_5shot` is a paper's setting, `diff_ii@cub_5shot_code` that of its authors' code where the two disagree, any
other last part a variant. A file of `recipes/presets/` holds those of one publication: its places (table, section, or
file and lines of a commit), bases that share values, and entries, each of which stands for one preset of each of its
builders and protocols. A value that no place is named for is refused, and so is a place that is named for no value.
"""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import find_method
from diffaug_datasets.core.recipe import checked, read_mapping

STRICT = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
SETTING = "setting"  # the dataset and protocol, a value of every preset beside the recipe keys that it sets
NO_BASE = ""


class Publication(BaseModel):
    """A paper."""

    model_config = STRICT

    title: str = Field(min_length=1)
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")


class Repository(BaseModel):
    """Code at one commit."""

    model_config = STRICT

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner and name on GitHub")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")


class Where(BaseModel):
    """Where values stand: in a paper (`at`), in code (`file`, `lines`), or nowhere (`ours`, the reason for ours).

    `second_hand`: the paper was not at hand; others say that it stands there. `note`: what to know beside.
    """

    model_config = STRICT

    paper: str = ""
    at: str = ""
    second_hand: bool = False
    code: str = ""
    file: str = ""
    lines: str = Field(default="", pattern=r"^(\d+(-\d+)?(, \d+(-\d+)?)*)?$")
    ours: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> "Where":
        kinds = [bool(self.paper and self.at), bool(self.code and self.file and self.lines), bool(self.ours)]
        parts = [bool(self.paper or self.at), bool(self.code or self.file or self.lines), bool(self.ours)]
        if sum(kinds) != 1 or kinds != parts or (self.second_hand and not self.paper):
            raise ValueError("expected paper and at (and second_hand), or code, file and lines, or ours")
        return self


class Base(BaseModel):
    """Values that entries share. `from`: place -> the keys that stand there, where `*` matches any characters."""

    model_config = STRICT

    base: str = NO_BASE
    set: Mapping[str, object] = Field(default_factory=dict)
    traced: Mapping[str, tuple[str, ...]] = Field(default_factory=dict, alias="from")


class Entry(Base):
    """One preset for each of the builders and protocols; its values and places go before those of its base."""

    method: str = Field(min_length=1)
    builders: tuple[str, ...] = Field(min_length=1)
    protocols: tuple[str, ...] = ("",)
    variant: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    about: str = Field(min_length=1, description="what the setting is")


class PresetFile(BaseModel):
    """The presets of one publication."""

    model_config = STRICT

    papers: Mapping[str, Publication] = Field(default_factory=dict)
    code: Mapping[str, Repository] = Field(default_factory=dict)
    places: Mapping[str, Where] = Field(min_length=1)
    bases: Mapping[str, Base] = Field(default_factory=dict)
    presets: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> "PresetFile":
        for kind, known in (("paper", self.papers), ("code", self.code)):
            named = {getattr(place, kind) for place in self.places.values()} - {""}
            _refuse_unknown(kind, known, named)
            if unused := set(known) - named:
                raise ValueError(f"{min(unused)}: no place is in this {kind}; take it out")
        holders: Sequence[Base] = (*self.bases.values(), *self.presets)
        _refuse_unknown("base", self.bases, {one.base for one in holders} - {NO_BASE})
        for one in self.bases.values():
            self.chain(one)
        cited = {name for one in holders for name in one.traced}
        _refuse_unknown("place", self.places, cited)
        if unused := set(self.places) - cited:
            raise ValueError(f"{min(unused)}: a place where no value stands; take it out")
        return self

    def chain(self, one: Base) -> list[tuple[str, Base]]:
        """The entry or base itself, then what it is based on, by name (itself under no name)."""
        found, name = [(NO_BASE, one)], one.base
        while name:
            if name in dict(found):
                raise ValueError(f"base {name}: is based on itself; give each base another one or none")
            found.append((name, self.bases[name]))
            name = self.bases[name].base
        return found


@dataclass(frozen=True)
class Origin:
    """Where a value stands, in words. `published`: it was read in the publication itself, or in its authors' code."""

    text: str
    published: bool


@dataclass(frozen=True)
class Preset:
    """Settings of one method on one dataset.

    `config`: the name of the config that they change; `about`: what the setting is; `changes`: keys of a recipe;
    `origins`: the key of each value, such as `config.strengths`, and where it stands, `setting` first.
    """

    name: str
    config: str
    about: str
    changes: Mapping[str, object]
    origins: Mapping[str, Origin]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.name.partition("@")[0]

    @property
    def unsure(self) -> tuple[str, ...]:
        """Keys whose values are ours, or known to us at second hand alone."""
        return tuple(key for key, origin in self.origins.items() if not origin.published)

    def values(self) -> Iterator[tuple[str, object, Origin]]:
        """Key, value and place of everything that it sets; the setting's value is the config's name."""
        found = {SETTING: self.config, **dict(leaves(self.changes))}
        return ((key, found[key], origin) for key, origin in self.origins.items())


@cache
def presets() -> Mapping[str, Preset]:
    """Every shipped preset by name, publication by publication."""
    folder = files("diffaug_datasets") / "recipes" / "presets"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
    found = [preset for name in names for preset in read_presets(Path(str(folder / name)))]
    return {preset.name: preset for preset in found}


def families(method: str) -> list[list[Preset]]:
    """The presets of a method, together where they differ in dataset and protocol alone."""
    own = [preset for preset in presets().values() if preset.method == method]
    return [list(same) for _, same in groupby(own, key=lambda one: (one.about, one.changes, one.origins))]


def read_presets(path: Path) -> list[Preset]:
    """The presets of a file, in its order.

    Raises:
        RecipeError: names what the file lacks: a key, a value's place, or a value for a place.
    """
    return presets_of(read_mapping(path, "file of presets"), path.name)


def presets_of(content: Mapping[str, object], name: str) -> list[Preset]:
    """The presets of what a file holds, in its order. `name`: of the file, for messages.

    Raises:
        RecipeError: as for a file.
    """
    whole = checked(PresetFile, content, where=f"{name}: ")
    found: dict[str, Preset] = {}
    used: set[tuple[int, str]] = set()
    for entry in whole.presets:
        for preset in _expanded(whole, entry, used, name):
            if preset.name in found:
                raise RecipeError(f"{name}: {preset.name} stands there twice; take one out.")
            found[preset.name] = preset
    told = [(id(one), of, key) for of, one in _holders(whole) for keys in one.traced.values() for key in keys]
    if left := [f"{of}: {key}" for holder, of, key in told if (holder, key) not in used]:
        raise RecipeError(f"{name}: {left[0]}: a place is named for it, but it is no value; take it out.")
    return list(found.values())


def shown_value(value: object) -> str:
    """A value as a recipe has it, on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def leaves(content: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """`a.b` and value of everything inside; a list is one value."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def merged(content: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`content` with `changes` on top; mappings are merged, everything else is replaced."""
    result = dict(content)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def _expanded(content: PresetFile, entry: Entry, used: set[tuple[int, str]], file: str) -> Iterator[Preset]:
    """One preset for each builder and protocol of an entry."""
    slug = find_method(entry.method).SLUG
    chain = content.chain(entry)
    changes: dict[str, object] = {}
    for _, one in reversed(chain):
        changes = merged(changes, one.set)
    first = "_".join(filter(None, (f"{entry.method}@{entry.builders[0]}", entry.protocols[0], entry.variant)))
    origins = {}
    for key in (SETTING, *dict(leaves(changes))):
        place, holder, pattern = _place(key, chain, f"{file}: {first}")
        used.add((holder, pattern))
        origins[key] = _origin(content, content.places[place])
    for builder in entry.builders:
        for protocol in entry.protocols:
            setting = "_".join(filter(None, (builder, protocol)))
            name = "_".join(filter(None, (f"{entry.method}@{setting}", entry.variant)))
            yield Preset(name, f"{setting}_{slug}", entry.about, changes, origins)


def _place(key: str, chain: Sequence[tuple[str, Base]], where: str) -> tuple[str, int, str]:
    """The place of a value, whoever of the chain names it first, and by which pattern."""
    for _, one in chain:
        told = [(place, pattern) for place, keys in one.traced.items() for pattern in keys if fnmatchcase(key, pattern)]
        if len(told) > 1:
            raise RecipeError(f"{where}: {key}: {len(told)} places are named for it; name one under from.")
        if told:
            return told[0][0], id(one), told[0][1]
    raise RecipeError(f"{where}: {key}: nothing says where it stands; name its place under from.")


def _origin(content: PresetFile, place: Where) -> Origin:
    note = f" ({place.note})" if place.note else ""
    if place.ours:
        return Origin(f"ours: {place.ours}{note}", published=False)
    if place.code:
        at = content.code[place.code]
        return Origin(f"{at.repository} at {at.commit[:7]}, {place.file}:{place.lines}{note}", published=True)
    paper = content.papers[place.paper]
    hand = ", at second hand" if place.second_hand else ""
    text = f"{paper.title} (arXiv {paper.arxiv}), {place.at}{hand}{note}"
    return Origin(text, published=not place.second_hand)


def _holders(content: PresetFile) -> Iterator[tuple[str, Base]]:
    """Bases and entries under a name to call them by."""
    yield from ((f"base {name}", one) for name, one in content.bases.items())
    yield from ((f"{one.method}@{one.builders[0]}", one) for one in content.presets)


def _refuse_unknown(what: str, known: Mapping[str, object], named: Set[str]) -> None:
    if unknown := sorted(named - set(known)):
        raise ValueError(f"{unknown[0]}: no such {what}; expected {', '.join(known) or 'none'}")

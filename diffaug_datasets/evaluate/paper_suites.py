"""The papers' protocols as benches of the package: `diffii_rn50`, or one of its benches, `diffii_rn50@cub_5shot`.

A suite is a file of `evaluate/suites/`: what its benches share, what each has of its own, and for every value where it
stands in a paper or in its authors' code. A value that no source states is there too, since a bench needs it, with the
reason for ours. A suite without a word for one of its values is refused.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffaug_datasets.core.errors import RecipeError, one_of
from diffaug_datasets.core.recipe import checked, read_mapping
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.planning.catalogue import merged

STRICT = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
SETTING = "{setting}"
UNTRACED = ("title", "controls", "setting")  # words, and what a bench of ours always compares with
FOLDER = "suites"


class Source(BaseModel):
    """Where values stand. `of`: their keys, such as `classifier.epochs`, after an `@` a pattern of benches."""

    model_config = STRICT

    of: tuple[str, ...] = Field(min_length=1)
    where: str = Field(min_length=1, description="a paper's arXiv id and table, or a repository, commit and file")


class Choice(BaseModel):
    """Values that no source states, or that depart from it: their keys, and why they are as they are."""

    model_config = STRICT

    of: tuple[str, ...] = Field(min_length=1)
    why: str = Field(min_length=1)


class Suite(BaseModel):
    """One paper's protocol.

    `tables`: ids of `papers.paper_tables` that it stands for. `shared` and `benches`: keys of a `Bench`, where
    `classifier` is its only classifier, a whole number of `draws` the first so many, and `{setting}` in a set's name
    the bench's `setting`, by default its own name. `rows`: of the tables' rows that are no set's name, the line that
    stands for them; `missing`: the rows that no line makes, and why. `differs`: what else is not as in the paper.

    Raises:
        ValueError: a value has no source, two, or a source no value; or a bench that cannot be.
    """

    model_config = STRICT

    title: str
    paper: str
    arxiv: str = Field(pattern=r"^\d{4}\.\d{5}$")
    tables: tuple[str, ...] = ()
    shared: Mapping[str, object]
    benches: Mapping[str, Mapping[str, object]] = Field(min_length=1)
    rows: Mapping[str, str] = Field(default_factory=dict)
    missing: Mapping[str, str] = Field(default_factory=dict)
    differs: tuple[str, ...] = ()
    sources: tuple[Source, ...]
    ours: tuple[Choice, ...] = ()

    @model_validator(mode="after")
    def _every_value_has_a_source(self) -> "Suite":
        patterns = [key for source in self.sources for key in source.of] + [key for own in self.ours for key in own.of]
        unused = set(patterns)
        for name, leaf in [(bench, leaf) for bench in self.benches for leaf in self.values_of(bench)]:
            found = [pattern for pattern in patterns if _is_of(pattern, leaf, name)]
            if len(found) != 1:
                what = f"it is told {len(found)} times" if found else "nothing says where it stands"
                raise ValueError(f"{name}: {leaf}: {what}; name it once under sources or ours")
            unused -= set(found)
        if unused:
            raise ValueError(f"sources: {min(unused)} is no value of a bench; take it out")
        return self

    @cached_property
    def plans(self) -> Mapping[str, Bench]:
        """The benches by name.

        Raises:
            RecipeError: names the key that a bench cannot have.
        """
        return {name: self._bench(name) for name in self.benches}

    def values_of(self, name: str) -> list[str]:
        """The keys of a bench whose values need a source, in order: all but names of sets and controls."""
        return list(_leaves(merged(self.shared, self.benches[name])))

    def _bench(self, name: str) -> Bench:
        content = merged(self.shared, self.benches[name])
        setting = str(content.pop("setting", name))
        content["title"] = f"{self.title}: {name}"
        content["classifiers"] = [content.pop("classifier")]
        if isinstance(draws := content.get("draws"), int):
            content["draws"] = list(range(draws))
        entries = content.get("sets")
        if isinstance(entries, list):
            content["sets"] = [{**entry, "set": entry["set"].replace(SETTING, setting)} for entry in entries]
        return checked(Bench, content, where=f"{name}: ")


def suite_names() -> tuple[str, ...]:
    """Names of the shipped suites, sorted."""
    folder = files("diffaug_datasets.evaluate") / FOLDER
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


@cache
def load_suite(name: str) -> Suite:
    """A shipped suite.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in suite_names():
        raise RecipeError(f"{name!r}: no such suite; {one_of(name, suite_names())}")
    return checked(
        Suite, read_mapping(Path(str(files("diffaug_datasets.evaluate") / FOLDER / f"{name}.yaml")), "suite")
    )


def find_benches(name: str) -> Mapping[str, Bench]:
    """Of `SUITE` all benches, of `SUITE@BENCH` that one, by their whole names.

    >>> from diffaug_datasets.evaluate.paper_suites import find_benches
    >>> benches = find_benches("diffii_rn50@cub_5shot")
    >>> [entry.set for entry in benches["diffii_rn50@cub_5shot"].sets][-1]
    'diff_ii@cub_5shot'

    Raises:
        RecipeError: no such suite or bench, says which there are.
    """
    suite_name, _, wanted = name.partition("@")
    suite = load_suite(suite_name)
    if wanted and wanted not in suite.benches:
        raise RecipeError(f"{name!r}: no such bench; {suite_name} has {', '.join(suite.benches)}.")
    return {f"{suite_name}@{one}": suite.plans[one] for one in suite.benches if wanted in ("", one)}


def _leaves(content: Mapping[str, object], above: str = "") -> Iterator[str]:
    """Keys of values; a list is one value, and so are the `changes` of a set, whose `set` and `name` are names."""
    for key, value in content.items():
        place = f"{above}{key}"
        if place in UNTRACED:
            continue
        if place == "sets" and isinstance(value, list):
            for entry in value:
                yield from _leaves(
                    {k: v for k, v in entry.items() if k not in ("set", "name")}, f"sets.{entry['name']}."
                )
        elif isinstance(value, Mapping) and key != "changes":
            yield from _leaves(value, f"{place}.")
        else:
            yield place


def _is_of(pattern: str, leaf: str, bench: str) -> bool:
    keys, _, benches = pattern.partition("@")
    return fnmatchcase(leaf, keys) and fnmatchcase(bench, benches or "*")

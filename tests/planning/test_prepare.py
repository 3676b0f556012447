"""The way of a recipe to a run folder leads downward, through seven modules, and through each of them once."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import FrameType

import pytest

from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.protocols import Subset
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import Listing, SourceTable
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import Prepared, prepare, write_run
from diffaug_datasets.sources.real import RealSet

# A module is on the way if another one hands it the recipe, or what was made of the recipe so far. What it asks of such
# a value itself (`recipe.method_definition`, `table.by_class()`) is no step elsewhere. Leaves, which are handed texts,
# bytes, rows or files (identity, images, printable, errors, files, memory, rows, prompts, catalogue, shards, the files
# of models), do not count: a reader knows by their names what they give.
HANDED_ON = (Recipe, Listing, RealSet, SourceTable, Subset, PlanSpec, Plan, Prepared)
# Asked only whether a sampler can take the recipe's steps. Nothing comes back, so the way does not lead through it.
ASKED = "core.suitability"  # whether the method suits the model; it says nothing where it does
THE_METHOD = "the method"  # its module, what it shares with others in `methods/`, and `core.method.new_row`
WAY = (
    *("planning.prepare", "sources.real", "core.protocols", "core.plan", THE_METHOD),
    *("planning.prepare", "run.store"),  # `write_run`
)
ROOT = "diffaug_datasets."


class Walk:
    """A profile function that notes the modules on the way, step by step, and what the one that is asked answers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.answers: list[object] = []

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        module = _module(frame)
        if event not in ("call", "return") or not module.startswith(ROOT):
            return
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        values = [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]
        if not any(isinstance(given, HANDED_ON) for given in values) or next(_callers(frame), "") == module:
            return
        if module == ROOT + ASKED:
            self.answers += [value] if event == "return" else []
        elif event == "call":
            self.steps.append(module.removeprefix(ROOT))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _callers(frame: FrameType) -> Iterator[str]:
    """Modules of this package that lead to a frame, the nearest first; libraries in between are passed over."""
    above = frame.f_back
    while above is not None:
        if _module(above).startswith(ROOT):
            yield _module(above)
        above = above.f_back


@pytest.mark.parametrize("slug", ["genie", "txt2img", "diffii"])
def test_a_recipe_goes_downward_and_never_back(tmp_path: Path, slug: str) -> None:
    """Through seven modules; `methods._editing` and `methods._concepts`, which methods share, are leaves."""
    recipe, walk = config_recipe(f"fashion_2shot_{slug}", per_class=1, include_test=False), Walk()
    sys.setprofile(walk)
    try:
        write_run(prepare(recipe), tmp_path / "run")
    finally:
        sys.setprofile(None)
    stations = [THE_METHOD if "method" in name else name for name in walk.steps]
    assert tuple(name for name, _ in groupby(stations)) == WAY
    assert len({name for name in walk.steps if not name.startswith("methods._")}) == 7
    assert walk.answers and set(walk.answers) == {None}

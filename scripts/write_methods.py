"""Write docs/methods.md, the tables of all methods, from what their modules, presets and recipes declare.

python scripts/write_methods.py [--check]
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import diffaug_datasets
from diffaug_datasets.core.method import Method, discover_methods
from diffaug_datasets.core.method_facts import MethodFacts, method_facts
from diffaug_datasets.core.recipe import Filter, Recipe
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.presets import presets

FILE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
RECIPES = Path(diffaug_datasets.__file__).parent / "recipes"
HEAD = """# Methods

Written by `python scripts/write_methods.py` from the modules in `diffaug_datasets/methods/`; `diffaug methods NAME`
prints a method's whole page: steps, equations, parameters, presets.

| method | in config names | what it does | paper | presets | the publication |
| --- | --- | --- | --- | --- | --- |
"""
FAMILY = """
## What they are made of

Network rows: per image at the default settings (two per step with guidance), without what is learned before; `in fits`
where an image's own fit makes it. Images: those of the presets, per real image or per class. The `..._filter` lines are
recipes: a method and a rule for its images.

| method | learned before | real images per row | prompt | start | label | filter | images | network rows |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def summary(method: Method) -> str:
    """The first sentence of the module, without its title and citation."""
    first = " ".join(method.page.split("\n\n")[0].split())
    return first.partition(": ")[2].split(" (")[0].rstrip(".")


def line(cells: Sequence[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |\n"


def method_line(method: Method) -> str:
    """What a method does and how it stands to its publication."""
    count = sum(preset.method == method.NAME for preset in presets().values())
    paper = f"[{method.PAPER}](https://arxiv.org/abs/{method.PAPER})"
    return line((f"`{method.NAME}`", f"`{method.SLUG}`", summary(method), paper, count, method.PARITY))


def family_line(name: str, facts: MethodFacts, images: str) -> str:
    """What a method is made of."""
    made_of = (facts.learned, facts.real_images, facts.prompt, facts.start, facts.label, facts.filter)
    return line((f"`{name}`", *made_of, images, facts.cost))


def images(name: str) -> str:
    """How many images the presets of a method ask for: `5 or 10 per real image, 19 per class`."""
    recipes = [config_recipe(preset.name) for preset in presets().values() if preset.method == name]
    by_image = sorted({recipe.per_image for recipe in recipes if recipe.per_class is None})
    by_class = sorted({recipe.per_class for recipe in recipes if recipe.per_class is not None})
    told = [(by_image, "per real image"), (by_class, "per class")]
    return ", ".join(f"{' or '.join(f'{n:g}' for n in numbers)} {of}" for numbers, of in told if numbers) or "-"


def filtered() -> Iterator[str]:
    """The shipped recipes that are a method and a filter."""
    for path in sorted(RECIPES.glob("*_filter.yaml")):
        recipe = Recipe.from_yaml(path)
        rule = "; ".join(_rule(one, recipe) for one in recipe.filters)
        made_of = replace(method_facts(recipe.method_definition), filter=rule)
        yield family_line(path.stem, made_of, f"{recipe.per_class} per class")


def _rule(one: Filter, recipe: Recipe) -> str:
    if one.equals_label:
        return "nearest to the class's real images" if recipe.scores.judge == "shots" else "judged as its class"
    name = one.column.replace("_", " ")
    if one.lowest:
        return f"{name} not among the lowest {one.lowest:.0%}"
    bounds = ((one.minimum, "more"), (one.maximum, "less"))
    return f"{name} of " + " and ".join(f"{value:g} or {side}" for value, side in bounds if value is not None)


def document() -> str:
    """The whole file."""
    methods = [discover_methods()[name] for name in sorted(discover_methods())]
    made_of = "".join(family_line(method.NAME, method_facts(method), images(method.NAME)) for method in methods)
    return HEAD + "".join(map(method_line, methods)) + FAMILY + made_of + "".join(filtered())


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the file is not current")
    if parser.parse_args().check:
        raise SystemExit(FILE.read_text(encoding="utf-8") != document())
    FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()

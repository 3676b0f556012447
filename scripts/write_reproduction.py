"""Write docs/reproduction.md, what it takes to run the papers' protocols and what the papers print, from the suites.

python scripts/write_reproduction.py [--check]
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.method_facts import method_facts
from diffaug_datasets.core.protocols import long_tail_counts, parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.evaluate.paper_suites import Suite, load_suite, suite_names
from diffaug_datasets.evaluate.papers import NO_COMPARISON, PaperTable, paper_tables
from diffaug_datasets.evaluate.suite import Bench, Network
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.price import FLOP_PER_PARAMETER, GPU_FLOPS
from diffaug_datasets.planning.price import Network as UNet
from diffaug_datasets.sources.real import builder_facts

FILE = Path(__file__).resolve().parents[1] / "docs" / "reproduction.md"
HEAD = f"""# Reproducing the papers' tables

Written by `python scripts/write_reproduction.py` from `diffaug_datasets/evaluate/suites/` and `published.yaml` beside
it. {NO_COMPARISON}

No suite was run here at full size: the data and weights below are not in the package. A test runs each one on two
classes of drawn pictures, with tiny networks (`tests/evaluate/test_suites_run.py`).

A suite is a paper's protocol as far as a source states it; each of its values says where it stands, or why it is ours.
`SUITE@BENCH` is one dataset and protocol of it. The costs are by formula, not measured: real images of a draw from the
datasets' official counts; images of all sets and draws, without those of the control `txt2img`; rows of the U-Net that
these take (two per step with guidance), without what is learned before, which `diffaug plan SET` prices; hours of one
GPU at {GPU_FLOPS / 1e12:.0f} TFLOP/s; steps of the classifier over all lines, seeds and draws.
"""
MILLION = 1e6


class Size(NamedTuple):
    """A bench by formula. `made`: synthetic images of all sets and draws, None where it hangs on class counts.

    `rows`: of the U-Net; `hours`: of one GPU for them; `steps`: of the optimiser, 0 for probes.
    """

    draws: int
    real: int
    made: int | None
    rows: float
    hours: float
    steps: int


def size_of(bench: Bench) -> Size:
    """What a bench takes."""
    recipes = [config_recipe(entry.set, **entry.changes) for entry in bench.sets]
    real = real_images(recipes[0])
    counts = [images_of(recipe) for recipe in recipes]
    made = None if None in counts else sum(count or 0 for count in counts) * len(bench.draws)
    rows = [
        (count or 0) * len(bench.draws) * rows_per_image(recipe) for count, recipe in zip(counts, recipes, strict=True)
    ]
    hours = sum(n * seconds_per_row(recipe) for n, recipe in zip(rows, recipes, strict=True)) / 3600
    (classifier,) = bench.classifiers
    alone = len(recipes) * ("synthetic_only" in bench.controls)
    fixed = len(set(bench.controls) - {"synthetic_only", "zero_shot"})
    lines = len(recipes) + alone + fixed + len(bench.baselines) + len(bench.more_real)
    each = classifier.of_draw(real).steps if isinstance(classifier, Network) else 0
    return Size(len(bench.draws), real, made, sum(rows), hours, each * lines * len(bench.draws) * len(bench.seeds))


def real_images(recipe: Recipe) -> int:
    """Real images of a draw, by the official counts of the dataset."""
    protocol, official = parse_protocol(recipe.protocol), builder_facts(recipe.builder).official
    train = official["train"] if "train" in official else official["total"] // 2
    if protocol.kind == "shots":
        return protocol.value * classes_of(recipe)
    if protocol.kind == "long_tail":
        return sum(long_tail_counts(train, official["classes"], protocol.value))
    return train if protocol.kind == "full" else round(train * protocol.value / 100)


def classes_of(recipe: Recipe) -> int:
    """Classes of a draw."""
    return parse_protocol(recipe.protocol).ways or builder_facts(recipe.builder).official["classes"]


def images_of(recipe: Recipe) -> int | None:
    """Synthetic images of a draw; None where only some classes get any."""
    if recipe.targets != "all":
        return None
    return classes_of(recipe) * recipe.per_class if recipe.per_class else round(real_images(recipe) * recipe.per_image)


def rows_per_image(recipe: Recipe) -> float:
    """U-Net rows of an image, the mean over a small invented plan."""
    names = tuple(f"class {i}" for i in range(4))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i in range(4) for j in range(4))
    images = SourceTable("invented", "train", names, names, "", sources)
    pool = PoolTable.of(f"{i:02x}" * 32 for i in range(100))
    spec = PlanSpec(seed=0, backbone="", per_image=5.0, suffixes=("in the sun.",), pool=pool)
    method, config = recipe.method_definition, recipe.method_config
    try:
        counts = [method.evaluations(config, row) for row in method.plan(config, images, spec)]
    except DiffAugError:
        return 0.0
    return sum(counts) / len(counts)


def seconds_per_row(recipe: Recipe) -> float:
    """Of one GPU, for Stable Diffusion at the size of the recipe."""
    network = UNet()
    height, width = (side or network.side * network.factor for side in (recipe.backbone.height, recipe.backbone.width))
    positions = (height // network.factor) * (width // network.factor)
    return FLOP_PER_PARAMETER * network.parameters * positions / GPU_FLOPS


def line(cells: Sequence[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |\n"


def heading(cells: Sequence[str]) -> str:
    """The first two rows of a table."""
    return line(cells) + line(["---"] * len(cells))


def section(name: str, suite: Suite) -> Iterator[str]:
    """What a suite needs, costs and stands for."""
    benches = suite.plans
    recipes = [config_recipe(entry.set, **entry.changes) for bench in benches.values() for entry in bench.sets]
    tables = [paper_tables()[table] for table in suite.tables]
    yield f"\n## {name}\n\n{suite.title} ([{suite.paper}](https://arxiv.org/abs/{suite.arxiv})).\n\n"
    first = next(iter(benches))
    yield f"- Command: `diffaug bench {name}`, or one of its benches: `diffaug bench {name}@{first}`.\n"
    for builder in dict.fromkeys(bench.test.builder for bench in benches.values() if bench.test):
        yield f"- Tested on {builder_facts(builder).title}, whose copy is given with `--test-source FOLDER`.\n"
    yield f"- Stands for: {', '.join(map(link, tables)) or 'no table that was at hand'}.\n"
    yield f"- Data: {'; '.join(data(recipes))}.\n"
    yield f"- Weights: {', '.join(f'`{one}`' for one in weights(benches, recipes))}.\n"
    learned = sorted({r.method: method_facts(r.method_definition).learned for r in recipes}.items())
    told = [f"{words} ({method})" for method, words in learned if words != "-"]
    yield f"- Learned before images are made: {', '.join(told) or 'nothing'}.\n"
    for words in suite.differs:
        yield f"- Differs: {words}.\n"
    for choice in suite.ours:
        yield f"- Ours: {', '.join(f'`{key}`' for key in choice.of)}: {choice.why}.\n"
    for row, words in suite.missing.items():
        yield f"- No line for {row}: {words}.\n"
    yield "\n" + heading(
        ("bench", "draws", "real images", "synthetic images", "U-Net rows", "GPU hours", "classifier steps")
    )
    for bench_name, bench in benches.items():
        yield line((f"`{bench_name}`", *size_cells(size_of(bench))))


def size_cells(size: Size) -> tuple[str, ...]:
    """The size of a bench as cells of a table."""
    made = "by class counts" if size.made is None else f"{size.made:,}"
    rows = f"{size.rows / MILLION:,.2f} M" if size.rows else "-"
    hours = "-" if not size.rows else "< 1" if size.hours < 1 else f"{size.hours:,.0f}"
    return f"{size.draws:,}", f"{size.real:,}", made, rows, hours, f"{size.steps:,}" if size.steps else "-"


def link(table: PaperTable) -> str:
    """To a table below."""
    return f"[{caption(table)}](#{table.id})"


def caption(table: PaperTable) -> str:
    """Its paper and number."""
    return f"{table.paper}, table {table.number}" if table.number else f"{table.paper}, second hand: {table.id}"


def data(recipes: Sequence[Recipe]) -> Iterator[str]:
    """The datasets of a suite, with their homes."""
    for builder in dict.fromkeys(recipe.builder for recipe in recipes):
        facts = builder_facts(builder)
        yield f"[{facts.title}]({facts.homepage})" if facts.homepage else facts.title


def weights(benches: dict[str, Bench], recipes: Sequence[Recipe]) -> list[str]:
    """The models of a suite: diffusion models, encoders, classifiers."""
    found = {recipe.backbone.id: None for recipe in recipes}
    found |= {one: None for r in recipes for one in (r.scores.encoder, r.method_config.requirements.encoder) if one}
    for bench in benches.values():
        (classifier,) = bench.classifiers
        learned = [classifier.model] if isinstance(classifier, Network) else bench.encoders
        found |= dict.fromkeys(learned)
    return [one for one in found if one != "small_resnet"]


def printed(table: PaperTable) -> Iterator[str]:
    """A table as the paper prints it, its doubts below."""
    yield f'\n### <a id="{table.id}"></a>{caption(table)}\n\n'
    yield "; ".join(filter(None, (table.model, table.metric, table.note))) + ".\n"
    if table.secondary:
        yield "Read at second hand, not in the paper.\n"
    yield "\n" + heading(("", *table.columns))
    marks = {(mark.row, mark.column): number for number, mark in enumerate(table.marks, 1)}
    digits = [max(map(decimals, column)) for column in zip(*table.rows.values(), strict=True)]
    for row, values in table.rows.items():
        spreads = table.plus_minus.get(row)
        cells = []
        for place, (column, value) in enumerate(zip(table.columns, values, strict=True)):
            spread = f" ± {spreads[place]:g}" if spreads else ""
            mark = f" [{marks[row, column]}]" if (row, column) in marks else ""
            cells.append(f"{value:.{digits[place]}f}{spread}{mark}")
        yield line((row, *cells))
    for number, mark in enumerate(table.marks, 1):
        yield f"\n[{number}] {mark.row}, {mark.column}: {mark.mark}.\n"


def decimals(value: float) -> int:
    """Digits after the point that a number has."""
    return len(str(value).partition(".")[2].rstrip("0"))


def document() -> str:
    """The whole file."""
    suites = "".join(part for name in suite_names() for part in section(name, load_suite(name)))
    tables = "".join(part for table in paper_tables().values() for part in printed(table))
    return f"{HEAD}{suites}\n## What the papers print\n\n{NO_COMPARISON}\n{tables}"


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the file is not current")
    if parser.parse_args().check:
        raise SystemExit(FILE.read_text(encoding="utf-8") != document())
    FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()

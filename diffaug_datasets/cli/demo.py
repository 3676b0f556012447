"""The whole way on embedded data: several small runs, a report over them, and the line that loads one."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffaug_datasets.cli.planning import default_folder, print_price, write_checked
from diffaug_datasets.cli.running import finish, print_summary
from diffaug_datasets.cli.screen import say
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.data.catalogue import config_recipe
from diffaug_datasets.data.prepare import prepare
from diffaug_datasets.data.price import price
from diffaug_datasets.run.execute import over_budget
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


@dataclass(frozen=True)
class Part:
    """One run of the demo: a config name and what it changes."""

    config: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PARTS = (
    Part("fashion_5shot_diffii"),
    Part("fashion_5shot_txt2img", {"per_class": 8}),
    Part("fashion_5shot_img2img", {"per_class": 8}),
    Part("fashion_5shot_genie", {"per_class": 8}),
    Part("fashion_5shot_genieada", {"per_class": 4}),
)
FEW = {"num_inference_steps": 8}
HASTY = {**FEW, "inversion_steps": 8, "concepts": {"steps": 10}}
SHORT = (
    Part("fashion_5shot_diffii", {"per_class": 2, "config": HASTY, "include_test": False}),
    Part("fashion_5shot_genie", {"per_class": 2, "config": FEW, "include_test": False}),
)
ONE_WORKER = 100  # rows up to which a second process costs more time than it saves


def run_demo(folder: Path, short: bool) -> None:
    """Plan, generate, report, load."""
    from diffaug_datasets.evaluate.report import write_report

    parts = SHORT if short else PARTS
    runs = [_made(part, folder, f"[{i}/{len(parts)}]") for i, part in enumerate(parts, 1)]
    say("writing the report")
    page = write_report(runs, folder / "report.html")
    rows = _loaded(runs[0].folder)
    say()
    say(f"report page: {page}")
    say("load the first run in Python:")
    say("    from datasets import load_dataset")
    say(f'    dataset = load_dataset("{runs[0].folder}")  # {rows}')


def _made(part: Part, folder: Path, number: str) -> Run:
    prepared = prepare(config_recipe(part.config, **part.changes))
    place = default_folder(prepared, folder)
    say(f"{number} {part.config}: {prepared.recipe.module.TITLE}")
    quote = price(prepared, place)
    print_price(quote)
    run = write_checked(prepared, place, quote)
    done = finish(run, WorkerOptions(), 0 if quote.rows > ONE_WORKER else 1)
    if done is None:
        raise RunError(f"{place}: nothing was assembled; run the demo again.")
    print_summary(run, done)
    if trouble := over_budget(run, done):
        raise RunError(trouble)
    return run


def _loaded(folder: Path) -> str:
    """What plain `load_dataset` finds in a run folder."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        found: Mapping[str, Sequence[Any]] = datasets.load_dataset(str(folder), cache_dir=cache)
        return ", ".join(f"{len(split)} {name} rows" for name, split in found.items())

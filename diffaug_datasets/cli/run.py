"""The verb `run`: plan, generate and report in one go, stopped and repeated at will."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffaug_datasets.cli.look import PAGE, open_page
from diffaug_datasets.cli.make import changes_of, print_price, print_summary, source_lines
from diffaug_datasets.cli.screen import note, say, say_json, waiting, warn_of_patterns
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.planning.new_run import PricedPlan, find_recipe, price_plan
from diffaug_datasets.release.places import is_run
from diffaug_datasets.report.page import write_report
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.engines import accelerate
from diffaug_datasets.run.execute import emptied, generate, made_before, over_budget
from diffaug_datasets.run.reuse import refusals
from diffaug_datasets.run.store import RUNS, Run
from diffaug_datasets.sources.real import OWN_IMAGES, UNKNOWN


@dataclass(frozen=True)
class RunOptions:
    """How a run is worked on; see the options of `generate`."""

    workers: int = 0
    device: str = "auto"
    fits_from: tuple[Path, ...] = ()
    allow_mixed_stack: bool = False
    open_page: bool = False
    as_json: bool = False


def run_all(name: str, folder: str | None, source: str | None, words: Sequence[str], options: RunOptions) -> int:
    """Make everything that is missing; 1 where more rows failed than the recipe accepts."""
    if accelerate.launched():
        raise RunError("run: is for one process; under `accelerate launch`, plan first, then generate and report.")
    run, done = _opened(name, folder, source, words, options.as_json)
    was_done = done is not None
    if done is None:
        for sentence in refusals(run, options.fits_from):
            note(f"note: {sentence}")
        done = generate(
            run,
            workers=options.workers,
            device=options.device,
            fits_from=options.fits_from,
            allow_mixed_stack=options.allow_mixed_stack,
            progress=sys.stderr if options.as_json else sys.stdout,
        )
    page = run.folder / PAGE
    if not was_done or not page.is_file():
        run.fetch_all()
        write_report([run], page)
        run.send(PAGE)
    trouble = over_budget(run, done)
    if options.as_json:
        _say_facts(run, done, page, was_done)
    else:
        if was_done:
            say(f"{run.where}: is finished already, nothing was left to do")
        print_summary(run, done)
        if missing := unlicensed(run):
            say(missing)
        say(f"report page: {page}")
        if warning := emptied(done):
            say(f"warning: {warning}")
        if not trouble:
            say(f"next: diffaug export {run.where} FOLDER, or diffaug publish {run.where} TARGET")
    if run.where == str(run.folder):
        warn_of_patterns(run.folder)
    if trouble:
        note(f"diffaug: {trouble}")
    if options.open_page:
        open_page(page)
    return 1 if trouble else 0


def unlicensed(run: Run) -> str:
    """A line where images of one's own state no licence, which publishing will ask for; else ''."""
    recipe = run.recipe
    if recipe.builder != OWN_IMAGES or recipe.licence not in (None, UNKNOWN):
        return ""
    return "licence: not stated, so the images cannot be published; set `licence:` in the recipe where they are yours"


def _opened(
    name: str, folder: str | None, source: str | None, words: Sequence[str], quiet: bool
) -> tuple[Run, Assembled | None]:
    """The run that a name or a folder means, planned where it is not there yet, and what it holds if it is whole."""
    if is_run(name):
        options = {"--run": folder, "--source": source, "--set": words}
        if given := next((key for key, value in options.items() if value), ""):
            raise RunError(f"{given}: {name} is planned already and keeps its recipe; leave it out, or give a recipe.")
        run = Run.open(name)
    else:
        recipe = find_recipe(name, changes_of(words, source))
        with waiting(f"reading the real images of {recipe.builder}"):
            drawn = price_plan(recipe, folder)
        there = None if folder else planned_before(drawn)
        if there is None and not (drawn.folder / "plan.json").exists() and not quiet:
            print_price(drawn.price, source_lines(drawn), in_store=drawn.address is not None)
        run = there or drawn.write()
    done = made_before(run)
    if done is None and not quiet:
        say(f"{run.plan.header.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}, in {run.where}")
    return run, done


def planned_before(drawn: PricedPlan) -> Run | None:
    """A run folder of the same plan under `runs`, whatever it is called; None where the usual one is there or none."""
    if (drawn.folder / "plan.json").exists():
        return None
    for path in sorted(RUNS.glob("*/plan.json")):
        try:
            plan_id = json.loads(path.read_text(encoding="utf-8")).get("plan_id")
        except (OSError, ValueError, AttributeError):  # not ours, or not whole
            continue
        if plan_id == drawn.prepared.plan.id:
            return Run.open(path.parent)
    return None


def _say_facts(run: Run, done: Assembled, page: Path, was_done: bool) -> None:
    counts = done.counts
    say_json(
        {
            "name": done.name,
            "plan_id": done.plan_id,
            "run": run.where,
            "report": str(page),
            "was_finished": was_done,
            "written": sum(count.written for count in counts),
            "failed": sum(count.failed for count in counts),
            "kept": sum(count.kept for count in counts),
            "shown": done.shown.facts() if done.shown else None,
        }
    )

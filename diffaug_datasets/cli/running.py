"""Verbs that make something: fits, images, prepared datasets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffaug_datasets.cli.screen import note, say, warn_of_signs
from diffaug_datasets.run.adoption import refusals
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.engines import accelerated
from diffaug_datasets.run.execute import emptied, execute, over_budget
from diffaug_datasets.run.progress import clock, following
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


def leads() -> bool:
    """Whether this process prints: the only one, or the first under `accelerate launch`."""
    return not accelerated.launched() or accelerated.rank() == 0


def run_fits(folder: Path, workers: int, options: WorkerOptions) -> None:
    """Make the fits of a run and stop."""
    run = Run.open(folder)
    if leads():
        say(f"{run.plan.header.name}: {len(run.plan.fits)} fits, for {len(run.plan.rows)} images later")
        _say_refusals(run, options)
    finish(run, replace(options, only_fits=True), workers)
    if leads():
        say(f"{folder}: all fits are there; next: diffaug generate {folder}")


def run_generate(folder: Path, workers: int, options: WorkerOptions) -> int:
    """Make what a run lacks; 1 where more rows failed than its recipe accepts."""
    run = Run.open(folder)
    if leads():
        say(f"{run.plan.header.name}: {len(run.plan.rows)} images to have, plan {run.plan.id[:16]}")
        _say_refusals(run, options)
    done = finish(run, options, workers)
    if done is None or not leads():
        return 0
    print_summary(run, done)
    warn_of_signs(folder)
    if warning := emptied(done):
        say(f"warning: {warning}")
    if trouble := over_budget(run, done):
        note(f"diffaug: {trouble}")
        return 1
    say(f"next: diffaug report {folder}")
    return 0


def _say_refusals(run: Run, options: WorkerOptions) -> None:
    for sentence in refusals(run, options.fits_from):
        say(f"note: {sentence}")


def finish(run: Run, options: WorkerOptions, workers: int) -> Assembled | None:
    """Execute a run and show how far it is."""
    if not leads():
        return execute(run, options, workers)
    with following(run) as tick:
        return execute(run, options, workers, tick)


def print_summary(run: Run, done: Assembled) -> None:
    """What came of a run, in two lines."""
    written, failed, kept = (sum(getattr(c, key) for c in done.counts) for key in ("written", "failed", "kept"))
    say(f"{done.name}: {written} images written, {failed} failed, {kept} kept, {clock(done.seconds)} of work")
    say(f"run folder: {run.folder}")


def run_build(name: str, source: str | None, folder: Path | None, workers: int, device: str) -> None:
    """Plan, generate and prepare a config name through its `datasets` builder."""
    from diffaug_datasets.data.builder import load_builder

    builder = load_builder(name, source=source, run_dir=folder, workers=workers, device=device)
    say(f"{name}: {len(builder.run.plan.rows)} images to have, plan {builder.run.plan.id[:16]}")
    builder.download_and_prepare()
    splits: dict[str, Any] = builder.info.splits or {}
    rows = ", ".join(f"{split.num_examples} {name} rows" for name, split in splits.items())
    say(f"{name}: prepared, {rows}, in {builder.cache_dir}")
    say(f"run folder: {builder.run.folder}")

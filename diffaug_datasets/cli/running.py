"""Verbs that make something: fits, images, prepared datasets."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffaug_datasets.cli.screen import clock, following, note, say
from diffaug_datasets.run.adoption import refusals
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.run.engines import accelerated
from diffaug_datasets.run.execute import emptied, execute, over_budget
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
    with _ticking(builder.run):
        builder.download_and_prepare()
    splits: dict[str, Any] = builder.info.splits or {}
    rows = ", ".join(f"{split.num_examples} {name} rows" for name, split in splits.items())
    say(f"{name}: prepared, {rows}, in {builder.cache_dir}")
    say(f"run folder: {builder.run.folder}")


@contextmanager
def _ticking(run: Run) -> Iterator[None]:
    """Progress beside a call that knows nothing of it."""
    over = threading.Event()
    with following(run) as tick:
        watcher = threading.Thread(target=_watch, args=(over, tick), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _watch(over: threading.Event, tick: Callable[[], None]) -> None:
    while not over.wait(0.2):
        tick()
    tick()

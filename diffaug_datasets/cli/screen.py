"""What a person sees: aligned lines, JSON, and the progress of a run (a bar on a terminal, plain lines elsewhere)."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffaug_datasets.cli.terminal import note, say
from diffaug_datasets.core.printable import printable
from diffaug_datasets.run.progress import Progress
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Pace", "clock", "following", "note", "on_terminal", "say", "say_facts", "say_json", "say_table", "waiting"]
LINE_SECONDS = 2.0
QUIET_SECONDS = 20.0


def say_json(value: Any) -> None:
    """A value as JSON; what JSON does not know is written as text."""
    say(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def say_facts(facts: Mapping[str, str]) -> None:
    """`name   value`, the values below one another."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}")


def say_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last one is left alone."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        say("  ".join(cells).rstrip())


def on_terminal() -> bool:
    """Whether standard output is a terminal that can redraw a line."""
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def waiting(text: str) -> "AbstractContextManager[Any]":
    """A spinner while something takes long, on a terminal."""
    if not on_terminal():
        return nullcontext()
    from rich.console import Console

    return Console().status(printable(text))


def clock(seconds: float) -> str:
    """`0:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Pace:
    """Counts what a run's events tell: images done, failed, a second; finished fits; the last training step."""

    progress: Progress
    total: int
    before: int
    fits: int
    fits_done: int
    failed: int = 0
    first_image: float = 0.0
    fit_names: frozenset[str] = frozenset()
    changed: bool = False

    @classmethod
    def of(cls, run: Run) -> "Pace":
        """From where the run stands now."""
        done = [receipt for shard in run.plan.shards() if (receipt := run.receipt(shard.name))]
        names = frozenset(unit.name for unit in run.plan.fits)
        return cls(
            Progress.from_now(run),
            total=len(run.plan.rows),
            before=sum(r.rows + len(r.failed) for r in done),
            fits=len(names),
            fits_done=sum(run.receipt(name) is not None for name in names),
            failed=sum(len(r.failed) for r in done),
            fit_names=names,
        )

    def poll(self) -> None:
        """Take in what is new."""
        events = self.progress.poll()
        self.changed = bool(events)
        for event in events:
            kind, is_fit = event.get("event"), event.get("unit") in self.fit_names
            self.fits_done += kind == "done" and is_fit
            self.failed += int(event["failed"]) if kind == "batch" else 0
            if kind == "start" and not is_fit and not self.first_image:
                self.first_image = time.monotonic()

    @property
    def done(self) -> int:
        """Rows that are written or failed."""
        return min(self.total, self.before + self.progress.rows)

    @property
    def rate(self) -> float:
        """Images a second since the first one was begun here."""
        return self.progress.rows / max(time.monotonic() - self.first_image, 1e-6) if self.first_image else 0.0

    def text(self) -> str:
        """`12.3 images/s, ETA 0:42, 0 failed`, or where the fits are."""
        if self.fits_done < self.fits and not self.progress.rows:
            step = f"; {self.progress.fit}" if self.progress.fit else ""
            return f"fits {self.fits_done}/{self.fits}{step}"
        if not self.rate:
            return f"getting ready, {self.failed} failed"
        return f"{self.rate:.1f} images/s, ETA {clock((self.total - self.done) / self.rate)}, {self.failed} failed"


@dataclass
class _Lines:
    """A line where something has happened, at most one in two seconds, and a sign of life in between."""

    pace: Pace
    last: float = field(default_factory=time.monotonic)
    news: bool = False

    def __call__(self) -> None:
        self.pace.poll()
        self.news |= self.pace.changed
        age = time.monotonic() - self.last
        finished = self.pace.changed and self.pace.done == self.pace.total
        if finished or age >= (LINE_SECONDS if self.news else QUIET_SECONDS):
            self.last, self.news = time.monotonic(), False
            say(f"  {self.pace.done}/{self.pace.total} images, {self.pace.text()}")


@contextmanager
def following(run: Run) -> Iterator[Callable[[], None]]:
    """A function to call a few times a second while a run is worked on; it shows how far that is."""
    if not on_terminal():
        yield _Lines(Pace.of(run))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    pace = Pace.of(run)
    with Bars(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)) as bars:
        task = bars.add_task("starting", total=pace.total, completed=pace.done)

        def tick() -> None:
            pace.poll()
            bars.update(task, completed=pace.done, description=printable(pace.text()))

        yield tick

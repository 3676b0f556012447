"""How far a run is: read from receipts and events, by any process, and shown while it goes on.

A bar on a terminal and in a notebook, plain lines elsewhere. Events are written by several processes and machines, any
of which may die while it writes, so a line that is no event counts for nothing.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from diffaug_datasets.core.errors import RunError, printable
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.store import Run

LINE_SECONDS = 2.0
QUIET_SECONDS = 20.0
POLL_BYTES = 1 << 20
EVENTS: dict[str, dict[str, type]] = {
    "start": {"unit": str},
    "batch": {"unit": str, "rows": int, "failed": int},
    "done": {"unit": str, "rows": int, "failed": int},
    "fit": {"unit": str, "step": int, "total": int},
}


@dataclass(frozen=True)
class Status:
    """Counts of units and rows, computed from receipts; `held` units are being worked on now, None if unknown."""

    name: str
    plan_id: str
    fits_done: int
    fits: int
    shards_done: int
    shards: int
    rows_written: int
    rows_failed: int
    rows: int
    held: tuple[str, ...] | None
    finished: bool
    rows_per_second: float | None
    reasons: dict[str, int]


def status(run: Run) -> Status:
    """The state of a run folder, from another process if need be."""
    fits = [run.receipt(unit.name) for unit in run.plan.fits]
    shards = run.plan.shards()
    done = [r for shard in shards if (r := run.receipt(shard.name))]
    names = [unit.name for _, units in run.units() for unit in units]
    held = [(name, run.held(name)) for name in names if run.receipt(name) is None]
    written, seconds = sum(r.rows for r in done), sum(r.seconds for r in done)
    failed = [row for r in done for row in r.failed]
    reasons = [row.reason for row in failed]
    return Status(
        name=run.plan.header.name,
        plan_id=run.plan.id,
        fits_done=sum(r is not None for r in fits),
        fits=len(fits),
        shards_done=len(done),
        shards=len(shards),
        rows_written=written,
        rows_failed=len(failed),
        rows=len(run.plan.rows),
        held=None if any(works is None for _, works in held) else tuple(name for name, works in held if works),
        finished=_is_finished(run),
        rows_per_second=written / seconds if seconds else None,
        reasons={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
    )


def _is_finished(run: Run) -> bool:
    try:
        return finished(run) is not None
    except RunError:  # damaged: `generate` writes it again
        return False


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl: a unit is begun or done, a batch of it is made, or a fit has taken a step.

    `rows`, `failed`: images of the batch or of the whole unit. `loss` is None where the step overflowed.
    """

    kind: str
    unit: str
    rows: int = 0
    failed: int = 0
    step: int = 0
    total: int = 0
    loss: float | None = None


def read_event(line: bytes) -> Event | None:
    """The event of a line; None for any other line, torn or foreign."""
    try:
        content = json.loads(line)
        keys = EVENTS[content["event"]]
        if not all(isinstance(content[key], kind) for key, kind in keys.items()):
            return None
        loss = float(content["loss"]) if content["event"] == "fit" and content["loss"] is not None else None
        return Event(content["event"], loss=loss, **{key: content[key] for key in keys})
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


@dataclass
class Progress:
    """Follows events.jsonl from where it stood; `poll` returns what is new."""

    path: Path
    position: int = 0
    rows: int = 0
    fit: str = ""
    shards: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_now(cls, run: Run) -> "Progress":
        """Ignore what happened before."""
        path = run.folder / "events.jsonl"
        return cls(path, path.stat().st_size if path.exists() else 0)

    def poll(self) -> list[Event]:
        """Events since the last call; a line that is still being written waits for the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            if self.path.stat().st_size < self.position:  # somebody cut it
                self.position = 0
            file.seek(self.position)
            text = file.read(POLL_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        if not whole and len(text) == POLL_BYTES:  # no event is so long
            whole = text
        self.position += len(whole)
        events = [event for line in whole.split(b"\n") if (event := read_event(line))]
        for event in events:
            self._count(event)
        return events

    def _count(self, event: Event) -> None:
        if event.kind == "batch":
            self.shards[event.unit] = self.shards.get(event.unit, 0) + event.rows + event.failed
        elif event.kind == "done" and event.unit in self.shards:  # batches may have gone lost in torn lines
            self.shards[event.unit] = event.rows + event.failed
        elif event.kind == "start":
            self.shards.pop(event.unit, None)
        elif event.kind == "fit":
            loss = "overflowed, step left out" if event.loss is None else f"loss {event.loss:.4f}"
            self.fit = f"{event.unit} {event.step}/{event.total} {loss}"
        self.rows = sum(self.shards.values())


def clock(seconds: float) -> str:
    """`0:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Pace:
    """Counts what a run's events tell: images done, failed and per second; finished fits; the last training step."""

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
            is_fit = event.unit in self.fit_names
            self.fits_done += event.kind == "done" and is_fit
            self.failed += event.failed if event.kind == "batch" else 0
            if event.kind == "start" and not is_fit and not self.first_image:
                self.first_image = time.monotonic()

    @property
    def done(self) -> int:
        """Rows that are written or failed."""
        return min(self.total, self.before + self.progress.rows)

    @property
    def rate(self) -> float:
        """Images per second since the first one was begun here."""
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
    out: TextIO
    last: float = field(default_factory=time.monotonic)
    news: bool = False

    def __call__(self) -> None:
        self.pace.poll()
        self.news |= self.pace.changed
        age = time.monotonic() - self.last
        finished = self.pace.changed and self.pace.done == self.pace.total
        if finished or age >= (LINE_SECONDS if self.news else QUIET_SECONDS):
            self.last, self.news = time.monotonic(), False
            self.out.write(printable(f"  {self.pace.done}/{self.pace.total} images, {self.pace.text()}") + "\n")
            self.out.flush()


def on_terminal(out: TextIO | None) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return out is not None and out.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def following(run: Run, out: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """A function to call a few times a second while a run is worked on; it shows how far that is.

    `out`: standard output, or the stream to show it on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    stream = sys.stdout if out is None else out
    console = Console(file=stream)
    if stream is None:
        yield lambda: None
        return
    if not (on_terminal(stream) or (console.is_jupyter and find_spec("ipywidgets"))):
        yield _Lines(Pace.of(run), stream)
        return
    pace = Pace.of(run)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("starting", total=pace.total, completed=pace.done)

        def on_progress() -> None:
            pace.poll()
            bars.update(task, completed=pace.done, description=printable(pace.text()))

        yield on_progress

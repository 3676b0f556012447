"""How far a run is: read from receipts and events, by any process, and shown while it goes on.

A bar on a terminal and in a notebook, plain lines elsewhere. Events are written by several processes and machines, any
of which may die while it writes, so a line that is no event counts for nothing.
"""

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import TextIO

from diffaug_datasets.core.errors import RunError, printable
from diffaug_datasets.run.assembly import Assembled, finished
from diffaug_datasets.run.leases import all_holders
from diffaug_datasets.run.shown import Shown, percent
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.run.work import unit_work

LINE_SECONDS = 2.0
QUIET_SECONDS = 20.0
NEWS_SECONDS, LONGEST_NEWS = 15.0, 120.0  # between two looks at what others have finished elsewhere: a listing each
NEWS_SHARE = 20  # of the time since the first one, which the next one waits
POLL_BYTES = 1 << 20
SCALE = 10_000  # of the bar
LATE = 3  # times what such a unit usually takes
EVENTS: dict[str, dict[str, type]] = {
    "start": {"unit": str},
    "loaded": {"unit": str},
    "batch": {"unit": str, "rows": int, "failed": int},
    "done": {"unit": str, "rows": int, "failed": int},
    "fit": {"unit": str, "step": int, "total": int},
}


@dataclass(frozen=True)
class Work:
    """A unit that somebody holds: `host` and `pid` of the worker.

    `seconds`: for how long, as the lease's own beats count them, so without any clock; `silent`: seconds since the last
    sign, by the clock of the place and of this machine. `is_late`: longer than three times what such units took.
    """

    unit: str
    host: str
    pid: int
    seconds: float
    silent: float
    is_silent: bool
    is_late: bool


@dataclass(frozen=True)
class Status:
    """Counts of units and rows, computed from receipts; `held` units seem to be worked on now, `work` says by whom.

    `rows_per_second`: of one worker. `seconds_left`: of the images, at the pace of the workers that give a sign; None
    where nothing is known of it. `fits_seconds_left`: of the fits, where some are missing and one is done. `shown`: how
    often the images of a finished run show their class. `unfinished`: images in shards that are not finished, as far as
    this machine saw them made; a shard that was stopped is made anew.
    """

    name: str
    plan_id: str
    fits_done: int
    fits: int
    shards_done: int
    shards: int
    rows_written: int
    rows_failed: int
    rows: int
    held: tuple[str, ...]
    finished: bool
    rows_per_second: float | None
    reasons: dict[str, int]
    shown: Shown | None = None
    work: tuple[Work, ...] = ()
    seconds_left: float | None = None
    unfinished: int = 0
    fits_seconds_left: float | None = None

    @property
    def lively(self) -> int:
        """Workers that give a sign."""
        return len({(one.host, one.pid) for one in self.work if not one.is_silent})


def status(run: Run) -> Status:
    """The state of a run, from any process or machine that has it in reach: receipts, then leases."""
    run.refresh()
    fits = [receipt for unit in run.plan.fits if (receipt := run.receipt(unit.name))]
    shards = run.plan.shards()
    done = [receipt for shard in shards if (receipt := run.receipt(shard.name))]
    work = _work(run, fits, done)
    written, seconds = sum(r.rows for r in done), sum(r.seconds for r in done)
    failed = [row for r in done for row in r.failed]
    reasons = [row.reason for row in failed]
    assembled = _assembled(run)
    state = Status(
        name=run.plan.header.name,
        plan_id=run.plan.id,
        fits_done=len(fits),
        fits=len(run.plan.fits),
        shards_done=len(done),
        shards=len(shards),
        rows_written=written,
        rows_failed=len(failed),
        rows=len(run.plan.rows),
        held=tuple(one.unit for one in work),
        finished=assembled is not None,
        rows_per_second=written / seconds if seconds else None,
        reasons=dict(Counter(reasons)),
        shown=assembled.shown if assembled else None,
        work=work,
        unfinished=0 if assembled else sum(unfinished(run).values()),
    )
    return replace(
        state, seconds_left=_seconds_left(state), fits_seconds_left=_fits_seconds_left(run, fits, state.lively)
    )


def unfinished(run: Run) -> Mapping[str, int]:
    """Shards that were begun and have no receipt -> images that were made of each at its latest begin.

    Read from the events that lie on this machine, so of other machines' work only where they share the folder.
    """
    open_shards = {shard.name for shard in run.plan.shards() if not run.receipt(shard.name)}
    made, before = Progress(run.folder / "events.jsonl"), -1 if open_shards else 0
    while made.position != before:
        before = made.position
        made.poll()
    return {name: count for name, count in made.shards.items() if count and name in open_shards}


def loss(run: Run) -> str:
    """What a stop costs in images, as a sentence; '' where no image is lost, as far as this machine knows."""
    run.refresh()
    if not (shards := unfinished(run)):
        return ""
    count = sum(shards.values())
    images = "1 image lies" if count == 1 else f"{count:,} images lie"
    where = "an unfinished shard" if len(shards) == 1 else f"{len(shards):,} unfinished shards"
    return f"{images} in {where} and will be made again"


def _work(run: Run, fits: Sequence[Receipt], shards: Sequence[Receipt]) -> tuple[Work, ...]:
    """Who holds what, in the plan's order; units that are done count no more."""
    usual = {"fit": _usual(fits), "shard": _usual(shards)}
    finished = {receipt.unit for receipt in (*fits, *shards)}
    names = {unit.name: "fit" for unit in run.plan.fits} | {shard.name: "shard" for shard in run.plan.shards()}
    holders, now = all_holders(run.place), time.time()
    found = []
    for name, kind in {**names, "assembly": "assembly"}.items():
        if name not in holders or name in finished:
            continue
        holder, entry = holders[name]
        silent, late = max(0.0, now - entry.written), LATE * usual.get(kind, math.inf)
        found.append(
            Work(
                unit=name,
                host=holder.host,
                pid=holder.pid,
                seconds=holder.seconds,
                silent=round(silent, 1),
                is_silent=silent > holder.ttl,
                is_late=holder.seconds > max(late, holder.ttl),
            )
        )
    return tuple(found)


def _usual(receipts: Sequence[Receipt]) -> float:
    """The median time of finished units, in seconds; endless where there are none."""
    return median(r.seconds for r in receipts) if receipts else math.inf


def _seconds_left(state: Status) -> float | None:
    if state.finished or not state.rows_per_second or not state.lively or state.fits_done < state.fits:
        return None
    return (state.rows - state.rows_written - state.rows_failed) / (state.rows_per_second * state.lively)


def _fits_seconds_left(run: Run, done: Sequence[Receipt], lively: int) -> float | None:
    """Of fits that are missing, each as long as those of its kind took, or as all where none of its kind is done."""
    if not done or not lively or len(done) == len(run.plan.fits):
        return None
    times: dict[str, list[float]] = {}
    for receipt in done:
        times.setdefault(receipt.unit.rpartition("-")[0], []).append(receipt.seconds)
    usual, finished = fmean(receipt.seconds for receipt in done), {receipt.unit for receipt in done}
    of_kind = {kind: fmean(seconds) for kind, seconds in times.items()}
    missing = (unit.name for unit in run.plan.fits if unit.name not in finished)
    return sum(of_kind.get(name.rpartition("-")[0], usual) for name in missing) / lively


def _assembled(run: Run) -> Assembled | None:
    try:
        return finished(run)
    except RunError:  # damaged: `generate` writes it again
        return None


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl: a unit is begun or done, its model is loaded, a batch of it is made, or a fit has taken a
    step.

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
            self.fit = ""
        elif event.kind == "fit":
            loss = "overflowed, step left out" if event.loss is None else f"loss {event.loss:.4f}"
            self.fit = f"{event.unit.rpartition('-')[0]} {event.step}/{event.total}, {loss}"
        self.rows = sum(self.shards.values())


def clock(seconds: float) -> str:
    """`0:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """`42 s`, `6 min 55 s`, `1 h 2 min`.

    >>> duration(42), duration(415), duration(3725), duration(3600)
    ('42 s', '6 min 55 s', '1 h 2 min', '1 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


@dataclass
class Pace:
    """How far the whole work is, fits and images together, as a run's events tell it, and how long the rest will take.

    `work`: what every unit takes, see `run.work`; `rows`: images of every shard; `finished`: units that are done.
    `total` and `before`: images that are planned, and those that were written or had failed when it began. `begun` and
    `latest`: time and share of the whole at the first and at the last sign of work. `news`: see `Run.news`; `looked`:
    when they were asked for, `since`: when it began. `awaits`: what is done before the first images are there.
    """

    progress: Progress
    work: Mapping[str, int]
    rows: Mapping[str, int]
    finished: set[str]
    total: int
    before: int
    failed: int = 0
    changed: bool = False
    first_image: float = 0.0
    awaits: str = "the first batch"
    begun: tuple[float, float] | None = None
    latest: tuple[float, float] | None = None
    fits: dict[str, float] = field(default_factory=dict)
    news: Callable[[], Mapping[str, Receipt]] = dict
    looked: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, run: Run, only_fits: bool = False) -> "Pace":
        """From where the run stands now; `only_fits`: nothing else will be made."""
        seen = run.again()  # what was missing at this look must not stay so for whoever uses the run
        seen.refresh()
        receipts = {shard.name: seen.receipt(shard.name) for shard in run.plan.shards()}
        done = [receipt for receipt in receipts.values() if receipt]
        work, fits = unit_work(run.recipe, run.plan), {unit.name for unit in run.plan.fits}
        finished = {name for name, receipt in receipts.items() if receipt}
        finished |= {name for name in fits if seen.receipt(name)}
        return cls(
            Progress.from_now(run),
            work={name: size for name, size in work.items() if name in fits or not only_fits},
            rows={} if only_fits else {shard.name: len(shard.rows) for shard in run.plan.shards()},
            finished=finished & work.keys(),
            total=0 if only_fits else len(run.plan.rows),
            before=sum(r.rows + len(r.failed) for r in done),
            failed=sum(len(r.failed) for r in done),
            news=seen.news,
            awaits="loading the model" if any(row.backbone for row in run.plan.rows[:1]) else "the first batch",
        )

    def poll(self) -> None:
        """Take in what is new."""
        events = self.progress.poll()
        self.changed = self._heard() or bool(events)
        for event in events:
            self.awaits = "the first batch" if event.kind == "loaded" else self.awaits
            if event.kind == "done" and event.unit in self.work:
                self.finished.add(event.unit)
            if event.kind == "fit" and event.unit in self.work:
                self.fits[event.unit] = min(1.0, event.step / max(1, event.total))
            self.failed += event.failed if event.kind == "batch" else 0
            if event.kind == "start" and event.unit in self.rows and not self.first_image:
                self.first_image = time.monotonic()
        if self.begun is None and any(event.kind != "start" for event in events):  # before that, models are loaded
            self.begun = time.monotonic(), self.share
        if self.changed:
            self.latest = time.monotonic(), self.share

    def _heard(self) -> bool:
        """Take in what others have finished since the last look, as their receipts say it."""
        begun, now = self.looked, time.monotonic()
        if now - begun < min(LONGEST_NEWS, max(NEWS_SECONDS, (now - self.since) / NEWS_SHARE)):
            return False
        self.looked = now
        with suppress(RunError):  # progress is never needed
            new = {name: one for name, one in self.news().items() if name in self.work and name not in self.finished}
            for name, receipt in new.items():
                self.finished.add(name)
                if name in self.rows:
                    self.failed += 0 if name in self.progress.shards else len(receipt.failed)
                    self.progress.shards[name] = receipt.rows + len(receipt.failed)
                    self.first_image = self.first_image or begun
            self.progress.rows = sum(self.progress.shards.values())
            if new and self.begun is None:
                self.begun = begun, self.share
            return bool(new)
        return False

    @property
    def done(self) -> int:
        """Rows that are written or failed."""
        return min(self.total, self.before + self.progress.rows)

    @property
    def share(self) -> float:
        """How much of the whole work is done, 0 to 1."""
        made = {name: count / self.rows[name] for name, count in self.progress.shards.items() if name in self.rows}
        parts = {**self.fits, **made, **dict.fromkeys(self.finished, 1.0)}
        return sum(self.work.get(name, 0) * min(1.0, part) for name, part in parts.items()) / max(
            1, sum(self.work.values())
        )

    @property
    def rate(self) -> float:
        """Images per second since the first one was begun here."""
        return self.progress.rows / max(time.monotonic() - self.first_image, 1e-6) if self.first_image else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the whole is done, at the pace since it was begun here; None where that is not known yet."""
        if self.begun is None or self.latest is None or self.latest[1] <= self.begun[1]:
            return None
        (begin, before), (now, share) = self.begun, self.latest
        left = (now - begin) * (1 - share) / (share - before)
        return max(0.0, left - (time.monotonic() - now))

    def text(self) -> str:
        """`20/50 images, 12.3 images/s, ETA 0:42, 0 failed`, or which fit is learned, how far, and its loss."""
        images = f"{self.done}/{self.total} images, " if self.total else ""
        left = self.seconds_left
        eta = "" if left is None else f", ETA {clock(left)}"
        fits = self.work.keys() - self.rows.keys()
        if fits - self.finished and not self.progress.rows:
            step = f", {self.progress.fit}" if self.progress.fit else ""
            return f"{images}fit {len(fits & self.finished) + 1} of {len(fits)}{step}{eta}"
        is_whole = len(self.finished) == len(self.work)
        if is_whole and not self.total:
            return "all fits done"
        rate = f"{self.rate:.1f} images/s{'' if is_whole else eta}, " if self.progress.rows else ""
        waits = "" if rate or is_whole else f"{self.awaits}, "
        return f"{images}{waits}{rate}{self.failed} failed"


@dataclass
class _Lines:
    """A line where something has happened, at most one in two seconds, and ever rarer signs of life in between."""

    pace: Pace
    out: TextIO
    last: float = field(default_factory=lambda: time.monotonic())
    news: bool = True
    said: str = ""
    quiet: float = QUIET_SECONDS

    def __call__(self) -> None:
        self.pace.poll()
        self.news |= self.pace.changed
        age = time.monotonic() - self.last
        finished = self.pace.changed and len(self.pace.finished) == len(self.pace.work)
        if not finished and age < (LINE_SECONDS if self.news else self.quiet):
            return
        line = printable(f"  {percent(self.pace.share)}, {self.pace.text()}")
        if self.news and line == self.said:
            self.news = False
            return
        self.quiet = 2 * self.quiet if line == self.said else QUIET_SECONDS
        self.last, self.news, self.said = time.monotonic(), False, line
        self.out.write(f"{line}\n")
        self.out.flush()


def on_terminal(out: TextIO | None) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return out is not None and out.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def following(run: Run, out: TextIO | None = None, only_fits: bool = False) -> Iterator[Callable[[], None]]:
    """A function to call a few times a second while a run is worked on; it shows how far the whole is, in one bar.

    `out`: standard output, or the stream to show it on. `only_fits`: nothing else will be made.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    stream = sys.stdout if out is None else out
    console = Console(file=stream)
    if stream is None:
        yield lambda: None
        return
    pace = Pace.of(run, only_fits)
    if not (on_terminal(stream) or (console.is_jupyter and find_spec("ipywidgets"))):
        yield _Lines(pace, stream)
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("starting", total=SCALE, completed=round(SCALE * pace.share))

        def on_progress() -> None:
            pace.poll()
            bars.update(task, completed=round(SCALE * pace.share), description=printable(pace.text()))

        yield on_progress

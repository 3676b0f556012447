"""`diffaug report`: runs as one HTML page that needs no network and no second file.

The page holds a strip per class (a real image, then one result of every run), a grid of every image, which a script
filters and sorts, and a section per run: its method, its classes with their cards, counts, failures, times and what the
method chose. All but the grid is there without the script too.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from diffaug_datasets.core.errors import DiffAugError, RunError
from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.method import find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.release.measures import read_measures
from diffaug_datasets.report import figures
from diffaug_datasets.report.grid import Grid, grid
from diffaug_datasets.report.measured import MeasureTable, measure_tables
from diffaug_datasets.report.rendering import Thumbnail, render, thumbnail
from diffaug_datasets.report.row import Fact, RowCard, row_card
from diffaug_datasets.report.run_view import RunView, ScannedRow, by_class, sample, some_labels, worst
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import recipe_facts

PAGE_BYTES = 9_500_000  # above, each class shows fewer cards
PAGE_CARDS = 720  # of all runs
RUN_CARDS = 240  # of one run
CLASS_CARDS = 6
MEASURED_ROWS = 240  # of a run, whose measurements are read for the figures
STRIPS = 20  # classes that have one
ARXIV = re.compile(r"\d{4}\.\d{4,5}")
STEP = re.compile(r"(?m)^\d+\. (?P<text>.+?)(?: {2,}.*| fit `.*)?$")
TIERS = {
    "T0": "bit for bit on this stack",
    "T1": "the same plan on any machine",
    "T2": "several stacks, pixels within a tolerance",
}


@dataclass(frozen=True)
class DatasetText:
    """The real dataset of a run in words; `licence` is empty where none is known."""

    title: str
    protocol: str
    licence: str
    homepage: str
    redistributable: bool


@dataclass(frozen=True)
class MethodText:
    """What a page says about a method; `arxiv` is empty where its PAPER is no arXiv number."""

    title: str
    line: str
    arxiv: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class ClassBlock:
    """A class of a run: its counts and the cards that are shown of it."""

    anchor: str
    counts: figures.ClassRow
    cards: tuple[RowCard, ...]


@dataclass(frozen=True)
class RunSection:
    """Everything that the page shows of a run."""

    anchor: str
    name: str
    plan_id: str
    method: MethodText
    made: str
    totals: figures.Totals
    shown: tuple[str, ...]
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    classes: tuple[ClassBlock, ...]
    table: tuple[figures.ClassRow, ...]
    confusion: tuple[figures.ConfusionRow, ...]
    worst: tuple[RowCard, ...]
    measures: tuple[MeasureTable, ...]
    levels: figures.Levels | None
    turns: figures.Turns | None
    inversions: tuple[figures.Inverted, ...]
    failures: tuple[figures.Failure, ...]
    shards: tuple[figures.ShardTime, ...]
    fits: tuple[figures.FitSummary, ...]
    recipe: str
    folder: str
    quoted_folder: str
    example: str

    @property
    def cards(self) -> int:
        """How many rows the class blocks show."""
        return sum(len(block.cards) for block in self.classes)


@dataclass(frozen=True)
class Frame:
    """One image of a strip and what stands under it; `real` marks photographs."""

    thumb: Thumbnail | None
    caption: str
    real: bool


@dataclass(frozen=True)
class Strip:
    """A class at a glance: a real image, then one result of every run."""

    class_name: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Page:
    """What the template is filled with."""

    datasets: tuple[DatasetText, ...]
    runs: tuple[RunSection, ...]
    strips: tuple[Strip, ...]
    grid: Grid
    classes: int
    made: str


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of one or more runs, finished or not; returns its path.

    Shows as many cards per class as PAGE_BYTES allow.

    Raises:
        RunError: there is no run, or the file cannot be written.
    """
    if not runs:
        raise RunError("report: got no run; name at least one run folder.")
    views = [RunView(run) for run in runs]
    html, images = "", grid(views, [method_text(str(view.header.recipe["method"])).title for view in views])
    for per_class in (CLASS_CARDS, 3, 1):
        html = render("report.html.jinja", page=_page(views, per_class, images))
        if len(html.encode()) <= PAGE_BYTES:
            break
    write_text(out, html)
    return out


def _page(views: Sequence[RunView], per_class: int, images: Grid) -> Page:
    at_most = max(20, min(RUN_CARDS, PAGE_CARDS // len(views)))
    sections = [run_section(view, number, per_class, at_most) for number, view in enumerate(views, 1)]
    return Page(
        datasets=tuple(dict.fromkeys(dataset_text(view) for view in views)),
        runs=tuple(sections),
        strips=_strips(views, [section.method.title for section in sections]),
        grid=images,
        classes=max(section.totals.classes for section in sections),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _strips(views: Sequence[RunView], titles: Sequence[str]) -> tuple[Strip, ...]:
    """One strip per class where all runs have the same classes; some of them where the classes are many."""
    first = views[0]
    if any(view.class_names != first.class_names for view in views):
        return ()
    groups = [by_class(view.rows, view.run.plan.id) for view in views]
    strips = []
    for label in some_labels(range(len(first.class_names)), first.run.plan.id, STRIPS):
        frames = []
        for source_id in first.real_of(label)[:1]:
            if source := first.source(source_id):
                frames.append(Frame(thumbnail(source.data), "real", True))
        for view, rows, title in zip(views, groups, titles, strict=True):
            if label in rows:  # its first row is the first card of the class in that run's section
                frames.append(Frame(thumbnail(view.picture(rows[label][0]).data), title, False))
        strips.append(Strip(first.class_names[label], tuple(frames)))
    return tuple(strip for strip in strips if strip.frames)


def run_section(view: RunView, number: int, per_class: int = CLASS_CARDS, at_most: int = RUN_CARDS) -> RunSection:
    """The section of a run; `number` makes its anchors unique in the page."""
    plan, recipe, folder = view.run.plan, view.header.recipe, view.run.where
    table = figures.class_rows(view)
    each = max(1, MEASURED_ROWS // max(1, len(view.class_names)))
    measured = [view.picture(row) for rows in sample(view.rows, plan.id, each, MEASURED_ROWS).values() for row in rows]
    shown = sample(view.rows, plan.id, per_class, at_most)
    kept = read_measures(view.run)
    return RunSection(
        anchor=f"run-{number}",
        name=view.header.name,
        plan_id=plan.id,
        method=method_text(str(recipe["method"])),
        made=plan.rows[0].origin,
        totals=figures.totals(view, table),
        shown=tuple(view.assembled.shown.lines()) if view.assembled and view.assembled.shown else (),
        facts=_facts(view),
        notes=(*_unfinished(view), *view.gaps, *view.header.warnings, *filter(None, [kept.note])),
        classes=tuple(
            ClassBlock(f"run-{number}-class-{label}", table[label], _cards(view, rows)) for label, rows in shown.items()
        ),
        table=table,
        confusion=figures.confusion(view),
        worst=_cards(view, worst(view.rows)),
        measures=measure_tables(kept.file),
        levels=figures.levels(view, measured),
        turns=figures.turns(measured),
        inversions=figures.inversions(view),
        failures=figures.failures(view),
        shards=figures.shard_times(view),
        fits=figures.fit_summaries(view),
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        folder=folder,
        quoted_folder=shlex.quote(folder),
        example=next((rows[0].row_id for rows in shown.values()), "ROW"),
    )


def _cards(view: RunView, rows: Sequence[ScannedRow]) -> tuple[RowCard, ...]:
    return tuple(row_card(view, view.picture(row)) for row in rows)


def _facts(view: RunView) -> tuple[Fact, ...]:
    """What a reader wants to know of a run at once: plan, seed, models, devices; only what is there."""
    recipe, done = view.header.recipe, view.assembled
    scores: Mapping[str, object] = recipe.get("scores") or {}
    config: Mapping[str, object] = recipe.get("config") or {}
    stacks = [receipt.stack for receipt in view.receipts.values() if receipt.stack]
    devices = dict.fromkeys(f"{stack.get('device', '')} torch {stack.get('torch', '?')}" for stack in stacks)
    facts = [
        Fact("plan", view.run.plan.id[:16], view.run.plan.id),
        Fact("seed", str(recipe.get("seed", 0)), "every random choice follows from it"),
        Fact("backbone", view.header.backbone),
        Fact("method's encoder", str(config.get("encoder") or "")),
        Fact("score encoder", str(scores.get("encoder") or "")),
        Fact("judge", str(scores.get("judge") or "")),
        Fact("tier", ": ".join(filter(None, (done.tier, TIERS.get(done.tier)))) if done else ""),
        Fact("stack", "; ".join(devices)),
        Fact("finished", done.finished.replace("T", " ").replace("+00:00", " UTC") if done else "not yet"),
    ]
    return tuple(fact for fact in facts if fact.value)


def _unfinished(view: RunView) -> list[str]:
    """A sentence where a run is not finished, which says what finishes it."""
    missing, quoted = view.missing, shlex.quote(view.run.where)
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return [f"Not finished: {listed} still to be made. `diffaug generate {quoted}` goes on."]
    if view.assembled is None:
        return [f"All shards are there, but the run is not assembled yet. `diffaug generate {quoted}` does it."]
    return []


def method_text(name: str) -> MethodText:
    """Title, first line and numbered steps of a method's module; only the name where it is not installed here."""
    try:
        method = find_method(name)
    except DiffAugError:
        return MethodText(name, "This method is not installed here.", "", ())
    text = method.page.strip()
    line = text.partition("\n")[0].removeprefix(f"{method.TITLE}: ")
    steps = tuple(match["text"].replace("`", "").strip() for match in STEP.finditer(text))
    arxiv = method.PAPER if ARXIV.fullmatch(method.PAPER) else ""
    return MethodText(method.TITLE, line[:1].upper() + line[1:], arxiv, steps)


def dataset_text(view: RunView) -> DatasetText:
    """What the builder's fact sheet says; only the name where the builder is not installed here."""
    builder = str(view.header.recipe["builder"])
    protocol = protocol_words(str(view.header.recipe["protocol"]))
    try:
        facts = recipe_facts(view.run.recipe)
    except DiffAugError:
        return DatasetText(builder, protocol, "", "", False)
    licence = "" if facts.licence == "unknown" else facts.licence
    return DatasetText(facts.title, protocol, licence, facts.homepage, facts.redistributable)


def protocol_words(name: str) -> str:
    """`5shot_seed1` as `5 images per class, trial 1`."""
    protocol = parse_protocol(name)
    ways = f" of {protocol.ways} drawn classes" if protocol.ways else ""
    forms = {
        "full": "all images",
        "shots": f"{protocol.value} image{'s' if protocol.value > 1 else ''} per class{ways}",
        "long_tail": f"a long tail, {protocol.value} to 1",
        "percent": f"{protocol.value} % of the images",
    }
    return forms[protocol.kind] + (f", trial {protocol.trial_seed}" if protocol.trial_seed else "")

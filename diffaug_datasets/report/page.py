"""`diffaug show`: one row in full, as text and, where asked for, as a sheet of its sources beside its result.

One run as a section of the page: its method, its classes with their cards, counts, failures, times, choices.

`diffaug report`: runs as one HTML page that needs no network, no script and no second file.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from diffaug_datasets.core.errors import DiffAugError, RunError
from diffaug_datasets.core.files import write_atomically, write_text
from diffaug_datasets.core.method import Method, find_method
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.rows import FailedRow, PlanRow, row_urn
from diffaug_datasets.report import figures
from diffaug_datasets.report.drawing import Thumbnail, thumbnail
from diffaug_datasets.report.row import Card, Fact, card, draw_sheet, reason_text, render
from diffaug_datasets.report.run_view import Gathered, Picture, Scanned, by_class, sample, some_labels, worst
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import builder_facts

PER_CLASS = 6
CARDS_A_RUN = 240
MEASURED_ROWS = 240
ARXIV = re.compile(r"\d{4}\.\d{4,5}")
STEP = re.compile(r"(?m)^\d+\. (?P<text>.+?)(?: {2,}.*| fit `.*)?$")
TIERS = {
    "T0": "bit for bit on this stack",
    "T1": "the same plan on any machine",
    "T2": "several stacks, pixels within a tolerance",
}


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
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class RunSection:
    """Everything that the page shows of a run."""

    anchor: str
    name: str
    plan_id: str
    method: MethodText
    made: str
    totals: figures.Totals
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    classes: tuple[ClassBlock, ...]
    table: tuple[figures.ClassRow, ...]
    confusion: tuple[figures.ConfusionRow, ...]
    worst: tuple[Card, ...]
    levels: figures.Levels | None
    turns: figures.Turns | None
    failures: tuple[figures.Failure, ...]
    shards: tuple[figures.ShardTime, ...]
    fits: tuple[figures.FitView, ...]
    recipe: str
    folder: str
    quoted_folder: str
    example: str

    @property
    def cards(self) -> int:
        """How many rows the class blocks show."""
        return sum(len(block.cards) for block in self.classes)


def run_section(gathered: Gathered, number: int, per_class: int = PER_CLASS, at_most: int = CARDS_A_RUN) -> RunSection:
    """The section of a run; `number` makes its anchors unique in the page."""
    table = figures.class_rows(gathered)
    measured = _some_pictures(gathered)
    shown = sample(gathered.rows, gathered.run.plan.id, per_class, at_most)
    bad = tuple(card(gathered, gathered.picture(row)) for row in worst(gathered.rows))
    folder = str(gathered.run.folder)
    return RunSection(
        anchor=f"run-{number}",
        name=gathered.header.name,
        plan_id=gathered.run.plan.id,
        method=method_text(str(gathered.header.recipe["method"])),
        made=gathered.run.plan.rows[0].origin,
        totals=figures.totals(gathered, table),
        facts=_facts(gathered),
        notes=_notes(gathered),
        classes=_blocks(gathered, number, table, shown),
        table=table,
        confusion=figures.confusion(gathered),
        worst=bad,
        levels=figures.levels(gathered, measured),
        turns=figures.turns(measured),
        failures=figures.failures(gathered),
        shards=figures.shard_times(gathered),
        fits=figures.fit_views(gathered),
        recipe=yaml.safe_dump(gathered.header.recipe, sort_keys=False, allow_unicode=True),
        folder=folder,
        quoted_folder=shlex.quote(folder),
        example=next((rows[0].row_id for rows in shown.values()), "ROW"),
    )


def _some_pictures(gathered: Gathered) -> list[Picture]:
    each = max(1, MEASURED_ROWS // max(1, len(gathered.class_names)))
    groups = sample(gathered.rows, gathered.run.plan.id, each, MEASURED_ROWS)
    return [gathered.picture(row) for rows in groups.values() for row in rows]


def _blocks(
    gathered: Gathered, number: int, table: Sequence[figures.ClassRow], shown: Mapping[int, Sequence[Scanned]]
) -> tuple[ClassBlock, ...]:
    return tuple(
        ClassBlock(
            anchor=f"run-{number}-class-{label}",
            counts=table[label],
            cards=tuple(card(gathered, gathered.picture(row)) for row in rows),
        )
        for label, rows in shown.items()
    )


def method_text(name: str) -> MethodText:
    """Title, first line and numbered steps of a method's module; only the name where it is not installed here."""
    try:
        method = find_method(name)
    except DiffAugError:
        return MethodText(name, "This method is not installed here.", "", ())
    text = (getattr(method, "__doc__", None) or "").strip()
    line = text.partition("\n")[0].removeprefix(f"{method.TITLE}: ")
    steps = tuple(_plain(match["text"]) for match in STEP.finditer(text))
    return MethodText(method.TITLE, line[:1].upper() + line[1:], _arxiv(method), steps)


def _plain(text: str) -> str:
    return text.replace("`", "").strip()


def _arxiv(method: Method) -> str:
    return method.PAPER if ARXIV.fullmatch(method.PAPER) else ""


def _facts(gathered: Gathered) -> tuple[Fact, ...]:
    recipe, done = gathered.header.recipe, gathered.assembled
    scores = recipe.get("scores") or {}
    encoder = (recipe.get("config") or {}).get("encoder")
    tier = [Fact("tier", ": ".join(filter(None, (done.tier, TIERS.get(done.tier)))))] if done else []
    named = [
        Fact("plan", gathered.run.plan.id[:16], gathered.run.plan.id),
        Fact("seed", str(recipe.get("seed", 0)), "every random choice follows from it"),
        Fact("backbone", gathered.header.backbone),
        Fact("method's encoder", str(encoder or "")),
        Fact("score encoder", str(scores.get("encoder") or "")),
        Fact("judge", str(scores.get("judge") or "")),
        *tier,
        Fact("stack", "; ".join(_stacks(gathered))),
        Fact("finished", done.finished.replace("T", " ").replace("+00:00", " UTC") if done else "not yet"),
    ]
    return tuple(fact for fact in named if fact.value)


def _stacks(gathered: Gathered) -> list[str]:
    texts = (" ".join((s.get("device", ""), "torch", s.get("torch", "?"))) for s in _known_stacks(gathered))
    return list(dict.fromkeys(texts))


def _known_stacks(gathered: Gathered) -> list[dict[str, str]]:
    return [receipt.stack for receipt in gathered.receipts.values() if receipt.stack]


def _notes(gathered: Gathered) -> tuple[str, ...]:
    return (*_unfinished(gathered), *gathered.gaps, *gathered.header.warnings)


def _unfinished(gathered: Gathered) -> list[str]:
    missing = gathered.missing
    quoted = shlex.quote(str(gathered.run.folder))
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return [f"Not finished: {listed} still to be made. `diffaug generate {quoted}` goes on."]
    if gathered.assembled is None:
        return [f"All shards are there, but the run is not assembled yet. `diffaug generate {quoted}` does it."]
    return []


PAGE_CARDS = 720
PAGE_BYTES = 9_500_000
STRIPS = 20


@dataclass(frozen=True)
class DatasetText:
    """The real dataset of a run in words; `licence` is empty where none is known."""

    title: str
    protocol: str
    licence: str
    homepage: str
    redistributable: bool


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
    classes: int
    made: str


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of one or more runs, finished or not; returns its path.

    Raises:
        RunError: there is no run, or the file cannot be written.
    """
    if not runs:
        raise RunError("report: got no run; name at least one run folder.")
    write_text(out, _light_page([Gathered(run) for run in runs]))
    return out


def _light_page(gathered: Sequence[Gathered]) -> str:
    """The page with as many cards a class as PAGE_BYTES allow."""
    html = ""
    for per_class in (PER_CLASS, 3, 1):
        html = render("report.html.jinja", page=_page(gathered, per_class))
        if len(html.encode()) <= PAGE_BYTES:
            break
    return html


def _page(gathered: Sequence[Gathered], per_class: int) -> Page:
    at_most = max(20, min(CARDS_A_RUN, PAGE_CARDS // len(gathered)))
    sections = [run_section(one, number, per_class, at_most) for number, one in enumerate(gathered, 1)]
    return Page(
        datasets=tuple(dict.fromkeys(dataset_text(one) for one in gathered)),
        runs=tuple(sections),
        strips=_strips(gathered, sections),
        classes=max(section.totals.classes for section in sections),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def dataset_text(gathered: Gathered) -> DatasetText:
    """What the builder's fact sheet says; only the name where the builder is not installed here."""
    recipe = gathered.header.recipe
    builder, protocol = str(recipe["builder"]), protocol_words(str(recipe["protocol"]))
    try:
        facts = builder_facts(builder)
    except DiffAugError:
        return DatasetText(builder, protocol, "", "", False)
    licence = "" if facts.licence == "unknown" else facts.licence
    return DatasetText(facts.title, protocol, licence, facts.homepage, facts.redistributable)


def protocol_words(name: str) -> str:
    """`5shot_seed1` as `5 images a class, trial 1`."""
    protocol = parse_protocol(name)
    ways = f" of {protocol.ways} drawn classes" if protocol.ways else ""
    forms = {
        "full": "all images",
        "shots": f"{protocol.value} image{'s' if protocol.value > 1 else ''} a class{ways}",
        "long_tail": f"a long tail, {protocol.value} to 1",
        "percent": f"{protocol.value} % of the images",
    }
    return forms[protocol.kind] + (f", trial {protocol.trial_seed}" if protocol.trial_seed else "")


def _strips(gathered: Sequence[Gathered], sections: Sequence[RunSection]) -> tuple[Strip, ...]:
    """One strip a class where all runs have the same classes; some of them where the classes are many."""
    first = gathered[0]
    if any(one.class_names != first.class_names for one in gathered):
        return ()
    groups = [by_class(one.rows, one.run.plan.id) for one in gathered]
    labels = some_labels(range(len(first.class_names)), first.run.plan.id, STRIPS)
    strips = []
    for label in labels:
        results = [_result_frame(*each, label) for each in zip(gathered, groups, sections, strict=True)]
        frames = (*_real_frame(first, label), *(frame for frame in results if frame is not None))
        strips.append(Strip(first.class_names[label], frames))
    return tuple(strip for strip in strips if strip.frames)


def _result_frame(
    gathered: Gathered, groups: Mapping[int, Sequence[Scanned]], section: RunSection, label: int
) -> Frame | None:
    """The first row of a class in seeded order, so the first card of its block."""
    if label not in groups:
        return None
    return Frame(thumbnail(gathered.picture(groups[label][0]).data), section.method.title, False)


def _real_frame(gathered: Gathered, label: int) -> list[Frame]:
    found = [gathered.source(source_id) for source_id in gathered.real_of(label)[:1]]
    return [Frame(thumbnail(picture.data), "real", True) for picture in found if picture is not None]


LISTED = 5


def show(run: Run, row: str, out: Path | None = None) -> str:
    """Every column of a row as text; with `out` also a sheet of its sources and its image (.html or .png).

    `row` is a row id or the beginning of exactly one.

    Raises:
        RunError: no row or several begin like that, a sheet is wanted of a row without an image, or in another format.
    """
    planned = find_row(run, row)
    gathered = Gathered(run)
    picture = _picture(gathered, planned)
    text = "\n".join(_lines(gathered, planned, picture))
    if out is not None:
        _write_sheet(gathered, planned, picture, text, out)
    return text


def find_row(run: Run, row: str) -> PlanRow:
    """The planned row that a row id, or the beginning of one, names.

    Raises:
        RunError: none, or several; names some of them.
    """
    wanted = row.strip().lower()
    found = [one for one in (*run.plan.rows, *run.plan.real) if wanted and one.row_id.startswith(wanted)]
    exact = [one for one in found if one.row_id == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise RunError(
            f"{run.folder}: no row id begins with {row!r}; ids are 24 hex digits, such as {run.plan.rows[0].row_id}."
        )
    listed = ", ".join(one.row_id for one in found[:LISTED])
    raise RunError(f"{run.folder}: {len(found)} row ids begin with {row!r} ({listed}, ...); give more digits.")


def _picture(gathered: Gathered, planned: PlanRow) -> Picture | None:
    if planned.origin == "real":
        found = gathered.source(planned.source_ids[0])
        return found if found is not None and found.planned.row_id == planned.row_id else None
    scanned = next((row for row in gathered.rows if row.row_id == planned.row_id), None)
    return None if scanned is None else gathered.picture(scanned)


def _lines(gathered: Gathered, planned: PlanRow, picture: Picture | None) -> Iterator[str]:
    row = picture.planned if picture else planned
    names = gathered.class_names
    yield f"row {planned.row_id} of {gathered.header.name}"
    yield ""
    yield from _block("class", f"{names[row.label]} (label {row.label})")
    yield from _block("trained as", _soft(row, names))
    yield from _block("state", _state(gathered, planned, picture))
    yield from _block("origin", f"{row.origin}, method {row.method} version {row.method_version}")
    yield from _section("prompts", _some(row, ("prompt", "prompt_first", "negative_prompt")))
    schedule = ("seed", "num_inference_steps", "start_step", "guidance_scale", "strength", "fallback", "backbone")
    yield from _section("sampling", {**_some(row, schedule), **_adapters(row)})
    yield from _section("draws", json.loads(row.draw))
    if picture is not None:
        yield from _section("measured", picture.measured)
        yield from _section("scores", _scores(picture, names))
        yield from _section("image", _some(picture.outcome, ("width", "height", "image_format", "pixel_sha256")))
        yield from _section("made", _some(picture.outcome, ("attempt", "batch_shape")))
    yield from _section("sources", _sources(gathered, row))
    urn = picture.urn if picture else row_urn(gathered.run.plan.id, planned.row_id)
    yield from _section("plan", {"urn": urn, "plan_id": gathered.run.plan.id, "k": planned.k, "split": planned.split})


def _state(gathered: Gathered, planned: PlanRow, picture: Picture | None) -> str:
    failed: Mapping[str, FailedRow] = {row.row_id: row for row in gathered.failed}
    if planned.row_id in failed:
        lost = failed[planned.row_id]
        return f"failed after {lost.attempts} attempts: {lost.reason}"
    if picture is None:
        return "no image yet: its shard is not made"
    if planned.row_id in gathered.dropped:
        return f"written, taken out by the selection: {reason_text(gathered.dropped[planned.row_id])}"
    if planned.row_id in gathered.spared:
        return f"written, kept for its class's min_keep: {reason_text(gathered.spared[planned.row_id])}"
    return "written and kept" if gathered.run.receipt("selection") or planned.origin == "real" else "written"


def _soft(row: PlanRow, names: tuple[str, ...]) -> str:
    """The label's weights: `bag 0.7, boot 0.3`."""
    weights = zip(row.soft_label.classes, row.soft_label.weight, strict=True)
    return ", ".join(f"{names[label]} {weight:g}" for label, weight in weights)


def _some(record: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}


def _adapters(row: PlanRow) -> dict[str, Any]:
    return {"adapters": ", ".join(row.adapters)} if row.adapters else {}


def _scores(picture: Picture, names: tuple[str, ...]) -> dict[str, Any]:
    scores = _some(picture.outcome, ("clip_score", "clip_margin", "source_similarity", "judge_confidence"))
    seen = picture.outcome.judge_label
    judged = {} if seen is None else {"judge_label": f"{names[seen] if 0 <= seen < len(names) else '?'} (label {seen})"}
    return {**scores, **judged}


def _sources(gathered: Gathered, row: PlanRow) -> dict[str, Any]:
    if row.origin == "real":
        return {"a": row.source_ids[0]}
    pairs = zip("abcdefghijklmnopqrstuvwxyz", row.source_ids, row.source_labels, strict=False)
    return {letter: f"{found} {gathered.class_names[label]} (label {label})" for letter, found, label in pairs}


def _section(title: str, content: Mapping[str, Any]) -> Iterator[str]:
    if not content:
        return
    yield ""
    yield title
    for name, value in content.items():
        yield from _block(name, _text(value))


def _block(name: str, value: str) -> Iterator[str]:
    """A line; what a terminal would obey (control characters, line breaks) is spelled out."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)
    yield f"  {name:<20} {shown}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value) or '""'


def _write_sheet(gathered: Gathered, planned: PlanRow, picture: Picture | None, text: str, out: Path) -> None:
    if picture is None:
        state = _state(gathered, planned, picture)
        raise RunError(f"row {planned.row_id} has no image ({state}); there is no sheet of it.")
    writers: Mapping[str, Callable[[], object]] = {
        ".html": lambda: write_text(out, _html(gathered, picture, text)),
        ".png": lambda: write_atomically(out, lambda path: draw_sheet(gathered, picture, path)),
    }
    if out.suffix.lower() not in writers:
        raise RunError(f"{out}: got the ending {out.suffix!r}, expected .html or .png.")
    writers[out.suffix.lower()]()


def _html(gathered: Gathered, picture: Picture, text: str) -> str:
    method = picture.planned.method
    return render("row.html.jinja", card=card(gathered, picture), name=gathered.header.name, method=method, text=text)

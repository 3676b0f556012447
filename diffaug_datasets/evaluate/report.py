"""`diffaug report`: runs as one HTML page that needs no network, no script and no second file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from diffaug_datasets.core.errors import DiffAugError, RunError
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.temporary import write_text
from diffaug_datasets.data.real import builder_facts
from diffaug_datasets.evaluate.gather import Gathered, Scanned
from diffaug_datasets.evaluate.pages import render
from diffaug_datasets.evaluate.run_section import CARDS_A_RUN, PER_CLASS, RunSection, run_section
from diffaug_datasets.evaluate.sampling import by_class, some_labels
from diffaug_datasets.evaluate.thumbnails import Thumbnail, thumbnail
from diffaug_datasets.run.store import Run

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

"""`bench report`: a bench as one HTML page that needs no network, no script and no second file.

It is made from the bench's folder alone. The pictures behind the worst classes need the sets as well; where one is gone
the page says so and shows none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffaug_datasets.core.errors import DiffAugError, one_line
from diffaug_datasets.core.files import write_text
from diffaug_datasets.evaluate import plots
from diffaug_datasets.evaluate.cells import Result
from diffaug_datasets.evaluate.classes import ByClass, Harm, by_class, harms
from diffaug_datasets.evaluate.draws import Draw, Images, Line, read_set
from diffaug_datasets.evaluate.other_tests import kept_tests
from diffaug_datasets.evaluate.record import KeptBench
from diffaug_datasets.evaluate.table import BASE, Judge, TableRow, by_judge
from diffaug_datasets.evaluate.words import columns, heading, points, what_could_be_seen, what_was_seen
from diffaug_datasets.report.rendering import Thumbnail, render, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

WORST, SHOWN = 6, 8  # classes with pictures; pictures of each kind
MOST_CLASSES = 200  # rows of a class table


@dataclass(frozen=True)
class ClassCell:
    """A line in a class: accuracy in percent and its difference to the real images alone, in points."""

    accuracy: str
    difference: str
    kind: str


@dataclass(frozen=True)
class ClassRow:
    """A class: its accuracy from the real images alone in percent, and what every line makes of it."""

    name: str
    real: str
    cells: tuple[ClassCell, ...]


@dataclass(frozen=True)
class ClassTable:
    """Accuracy by class under one classifier; `left_out`: classes that are not shown, those that change least."""

    lines: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    left_out: int


@dataclass(frozen=True)
class JudgeSection:
    """All that is shown of a classifier."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...]
    seen: str
    gains: plots.Forest | None
    ranks: plots.Forest | None
    scatters: tuple[plots.Scatter, ...]
    classes: ClassTable | None


@dataclass(frozen=True)
class Shot:
    """A picture and what the classifier took it for, where it matters."""

    thumb: Thumbnail | None
    alt: str
    taken_for: str = ""


@dataclass(frozen=True)
class WorstClass:
    """A class that a line makes worse, with the images behind it. `reason`: why there are none."""

    line: str
    class_name: str
    change: str
    draw: int
    real: tuple[Shot, ...] = ()
    made: tuple[Shot, ...] = ()
    lost: tuple[Shot, ...] = ()
    lost_count: int = 0
    reason: str = ""


def write_page(kept: KeptBench, rows: Sequence[TableRow], out: Path) -> Path:
    """Write the page of a bench; returns its path. `rows`: its table, groups included.

    Raises:
        RunError: the file cannot be written.
    """
    judges = by_judge(rows)
    sections = [
        _section(kept, judge, [row for row in of_judge if row.group == group], group)
        for judge, of_judge in judges.items()
        for group in dict.fromkeys(row.group for row in of_judge)
    ]
    html = render(
        "bench.html.jinja",
        title=kept.spec.title or "Does it help?",
        seen=what_was_seen(rows),
        lines=kept.lines,
        notes=(*kept.leaks, *kept.record.notes),
        sections=sections,
        worst=_worst(kept, next(iter(judges))),
        worst_title=heading(rows[0]),
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    write_text(out, html)
    return out


def _section(kept: KeptBench, judge: Judge, rows: Sequence[TableRow], group: str) -> JudgeSection:
    head, cells = columns(rows)
    seconds = _seconds(kept)
    measures = (
        ("Accuracy against images", "real and synthetic images", lambda row: float(row.images) or None),
        ("Accuracy against U-Net evaluations", "U-Net evaluations", _evaluations),
        ("Accuracy against time of generation", "seconds for the whole set", lambda row: seconds.get(row.line)),
    )
    drawn = [plots.scatter(rows, title, unit, measure) for title, unit, measure in measures] if not group else []
    return JudgeSection(
        title=heading(rows[0]),
        head=head,
        rows=tuple(cells),
        kinds=tuple(plots.kind_of(row) for row in rows),
        seen=what_could_be_seen(rows),
        gains=plots.gains(rows),
        ranks=plots.ranks(rows),
        scatters=tuple(plot for plot in drawn if plot is not None),
        classes=None if group else _classes(kept, judge),
    )


def _evaluations(row: TableRow) -> int | None:
    """U-Net rows that the images of a line took; real ones took none."""
    return 0 if row.line == BASE else row.evaluations


def _seconds(kept: KeptBench) -> dict[str, float]:
    """Line -> mean worker seconds of its sets, 0 for the real images; lines whose cost is not known are left out."""
    taken: dict[str, list[float | None]] = {}
    for line in kept.record.lines:
        taken.setdefault(line.name, []).append(line.seconds)
    means = {
        name: float(np.mean([one for one in several if one is not None]))
        for name, several in taken.items()
        if None not in several
    }
    return {BASE: 0.0, **means} if means else {}


def _classes(kept: KeptBench, judge: Judge) -> ClassTable | None:
    names = kept.class_names
    found = by_class(kept.results, judge, len(names))
    base = found.pop(BASE, None)
    lines = [name for name in kept.lines if name in found]
    if base is None or not lines:
        return None
    changes = {name: found[name].minus(base).mean for name in lines}
    biggest = np.nanmax(np.abs(np.nan_to_num(np.stack(list(changes.values())))), axis=0)
    shown = sorted(np.argsort(-biggest, kind="stable")[:MOST_CLASSES].tolist())
    rows = tuple(
        ClassRow(
            names[label],
            _percent(base, label),
            tuple(_cell(found[name], changes[name][label], label) for name in lines),
        )
        for label in shown
    )
    return ClassTable(tuple(lines), rows, len(names) - len(shown))


def _percent(line: ByClass, label: int) -> str:
    value = line.mean[label]
    return "" if np.isnan(value) else f"{100 * value:.1f}"


def _cell(line: ByClass, change: float, label: int) -> ClassCell:
    if np.isnan(change):
        return ClassCell("", "", "")
    return ClassCell(_percent(line, label), points(change), "worse" if change < 0 else "better" if change > 0 else "")


def _worst(kept: KeptBench, judge: Judge) -> list[WorstClass]:
    """The worst classes with their pictures; a set is read once."""
    found = harms(by_class(kept.results, judge, len(kept.class_names)), kept.lines, WORST)
    sets: dict[tuple[str, str], tuple[Draw, Line] | str] = {}
    for harm in found:
        if (key := (harm.draw, harm.line)) not in sets:
            sets[key] = _read(kept, harm)
    return [_pictures(kept, judge, harm, sets[harm.draw, harm.line]) for harm in found]


def _read(kept: KeptBench, harm: Harm) -> tuple[Draw, Line] | str:
    """The set behind a line in a draw, or why it is not there."""
    line = next((one for one in kept.record.lines if (one.draw, one.name) == (harm.draw, harm.line)), None)
    if line is None:
        return "the bench does not say where this set lies"
    try:
        return read_set(line.place, line.config, line.with_real, kept_tests(kept.spec.test, kept.folder))
    except (DiffAugError, OSError) as error:
        return f"the set is not there any more ({one_line(error)})"


def _pictures(kept: KeptBench, judge: Judge, harm: Harm, read: tuple[Draw, Line] | str) -> WorstClass:
    name, number = kept.class_names[harm.label], kept.draws.index(harm.draw) + 1
    told = WorstClass(harm.line, name, points(harm.change), number)
    ours, base = (_result(kept, judge, harm.draw, line) for line in (harm.line, BASE))
    if isinstance(read, str):
        return WorstClass(harm.line, name, told.change, number, reason=read)
    draw, line = read
    if ours.table is None or list(draw.test.keys) != ours.table["pixel_sha256"].to_pylist():
        return WorstClass(harm.line, name, told.change, number, reason="the set has other test images than it had")
    labels, predicted = (ours.table[column].to_numpy() for column in ("label", "predicted"))
    lost = np.flatnonzero((labels == harm.label) & ~ours.correct & base.correct).tolist()
    return WorstClass(
        line=harm.line,
        class_name=name,
        change=told.change,
        draw=number,
        real=_shots(draw.real, _of_class(draw.real, harm.label), f"real image of class {name}"),
        made=_shots(line.synthetic, _of_class(line.synthetic, harm.label), f"generated image of class {name}"),
        lost=_shots(
            draw.test, lost, f"test image of class {name}", [kept.class_names[predicted[place]] for place in lost]
        ),
        lost_count=len(lost),
    )


def _result(kept: KeptBench, judge: Judge, draw: str, line: str) -> Result:
    """The first initialisation of a line in a draw."""
    return min(
        (
            result
            for result in kept.results
            if (cell := result.receipt.cell).draw == draw
            and cell.line == line
            and (cell.encoder, cell.classifier, cell.setting) == judge
        ),
        key=lambda result: result.receipt.cell.seed,
    )


def _of_class(images: Images, label: int) -> list[int]:
    places: list[int] = np.flatnonzero(images.labelled.labels == label).tolist()
    return places


def _shots(images: Images, places: Sequence[int], alt: str, taken_for: Sequence[str] = ()) -> tuple[Shot, ...]:
    return tuple(
        Shot(_thumbnail(images.read(place)), alt, taken_for[number] if taken_for else "")
        for number, place in enumerate(places[:SHOWN])
    )


def _thumbnail(picture: "Image") -> Thumbnail | None:
    data = BytesIO()
    picture.save(data, "PNG")
    return thumbnail(data.getvalue())

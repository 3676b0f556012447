"""One row as a picture: its sources, an arrow, its result, with their classes beneath.

One row as a card: what it was made from, what came out, and the numbers that made it.

What a card shows follows from what the row holds, not from the method's name, so that new methods are shown too.

Templates to text: every value is escaped, an unknown name is an error.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.method import fallback_text
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.report.drawing import Box, Circle, Thumbnail, Trajectory, circle, thumbnail, trajectory
from diffaug_datasets.report.run_view import Gathered, Picture

BESIDE = Box(116, 92)
DRAWN = {"u", "arc", "switch"}


@dataclass(frozen=True)
class Fact:
    """A name, its value as text, and what it means where that helps."""

    name: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class SourceView:
    """A real image of a card; `other`: of another class than the row. `thumb` is None where it cannot be shown."""

    thumb: Thumbnail | None
    source_id: str
    class_name: str
    other: bool


@dataclass(frozen=True)
class Prompt:
    """The class prompt, and the suffix that the first `steps` steps carry as well."""

    text: str
    suffix: str = ""
    steps: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the judge sees. `of_source`: it still sees the class of the source image."""

    agrees: bool
    class_name: str
    confidence: str
    of_source: bool


@dataclass(frozen=True)
class Card:
    """A row for the page."""

    row_id: str
    urn: str
    seed: str
    class_name: str
    real: bool
    result: Thumbnail | None
    sources: tuple[SourceView, ...]
    facts: tuple[Fact, ...]
    prompt: Prompt | None
    circle: Circle | None
    trajectory: Trajectory | None
    verdict: Verdict | None
    dropped: str
    spared: str


def card(gathered: Gathered, picture: Picture) -> Card:
    """The card of a row; a real one has no source but itself, so none is shown."""
    row, names = picture.planned, gathered.class_names
    real = row.origin == "real"
    return Card(
        row_id=row.row_id,
        urn=picture.urn,
        seed="" if row.seed is None else str(row.seed),
        class_name=names[row.label],
        real=real,
        result=thumbnail(picture.data),
        sources=() if real else source_views(gathered, row),
        facts=tuple(_facts(picture, names)),
        prompt=_prompt(picture),
        circle=_circle(picture.measured),
        trajectory=_trajectory(picture),
        verdict=_verdict(picture, names),
        dropped=reason_text(gathered.dropped[row.row_id]) if row.row_id in gathered.dropped else "",
        spared=reason_text(gathered.spared[row.row_id]) if row.row_id in gathered.spared else "",
    )


def source_views(gathered: Gathered, row: PlanRow) -> tuple[SourceView, ...]:
    """The real images that a row names, in its order."""
    views = []
    for source_id, label in zip(row.source_ids, row.source_labels, strict=True):
        found = gathered.source(source_id)
        shown = None if found is None else thumbnail(found.data)
        views.append(SourceView(shown, source_id, gathered.class_names[label], label != row.label))
    return tuple(views)


def _prompt(picture: Picture) -> Prompt | None:
    row = picture.planned
    if row.prompt is None:
        return None
    first = row.prompt_first or row.prompt
    suffix = first[len(row.prompt) :].strip() if first.startswith(row.prompt) else first
    steps = picture.draw.get("switch")
    return Prompt(row.prompt, suffix, steps if suffix and isinstance(steps, int) else None)


def _circle(measured: Mapping[str, Any]) -> Circle | None:
    alpha, phi = measured.get("alpha"), measured.get("phi")
    return circle(alpha, phi) if is_number(alpha) and is_number(phi) else None


def _trajectory(picture: Picture) -> Trajectory | None:
    levels, distances = picture.measured.get("levels"), picture.measured.get("d")
    if not are_numbers(levels) or not are_numbers(distances):
        return None
    return trajectory(levels, distances, picture.planned.strength, BESIDE)


def _verdict(picture: Picture, names: tuple[str, ...]) -> Verdict | None:
    seen, row = picture.outcome.judge_label, picture.planned
    if seen is None or not 0 <= seen < len(names):
        return None
    confidence = picture.outcome.judge_confidence
    sure = "" if confidence is None else percent(confidence)
    return Verdict(seen == row.label, names[seen], sure, seen != row.label and seen in row.source_labels)


def _facts(picture: Picture, names: tuple[str, ...]) -> list[Fact]:
    row, out = picture.planned, picture.outcome
    facts = [*_schedule(row), *_measures(picture), *_weights(picture, names)]
    if out.attempt:
        facts.append(Fact("attempt", str(out.attempt + 1), "earlier tries gave no usable image"))
    if row.fallback:
        facts.append(Fact("fallback", row.fallback, fallback_text(row.fallback)))
    return facts + [Fact(name, str(value)) for name, value in sorted(picture.draw.items()) if _is_extra(name, value)]


def _weights(picture: Picture, names: tuple[str, ...]) -> list[Fact]:
    """The label of an image between two classes: `bag 0.71, boot 0.29`, the largest first."""
    label = picture.planned.soft_label
    if len(label.classes) == 1:
        return []
    pairs = sorted(zip(label.weight, label.classes, strict=True), reverse=True)
    return [Fact("label", ", ".join(f"{names[c]} {w:.2f}" for w, c in pairs), "weights of the soft label")]


def _schedule(row: PlanRow) -> list[Fact]:
    facts = []
    if row.strength is not None and row.source_ids and row.strength < 1:
        is_genie = any(label != row.label for label in row.source_labels) and len(row.soft_label.classes) == 1
        facts.append(
            Fact("ratio r" if is_genie else "strength", f"{row.strength:.2f}", "share of the schedule denoised")
        )
    if row.num_inference_steps is not None and row.start_step is not None:
        ran = row.num_inference_steps - row.start_step
        value = f"{ran} of {row.num_inference_steps}" if row.start_step else str(ran)
        facts.append(Fact("steps", value, "sampling steps that ran"))
    return facts


def _measures(picture: Picture) -> list[Fact]:
    out = picture.outcome
    named = [
        ("margin", out.clip_margin, "+.3f", "CLIP cosine to its class minus the best other class's"),
        ("similarity", out.source_similarity, ".3f", "largest cosine to a source image"),
    ]
    found = picture.measured.get("similarity")
    if is_number(found):
        named.append(("query", found, ".3f", "cosine of a retrieved image to what it was looked for with"))
    return [Fact(name, signed(value, form), hint) for name, value, form, hint in named if value is not None]


def _is_extra(name: str, value: Any) -> bool:
    return name not in DRAWN and isinstance(value, str | int | float)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(value: Any) -> TypeGuard[list[float]]:
    """Whether a value read from JSON is a list of finite numbers."""
    return isinstance(value, list) and all(map(is_number, value))


def signed(value: float, form: str) -> str:
    """A number in a format, with a true minus sign."""
    return format(value, form).replace("-", "\u2212")


def percent(share: float) -> str:
    """A share in [0, 1] as whole percent; only all is 100 %, only none is 0 %."""
    whole = round(100 * share)
    return f"{min(99, max(1, whole)) if 0 < share < 1 else whole}\u00a0%"


def reason_text(reason: str) -> str:
    """The selection's reason in words: `{"column":"clip_margin","minimum":0}` becomes `clip_margin below 0`."""
    try:
        rule = json.loads(reason)
        column = rule["column"]
    except (ValueError, KeyError, TypeError):
        return reason
    words = {"minimum": "below", "maximum": "above"}
    limits = [f"{word} {rule[key]:g}" for key, word in words.items() if rule.get(key) is not None]
    limits += ["not its label"] if rule.get("equals_label") else []
    limits += [f"among the lowest {percent(rule['lowest'])}"] if rule.get("lowest") else []
    return f"{column} {' or '.join(limits)}"


THIN = "\u202f"


def render(template: str, **values: object) -> str:
    """The page of a template in `diffaug_datasets.cards`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "seconds": seconds, "rate": rate}
    environment.filters |= {"percent": percent, "signed": signed, "pyrepr": repr}
    return environment


def _source(name: str) -> str:
    return (files("diffaug_datasets.cards") / name).read_text(encoding="utf-8")


def count(number: int) -> str:
    """A whole number, thousands set apart: 12 345."""
    return f"{number:,}".replace(",", THIN)


def seconds(value: float) -> str:
    """A duration as one reads it: 0.84 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rate(value: float) -> str:
    """A speed: 0.031, 1.2, 45."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


SIDE, GAP, MARGIN, FOOT = 256, 28, 32, 64
PAPER, INK, SOFT, REAL, MADE = "#faf8f4", "#1f1d1a", "#69645b", "#2a5f93", "#b8480f"


@dataclass(frozen=True)
class Tile:
    """One image of the sheet; None where it cannot be shown."""

    image: Image.Image | None
    caption: str
    colour: str


def draw_sheet(gathered: Gathered, picture: Picture, path: Path) -> None:
    """Write the sheet as PNG. Small images are enlarged without smoothing, large ones reduced."""
    tiles = [*_source_tiles(gathered, picture), _result_tile(gathered, picture)]
    width = 2 * MARGIN + len(tiles) * SIDE + (len(tiles) - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + SIDE + FOOT), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, tile in enumerate(tiles):
        _draw_tile(sheet, pen, tile, MARGIN + place * (SIDE + GAP))
    if len(tiles) > 1:
        _draw_arrow(pen, MARGIN + (len(tiles) - 1) * (SIDE + GAP) - GAP // 2)
    sheet.save(path, "PNG")


def _source_tiles(gathered: Gathered, picture: Picture) -> list[Tile]:
    row, tiles = picture.planned, []
    if row.origin == "real":
        return []
    for source_id, label in zip(row.source_ids, row.source_labels, strict=True):
        found = gathered.source(source_id)
        tiles.append(Tile(_decoded(found.data) if found else None, gathered.class_names[label], REAL))
    return tiles


def _result_tile(gathered: Gathered, picture: Picture) -> Tile:
    row = picture.planned
    colour = REAL if row.origin == "real" else MADE
    return Tile(_decoded(picture.data), gathered.class_names[row.label], colour)


def _decoded(data: bytes) -> Image.Image | None:
    try:
        return decode_image(data)
    except SourceError:
        return None


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int) -> None:
    box = (left - 2, MARGIN - 2, left + SIDE + 1, MARGIN + SIDE + 1)
    pen.rectangle(box, outline=tile.colour, width=2)
    if tile.image is not None:
        fitted = _fitted(tile.image)
        sheet.paste(fitted, (left + (SIDE - fitted.width) // 2, MARGIN + (SIDE - fitted.height) // 2))
    pen.text((left, MARGIN + SIDE + 14), _shortened(tile.caption), fill=tile.colour, font=ImageFont.load_default(18))


def _fitted(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(caption: str) -> str:
    line = " ".join(caption.split())
    return line if len(line) <= 26 else line[:25] + "…"


def _draw_arrow(pen: ImageDraw.ImageDraw, middle: int) -> None:
    y = MARGIN + SIDE // 2
    pen.line((middle - 8, y, middle + 6, y), fill=SOFT, width=2)
    pen.polygon(((middle + 9, y), (middle + 3, y - 5), (middle + 3, y + 5)), fill=SOFT)

"""One row for people: what it was made from, what came out, and the numbers that made it.

As a card of the page, as text (`diffaug show`), or as a sheet of its sources beside its result. What is shown follows
from what the row holds, not from the method's name, so that new methods are shown too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import write_atomically, write_text
from diffaug_datasets.core.method_facts import fallback_text
from diffaug_datasets.core.rows import Outcome, PlanRow, row_urn
from diffaug_datasets.report.rendering import (
    Box,
    Circle,
    Thumbnail,
    Trajectory,
    are_numbers,
    circle,
    decoded,
    is_number,
    percent,
    render,
    signed,
    thumbnail,
    trajectory,
)
from diffaug_datasets.report.run_view import Picture, RunView
from diffaug_datasets.run.store import Run

BESIDE = Box(116, 92)
DRAWN = {"u", "arc", "switch"}  # draws that a card shows in another form
SIDE, GAP, MARGIN, FOOT = 256, 28, 32, 64  # pixels of the sheet
CAPTION = 26  # letters
PAPER, SOFT, REAL, MADE = "#faf8f4", "#69645b", "#2a5f93", "#b8480f"
PROMPTS = ("prompt", "prompt_first", "negative_prompt")
SAMPLING = ("seed", "num_inference_steps", "start_step", "guidance_scale", "strength", "fallback", "backbone")
SCORES = ("clip_score", "clip_margin", "source_similarity", "judge_confidence")
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # of the sources, in a row's order


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
class Judgement:
    """What the judge sees. `of_source`: it still sees the class of the source image."""

    agrees: bool
    class_name: str
    confidence: str
    of_source: bool


@dataclass(frozen=True)
class RowCard:
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
    judged: Judgement | None
    dropped: str
    spared: str


def row_card(view: RunView, picture: Picture) -> RowCard:
    """The card of a row; a real one has no source but itself, so none is shown."""
    row, names = picture.planned, view.class_names
    real, measured = row.origin == "real", picture.measured
    alpha, phi, levels, distances = (measured.get(name) for name in ("alpha", "phi", "levels", "d"))
    jumps = None
    if are_numbers(levels) and are_numbers(distances):
        jumps = trajectory(levels, distances, row.strength, BESIDE)
    return RowCard(
        row_id=row.row_id,
        urn=picture.urn,
        seed="" if row.seed is None else str(row.seed),
        class_name=names[row.label],
        real=real,
        result=thumbnail(picture.data),
        sources=() if real else source_views(view, row),
        facts=tuple(_facts(picture, names)),
        prompt=_prompt(picture),
        circle=circle(alpha, phi) if is_number(alpha) and is_number(phi) else None,
        trajectory=jumps,
        judged=_judged(view, picture),
        dropped=reason_text(view.dropped[row.row_id]) if row.row_id in view.dropped else "",
        spared=reason_text(view.spared[row.row_id]) if row.row_id in view.spared else "",
    )


def source_views(view: RunView, row: PlanRow) -> tuple[SourceView, ...]:
    """The real images that a row names, in its order."""
    views = []
    for source_id, label in zip(row.source_ids, row.source_labels, strict=True):
        source = view.source(source_id)
        thumb = None if source is None else thumbnail(source.data)
        views.append(SourceView(thumb, source_id, view.class_names[label], label != row.label))
    return tuple(views)


def _prompt(picture: Picture) -> Prompt | None:
    row = picture.planned
    if row.prompt is None:
        return None
    first = row.prompt_first or row.prompt
    suffix = first[len(row.prompt) :].strip() if first.startswith(row.prompt) else first
    steps = picture.draw.get("switch")
    return Prompt(row.prompt, suffix, steps if suffix and isinstance(steps, int) else None)


def _judged(view: RunView, picture: Picture) -> Judgement | None:
    row, names = picture.planned, view.class_names
    found = view.seen.get(row.row_id)
    seen, confidence = picture.outcome.judge_label, picture.outcome.judge_confidence
    if found is not None:
        seen, confidence = found, None
    if seen is None or not 0 <= seen < len(names):
        return None
    sure = "" if confidence is None else percent(confidence)
    return Judgement(seen == row.label, names[seen], sure, seen != row.label and seen in row.source_labels)


def _facts(picture: Picture, names: tuple[str, ...]) -> list[Fact]:
    row, out = picture.planned, picture.outcome
    facts = [*_schedule(row), *_measures(picture)]
    if len(row.soft_label.classes) > 1:  # an image between classes: `bag 0.71, boot 0.29`, the largest first
        pairs = sorted(zip(row.soft_label.weight, row.soft_label.classes, strict=True), reverse=True)
        weights = ", ".join(f"{names[label]} {weight:.2f}" for weight, label in pairs)
        facts.append(Fact("label", weights, "weights of the soft label"))
    if out.attempt:
        facts.append(Fact("attempt", str(out.attempt + 1), "earlier tries gave no usable image"))
    if row.fallback:
        facts.append(Fact("fallback", row.fallback, fallback_text(row.fallback)))
    draws = sorted((name, value) for name, value in picture.draw.items() if isinstance(value, str | int | float))
    return facts + [Fact(name, str(value)) for name, value in draws if name not in DRAWN]


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
    similarity = picture.measured.get("similarity")
    if is_number(similarity):
        named.append(("query", similarity, ".3f", "cosine of a retrieved image to what it was looked for with"))
    return [Fact(name, signed(value, form), hint) for name, value, form, hint in named if value is not None]


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


def show(run: Run, prefix: str, out: Path | None = None) -> str:
    """Every column of a row as text; with `out` also a sheet of its sources and its image (.html or .png).

    `prefix` is a row id or the beginning of exactly one.

    Raises:
        RunError: no row or several begin like that, a sheet is wanted of a row without an image, or in another format.
    """
    planned = run.row(prefix)
    view = RunView(run, planned)
    picture = _picture(view, planned)
    text = "\n".join(_lines(view, planned, picture))
    if out is None:
        return text
    if picture is None:
        state = _state(view, planned, picture)
        raise RunError(f"row {planned.row_id} has no image ({state}); there is no sheet of it.")
    if out.suffix.lower() == ".html":
        card, method = row_card(view, picture), picture.planned.method
        write_text(out, render("row.html.jinja", card=card, name=view.header.name, method=method, text=text))
    elif out.suffix.lower() == ".png":
        write_atomically(out, lambda path: draw_sheet(view, picture, path))
    else:
        raise RunError(f"{out}: got the ending {out.suffix!r}, expected .html or .png.")
    return text


def _picture(view: RunView, planned: PlanRow) -> Picture | None:
    if planned.origin == "real":
        source = view.source(planned.source_ids[0])
        return source if source is not None and source.planned.row_id == planned.row_id else None
    scanned = next((row for row in view.rows if row.row_id == planned.row_id), None)
    return None if scanned is None else view.picture(scanned)


def _lines(view: RunView, planned: PlanRow, picture: Picture | None) -> Iterator[str]:
    row = picture.planned if picture else planned
    names = view.class_names
    weights = zip(row.soft_label.classes, row.soft_label.weight, strict=True)
    adapters = {"adapters": ", ".join(row.adapters)} if row.adapters else {}
    yield f"row {planned.row_id} of {view.header.name}"
    yield ""
    yield _line("class", f"{names[row.label]} (label {row.label})")
    yield _line("trained as", ", ".join(f"{names[label]} {weight:g}" for label, weight in weights))
    yield _line("state", _state(view, planned, picture))
    yield _line("origin", f"{row.origin}, method {row.method} version {row.method_version}")
    yield from _section("prompts", _known(row, PROMPTS))
    yield from _section("sampling", {**_known(row, SAMPLING), **adapters})
    yield from _section("draws", json.loads(row.draw))
    if picture is not None:
        yield from _section("measured", picture.measured)
        yield from _section("scores", _scores(view, picture))
        yield from _section("image", _known(picture.outcome, ("width", "height", "image_format", "pixel_sha256")))
        yield from _section("made", _known(picture.outcome, ("attempt", "batch_shape")))
    yield from _section("sources", _sources(row, names))
    urn = picture.urn if picture else row_urn(view.run.plan.id, planned.row_id)
    yield from _section("plan", {"urn": urn, "plan_id": view.run.plan.id, "k": planned.k, "split": planned.split})


def _state(view: RunView, planned: PlanRow, picture: Picture | None) -> str:
    """What became of a row: planned, failed, written, left out or kept."""
    row_id = planned.row_id
    if failed := next((row for row in view.failed if row.row_id == row_id), None):
        return f"failed after {failed.attempts} attempts: {failed.reason}"
    if picture is None:
        return "no image yet: its shard is not made"
    if row_id in view.dropped:
        return f"written, taken out by the selection: {reason_text(view.dropped[row_id])}"
    if row_id in view.spared:
        return f"written, kept for its class's min_keep: {reason_text(view.spared[row_id])}"
    return "written and kept" if view.run.receipt("selection") or planned.origin == "real" else "written"


def _scores(view: RunView, picture: Picture) -> Mapping[str, object]:
    names, scores = view.class_names, _known(picture.outcome, SCORES)
    found = {"judge_label": picture.outcome.judge_label, "seen_label": view.seen.get(picture.planned.row_id)}
    seen = {name: label for name, label in found.items() if label is not None}
    words = {n: f"{names[label] if 0 <= label < len(names) else '?'} (label {label})" for n, label in seen.items()}
    return {**scores, **words}


def _sources(row: PlanRow, names: tuple[str, ...]) -> Mapping[str, object]:
    if row.origin == "real":
        return {"a": row.source_ids[0]}
    sources = zip(LETTERS, row.source_ids, row.source_labels, strict=False)
    return {letter: f"{source_id} {names[label]} (label {label})" for letter, source_id, label in sources}


def _known(columns: PlanRow | Outcome, names: tuple[str, ...]) -> Mapping[str, object]:
    """Those of the named columns that are not null."""
    values = dict(columns)
    return {name: values[name] for name in names if values[name] is not None}


def _section(title: str, content: Mapping[str, object]) -> Iterator[str]:
    if content:
        yield ""
        yield title
        yield from (_line(name, _text(value)) for name, value in content.items())


def _line(name: str, value: str) -> str:
    """What a terminal would obey (control characters, line breaks) is spelled out."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)
    return f"  {name:<20} {shown}"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value) or '""'


def draw_sheet(view: RunView, picture: Picture, path: Path) -> None:
    """Write the sheet as PNG: sources, an arrow, the result, their classes beneath.

    Small images are enlarged without smoothing, large ones reduced; one that cannot be decoded is an empty frame.
    """
    row, names = picture.planned, view.class_names
    tiles: list[tuple[Image.Image | None, str, str]] = []
    if row.origin != "real":
        for source_id, label in zip(row.source_ids, row.source_labels, strict=True):
            source = view.source(source_id)
            tiles.append((decoded(source.data) if source else None, names[label], REAL))
    tiles.append((decoded(picture.data), names[row.label], REAL if row.origin == "real" else MADE))
    width = 2 * MARGIN + len(tiles) * SIDE + (len(tiles) - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + SIDE + FOOT), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (image, class_name, colour) in enumerate(tiles):
        left = MARGIN + place * (SIDE + GAP)
        pen.rectangle((left - 2, MARGIN - 2, left + SIDE + 1, MARGIN + SIDE + 1), outline=colour, width=2)
        if image is not None:
            fitted = _fitted(image)
            sheet.paste(fitted, (left + (SIDE - fitted.width) // 2, MARGIN + (SIDE - fitted.height) // 2))
        caption = " ".join(class_name.split())
        caption = caption if len(caption) <= CAPTION else caption[: CAPTION - 1] + "…"
        pen.text((left, MARGIN + SIDE + 14), caption, fill=colour, font=ImageFont.load_default(18))
    if len(tiles) > 1:
        x, y = MARGIN + (len(tiles) - 1) * (SIDE + GAP) - GAP // 2, MARGIN + SIDE // 2
        pen.line((x - 8, y, x + 6, y), fill=SOFT, width=2)
        pen.polygon(((x + 9, y), (x + 3, y - 5), (x + 3, y + 5)), fill=SOFT)
    sheet.save(path, "PNG")


def _fitted(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)

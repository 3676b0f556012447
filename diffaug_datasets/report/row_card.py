"""One row as a card: what it was made from, what came out, and the numbers that made it.

What a card shows follows from what the row holds, not from the method's name, so that new methods are shown too.
"""

import json
from dataclasses import dataclass

from diffaug_datasets.core.method_facts import fallback_text
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.report.rendering import (
    Box,
    Circle,
    Thumbnail,
    Trajectory,
    are_numbers,
    circle,
    is_number,
    percent,
    signed,
    thumbnail,
    trajectory,
)
from diffaug_datasets.report.run_view import Picture, RunView

BESIDE = Box(116, 92)
DRAWN = {"u", "arc", "switch"}  # draws that a card shows in another form


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
        judged=_judged(picture, names),
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


def _judged(picture: Picture, names: tuple[str, ...]) -> Judgement | None:
    seen, row = picture.outcome.judge_label, picture.planned
    if seen is None or not 0 <= seen < len(names):
        return None
    confidence = picture.outcome.judge_confidence
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
    found = picture.measured.get("similarity")
    if is_number(found):
        named.append(("query", found, ".3f", "cosine of a retrieved image to what it was looked for with"))
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

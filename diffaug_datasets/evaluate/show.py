"""`diffaug show`: one row in full, as text and, where asked for, as a sheet of its sources beside its result."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.rows import FailedRow, PlanRow, row_urn
from diffaug_datasets.core.temporary import write_atomically, write_text
from diffaug_datasets.evaluate.gather import Gathered, Picture
from diffaug_datasets.evaluate.pages import render
from diffaug_datasets.evaluate.row_card import card, reason_text
from diffaug_datasets.evaluate.sheet import draw_sheet
from diffaug_datasets.run.store import Run

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

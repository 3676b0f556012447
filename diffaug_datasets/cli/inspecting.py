"""Verbs that look at a run: its state, one row, a report, one row made again."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.cli.screen import say, say_facts, say_json
from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.progress import Status, status
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    from diffaug_datasets.run.closeness import Closeness


def print_status(folder: Path, as_json: bool) -> None:
    """Counts from receipts, and which units are being worked on."""
    state = status(Run.open(folder))
    if as_json:
        say_json(asdict(state))
        return
    say(f"{state.name}, plan {state.plan_id[:16]}: {_phase(state)}")
    held = "unknown, for locks cannot be read here" if state.held is None else ", ".join(state.held) or "nothing"
    rate = f", {state.rows_per_second:.1f} a second and worker" if state.rows_per_second else ""
    say_facts(
        {
            "  fits": f"{state.fits_done} of {state.fits}",
            "  shards": f"{state.shards_done} of {state.shards}",
            "  images": f"{state.rows_written} written, {state.rows_failed} failed, of {state.rows}{rate}",
            "  in work": held,
        }
    )
    for reason, count in state.reasons.items():
        say(f"  failed {count} times: {reason}")
    if not state.finished and not state.held:
        say(f"next: diffaug generate {folder}")


def _phase(state: Status) -> str:
    if state.finished:
        return "finished"
    return "running" if state.held else "not finished"


def show_row(folder: Path, prefix: str, out: Path | None) -> None:
    """Everything about one row."""
    from diffaug_datasets.evaluate.show import show

    say(show(Run.open(folder), prefix, out))


def make_report(folders: Sequence[Path], out: Path | None) -> None:
    """A page over runs."""
    from diffaug_datasets.evaluate.report import write_report

    page = write_report([Run.open(folder) for folder in folders], out or folders[0] / "report.html")
    say(f"report page: {page}")


def rebuild_row(folder: Path, prefix: str, out: Path | None, device: str, as_json: bool) -> int:
    """Make one row again; 1 where its pixels are not what they should be on this stack."""
    from diffaug_datasets.run.closeness import closeness
    from diffaug_datasets.run.context import sources_in
    from diffaug_datasets.run.execute import resolve_device
    from diffaug_datasets.run.features import read_stream
    from diffaug_datasets.run.regenerate import Regenerator

    run = Run.open(folder)
    columns, image, stack = finished_row(run, prefix)
    tables = [read_stream(str(run.shard_path(s.name))) for s in run.plan.real_shards() if s.name.startswith("real")]
    fits, device = run.folder / "fits", resolve_device(device)
    regenerate = Regenerator(run.recipe, run.plan, fits, sources_in(tables), device=device)
    made = regenerate(columns)
    if out is not None:
        write_new(out, made.data)
    row_id, stored = str(columns["row_id"]), str(columns["pixel_sha256"])
    found = closeness(row_id, stored, made, [stack], regenerate, lambda: image)
    return say_closeness(found, as_json)


def say_closeness(found: "Closeness", as_json: bool) -> int:
    """Print how a rebuilt row compares; 1 where it is not as it should be, 3 where that cannot be known."""
    verdict = "ok" if found.is_good else "could not check" if found.is_unknown else "WRONG"
    if as_json:
        say_json({**asdict(found), "outcome": verdict})
    else:
        say(str(found))
    return {"ok": 0, "could not check": 3, "WRONG": 1}[verdict]


def write_new(out: Path, data: bytes) -> None:
    """Raises RunError where it cannot be written."""
    try:
        out.write_bytes(data)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); give another place.") from None


def finished_row(run: Run, prefix: str) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """The columns of a finished generated row without its image, that image, and the stack that made it.

    Raises:
        RunError: no row or several begin so, it failed, or it is not made yet.
    """
    from diffaug_datasets.run.features import read_stream

    row_id = find_row(run, prefix)
    shard = next(shard for shard in run.plan.shards() if any(row.row_id == row_id for row in shard.rows))
    receipt = run.receipt(shard.name)
    if receipt is None:
        raise RunError(f"row {row_id}: not made yet; `diffaug generate {run.folder}` makes it.")
    if failed := next((row for row in receipt.failed if row.row_id == row_id), None):
        raise RunError(f"row {row_id}: has no image; it failed after {failed.attempts} attempts ({failed.reason}).")
    table = read_stream(str(run.shard_path(shard.name)))
    place = table.column("row_id").to_pylist().index(row_id)
    columns: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
    return columns, bytes(columns.pop("image")["bytes"]), receipt.stack


def find_row(run: Run, prefix: str) -> str:
    """The id of the one planned row that begins so.

    Raises:
        RunError: none or several do.
    """
    found = [row.row_id for row in run.plan.rows if row.row_id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        first = run.plan.rows[0].row_id
        raise RunError(f"row {prefix!r}: no generated row of {run.folder} begins so; the first one is {first}.")
    raise RunError(f"row {prefix!r}: {len(found)} rows begin so, such as {found[0]} and {found[1]}; give more digits.")

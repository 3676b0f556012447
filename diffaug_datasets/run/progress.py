"""How far a run is: read from receipts and events, by any process."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffaug_datasets.run.store import Run


@dataclass(frozen=True)
class Status:
    """Counts of units and rows, computed from receipts; `held` units are being worked on now."""

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


def status(run: Run) -> Status:
    """The state of a run folder, from another process if need be."""
    fits = [run.receipt(unit.name) for unit in run.plan.fits]
    shards = run.plan.shards()
    done = [r for shard in shards if (r := run.receipt(shard.name))]
    names = [unit.name for _, units in run.units() for unit in units]
    written, seconds = sum(r.rows for r in done), sum(r.seconds for r in done)
    failed = [row for r in done for row in r.failed]
    reasons = [row.reason for row in failed]
    return Status(
        name=run.plan.header.name,
        plan_id=run.plan.id,
        fits_done=sum(r is not None for r in fits),
        fits=len(fits),
        shards_done=len(done),
        shards=len(shards),
        rows_written=written,
        rows_failed=len(failed),
        rows=len(run.plan.rows),
        held=tuple(name for name in names if run.receipt(name) is None and run.held(name)),
        finished=(run.folder / "run.json").exists(),
        rows_per_second=written / seconds if seconds else None,
        reasons={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
    )


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

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last call; a line that is still being written waits for the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        events = [json.loads(line) for line in whole.splitlines()]
        for event in events:
            self._count(event)
        return events

    def _count(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "batch":
            self.shards[event["unit"]] = self.shards.get(event["unit"], 0) + event["rows"] + event["failed"]
        elif kind == "start":
            self.shards.pop(event["unit"], None)
        elif kind == "fit":
            loss = "overflowed, step left out" if event["loss"] is None else f"loss {event['loss']:.4f}"
            self.fit = f"{event['unit']} {event['step']}/{event['total']} {loss}"
        self.rows = sum(self.shards.values())

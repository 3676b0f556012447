"""A card on the Hub that says how far a run is, while it is worked on: `generate --progress org/name`.

Of all processes that are given the name one writes it, the holder of the lease `progress`; when it dies another one
takes over. Two commits are at least ten minutes apart: whoever finds a card there does not know when it was written,
and waits so long first. Where the end is near the card waits for it, so that its last word may be the end. A card is
written over if it is one of these; anything else that lies there stays. Nothing that happens to it stops the run.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.identity import __version__
from diffaug_datasets.run.leases import Lease
from diffaug_datasets.run.progress import Status, clock, status
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger("diffaug_datasets")
UNIT = "progress"  # what the lease is of
INTERVAL = 600.0  # seconds between two commits, at the least
LONGEST = 1800.0  # seconds after which a card is written although the end is near
LOOK, NEAR_LOOK, LEASE_LOOK = 1.0, 30.0, 30.0  # seconds between looks: at the end, at the run, at the lease
LEAVE = 20.0  # seconds that the last word may take
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
MARK = "<!-- diffaug: how far a run is -->"
README = "README.md"


def check_name(name: str) -> str:
    """The name as it is; RunError where no repository of the Hub is called so."""
    if not NAME.fullmatch(name):
        raise RunError(f"--progress: got {name!r}, expected org/name of a dataset repository on the Hub.")
    return name


@contextmanager
def live_card(run: Run, name: str) -> Iterator[None]:
    """Meanwhile a thread keeps the card at `name`; nothing where that is empty."""
    if not name:
        yield
        return
    card = LiveCard(run.again(), name)
    thread = threading.Thread(target=card.keep, name=f"card of {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        card.over.set()
        thread.join(LEAVE)


@dataclass
class LiveCard:
    """The card of a run, as one process keeps it. `over`: the process leaves. `last`: when one was asked for last."""

    run: Run
    name: str
    over: threading.Event = field(default_factory=threading.Event)
    last: float = -math.inf
    _is_said: bool = False
    _is_ours: bool = False
    _has_written: bool = False
    _is_final: bool = False
    _text: str = ""

    def keep(self) -> None:
        """Write the card until the process leaves, whenever this process holds the lease."""
        while not self.over.is_set():
            try:
                with self.run.lease(UNIT) as mine:
                    if mine is not None:
                        self._write_on(mine)
                        return
            except RunError as error:  # the place of the run; whoever makes images meets it too
                self._say(str(error).rstrip("."))
            self.over.wait(LEASE_LOOK)

    def _write_on(self, mine: Lease) -> None:
        looked, is_over = -math.inf, False
        while not is_over:
            is_over = self.over.wait(LOOK)
            now = time.monotonic()
            if now - self.last < INTERVAL or (now - looked < min(NEAR_LOOK, INTERVAL) and not is_over):
                continue
            looked = now
            if not self._tried(mine, is_over):
                return
        mine.done = True
        if self._has_written and time.monotonic() - self.last < INTERVAL and not self._is_final:
            log.warning("progress: the card of %s shows how far it was before the end; publish replaces it.", self.name)

    def _tried(self, mine: Lease, is_over: bool) -> bool:
        """Write the card if this is the time for it; False where it is not ours to write."""
        state = status(self.run)
        waited = time.monotonic() - self.last
        is_near = state.seconds_left is not None and state.seconds_left < INTERVAL
        if is_near and self._has_written and not is_over and waited < LONGEST:
            return True
        try:
            if not self._is_ours and not self._opened():
                return True
            if self.run.leases.is_current(mine):
                self._commit(state)
        except NotOurs as error:
            self._say(str(error))
            return False
        except _errors() as error:
            self.last = time.monotonic()
            self._say(_reason(error))
        return True

    def _opened(self) -> bool:
        """Have a repository that may be written; whether nobody can have written it just now."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            self.api.repo_info(self.name, repo_type="dataset")
            there = self.api.hf_hub_download(self.name, README, repo_type="dataset", force_download=True)
        except RepositoryNotFoundError:
            self.api.create_repo(self.name, repo_type="dataset", private=True, exist_ok=True)
        except EntryNotFoundError:
            pass
        else:
            if MARK not in Path(there).read_text(encoding="utf-8", errors="replace"):
                raise NotOurs(f"{self.name} holds a card that is none of progress, which stays; give another name")
            self._is_ours, self.last = True, time.monotonic()
            return False
        self._is_ours = True
        return True

    def _commit(self, state: Status) -> None:
        from huggingface_hub import CommitOperationAdd

        text = card_text(state)
        if text == self._text:
            return
        try:
            self.api.create_commit(
                self.name,
                [CommitOperationAdd(README, text.encode())],
                commit_message=f"progress: {state.rows_written + state.rows_failed} of {state.rows} images",
                repo_type="dataset",
            )
        finally:
            self.last = time.monotonic()  # also of an attempt that fails: nobody knows what became of it
        self._has_written, self._is_final, self._text = True, state.finished, text

    @cached_property
    def api(self) -> "HfApi":
        """The Hub's client."""
        from huggingface_hub import HfApi

        return HfApi(library_name="diffaug-datasets", library_version=__version__)

    def _say(self, reason: str) -> None:
        """One warning a process."""
        if not self._is_said:
            self._is_said = True
            log.warning("progress: %s; the run goes on.", reason)


class NotOurs(Exception):
    """What lies there was written by somebody else, or by `publish`."""


def card_text(state: Status) -> str:
    """The card: counts, pace and failures; no name of a machine."""
    done = state.rows_written + state.rows_failed
    phase = "finished" if state.finished else "being made" if state.lively else "not worked on"
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = {
        "fits": f"{state.fits_done} of {state.fits}",
        "shards": f"{state.shards_done:,} of {state.shards:,}",
        "images": f"{state.rows_written:,} written, {state.rows_failed:,} failed, of {state.rows:,} "
        f"({100 * done / max(1, state.rows):.0f} %)",
        "workers": f"{state.lively}",
        "pace": f"{state.rows_per_second:.2g} images per second and worker" if state.rows_per_second else "",
        "left": f"about {clock(state.seconds_left)}" if state.seconds_left is not None else "",
        "shows its class": "; ".join(state.shown.lines()) if state.shown else "",
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in lines.items() if text)
    failures = "".join(f"\n- failed {count} times: `{_plain(reason)}`" for reason, count in state.reasons.items())
    goes_on = "Written anew now and then, at most every ten minutes, for as long as somebody works on the run."
    after = "`diffaug publish` puts the set here." if state.finished else goes_on
    return (
        f"---\ntags:\n- diffaug\n- synthetic\n---\n\n{MARK}\n# {state.name}: {phase}\n\n"
        f"Plan `{state.plan_id[:16]}`, as of {written}.\n\n| | |\n| --- | --- |\n{rows}\n{failures}\n\n{after}\n"
    )


def _plain(reason: str) -> str:
    return reason.replace("`", "'").replace("|", "/")[:200]


def _errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises: its own errors, those of its transport, of the system, and refused metadata."""
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError, HfHubHTTPError.__mro__[1], OSError, ValueError)


def _reason(error: Exception) -> str:
    """Why the card cannot be written, without what the client says, which holds addresses and headers."""
    answer = getattr(error, "response", None)
    number = getattr(answer, "status_code", None)
    if number in (401, 403):
        return f"the Hub refuses the token ({number}); run `hf auth login`, or set HF_TOKEN to one that may write there"
    if number is not None:
        return f"the Hub answers {number}"
    return f"the Hub cannot be reached ({type(error).__name__})"

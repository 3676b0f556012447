"""Real SIGKILLs on real runs: in forked children that have the libraries loaded, or on the command line."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_runs import digests

from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

PRELOAD = ["torch", "peft", "diffaug_datasets.models.concepts", "diffaug_datasets.models.denoising", "kills"]


@dataclass(frozen=True)
class KillAt:
    """Kills its own process when an event or a file takes its place whose name contains the text.

    An event is called `fit: 3` (by its step) or `batch: UNIT`, before it is written; a file `replace: NAME`, when it
    is written whole under its temporary name and synced, and is to get its own name: by a rename, or by a link.
    """

    text: str

    def install(self) -> None:
        """From now on in this process."""
        event, replace, link = Run.event, os.replace, os.link

        def watched_event(run: Run, **content: Any) -> None:
            self._reached(f"{content['event']}: {content.get('step', content.get('unit'))}")
            event(run, **content)

        def watched_replace(origin: str | Path, target: str | Path, **options: Any) -> None:
            self._reached(f"replace: {Path(target).name}")
            replace(origin, target, **options)

        def watched_link(origin: str | Path, target: str | Path, **options: Any) -> None:
            self._reached(f"replace: {Path(target).name}")
            link(origin, target, **options)

        Run.event, os.replace, os.link = watched_event, watched_replace, watched_link  # type: ignore[assignment, method-assign]

    def _reached(self, point: str) -> None:
        if self.text in point:
            os.kill(os.getpid(), signal.SIGKILL)


def generate(folder: Path, kill: KillAt | None = None) -> None:
    """What a child does."""
    if kill:
        kill.install()
    execute(Run.open(folder), WorkerOptions(), workers=1)


def start(folder: Path, kill: KillAt | None = None) -> multiprocessing.Process:
    """A child that generates; forkserver, so that it begins at once and shares no state with the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=generate, args=(folder, kill))
    child.start()
    return child


def finish(folder: Path) -> float:
    """Generate to the end in a child; seconds that it took."""
    begin = time.monotonic()
    child = start(folder)
    child.join()
    assert child.exitcode == 0, f"exit code {child.exitcode}"
    return time.monotonic() - begin


def start_command(folder: Path) -> subprocess.Popen[bytes]:
    """`diffaug generate` as its own process."""
    command = [sys.executable, "-m", "diffaug_datasets", "generate", str(folder), "--workers", "1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def kill_after(folder: Path, seconds: float, *, command: bool = False) -> bool:
    """SIGKILL a generating process after some seconds; whether it was still at work."""
    child = start_command(folder) if command else start(folder)
    time.sleep(seconds)
    child.kill()
    code = child.wait() if isinstance(child, subprocess.Popen) else (child.join(), child.exitcode)[1]
    return code == -signal.SIGKILL


@dataclass(frozen=True)
class Planned:
    """A planned folder to copy, what an uninterrupted run of it makes, and the time that took."""

    folder: Path
    expected: dict[str, str]
    seconds: float

    @classmethod
    def measure(cls, folder: Path) -> "Planned":
        """Run a copy without interruption, twice: the first time also starts the server that children come from."""
        for name in ("first", "whole"):
            whole = Path(shutil.copytree(folder, folder.with_name(name)))
            seconds = finish(whole)
        return cls(folder, digests(whole), seconds)

    def copy(self, name: str) -> Path:
        """A fresh copy of the planned folder."""
        return Path(shutil.copytree(self.folder, self.folder.with_name(name)))

    def check(self, folder: Path) -> None:
        """Resume to the end: the same bytes, at most one unit done twice, nothing finished done again."""
        finished = {path.stem for path in (folder / "shards").glob("synthetic-*.json")}
        finish(folder)
        assert digests(folder) == self.expected
        starts = started(folder)
        assert len(starts) - len(set(starts)) <= 1, f"done twice: {starts}"
        assert not [unit for unit in finished if starts.count(unit) > 1]
        assert not list(folder.rglob(".*.tmp"))


def started(folder: Path) -> list[str]:
    """Units whose work began, in order, once for every time."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["unit"] for event in events if event["event"] == "start"]


def kill_at_random(planned: Planned, points: int, seed: int, *, command: bool = False) -> int:
    """Kill at points uniform over the wall time, each on a fresh copy; how many hit a process at work."""
    rng, hit = random.Random(seed), 0
    sys.stderr.write(f"KILL_SEED={seed}: {points} kills\n")
    for i in range(points):
        folder = planned.copy(f"killed-{i}")
        hit += kill_after(folder, rng.uniform(0, planned.seconds), command=command)
        planned.check(folder)
        shutil.rmtree(folder)
    return hit

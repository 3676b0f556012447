"""Ray: one actor a worker, which loads its models once; this process queues the units and makes none itself.

An actor that dies, with its node or alone, is replaced, and its unit is queued again. Deaths are counted by unit, not
by actor: a unit that three workers died on would take down worker after worker, so it is an error that names it.
"""

import json
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from diffaug_datasets.core.errors import DiffAugError, RunError, few, one_line
from diffaug_datasets.run.engines.local import WATCH_SECONDS, OnProgress
from diffaug_datasets.run.place import from_anywhere
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

DEATHS_A_UNIT = 3
CONNECT_SECONDS = 10.0
HELD_SECONDS = 1.0  # until a unit that somebody else holds is asked for again
OBJECT_STORE = 80 << 20  # bytes, the least that Ray takes: nothing of ours goes through it
SETTINGS = {  # of Ray, unless the environment has others: nothing is sent home, and a busy machine may take its time
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "120",
}
COLOUR = re.compile("\x1b\\[[0-9;]*m")
HERE = "local"  # Ray's word for a cluster of its own on this machine
log = logging.getLogger("diffaug_datasets")


@dataclass(frozen=True)
class Ray:
    """Which Ray cluster, and what a worker takes of it.

    `gpus`: of one worker, None for 1 where the cluster has any; `address`: HOST:PORT, `auto` for the cluster that this
    machine belongs to, None for RAY_ADDRESS or, without that, one that is started here and ended again.
    """

    gpus: float | None = None
    address: str | None = None


def work(run: Run, options: WorkerOptions, workers: int, ray_options: Ray, on_progress: OnProgress) -> None:
    """Make what a run lacks and assemble it, by actors. `workers` 0: as many as the cluster has room for.

    Raises:
        RunError: no cluster answers, or it has no room for a worker; a unit that workers die on; all workers failed.
    """
    with connected(ray_options.address) as is_ours:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = ray_options.gpus
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        needs = {"CPU": float(run.recipe.threads), "GPU": gpus}
        room = sum(_room(node, needs) for node in nodes)
        if not room:
            needed = " and ".join(f"{count:g} {name}" for name, count in needs.items() if count)
            if is_ours:
                raise RunError(f"--engine ray: a worker needs {needed}, and this machine has fewer; ask for less.")
            log.warning("A worker needs %s, and no node of the Ray cluster has that yet; waiting for one.", needed)
        most_at_once = max(1, *(len(units) for _, units in run.units()))
        crew = _Crew(run, options, needs)
        for _ in range(min(workers or max(1, room), most_at_once)):
            crew.hire()
        try:
            crew.work(on_progress)
        finally:
            crew.dismiss()


def _room(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many workers fit on a node."""
    return min(int(node.get(name, 0.0) / count + 1e-9) for name, count in needs.items() if count)


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Meanwhile this process drives a Ray cluster; gives whether it was started for it, here.

    Raises:
        RunError: no cluster answers at the address.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield False
        return
    place = address or os.environ.get("RAY_ADDRESS") or HERE
    if trouble := _unheard(place):  # Ray itself would try for minutes
        raise RunError(_no_cluster(place, trouble))
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    settings = dict(SETTINGS)
    if place == HERE:
        quiet |= {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
        settings |= _guard()
    with _set(settings):
        import ray

        try:
            ray.init(place, **quiet)
        except Exception as error:  # where a node does not come up in time, Ray raises just this
            why = one_line(error).rstrip(".")
            raise RunError(f"--engine ray: {why}." if place == HERE else _no_cluster(place, why)) from None
        try:
            yield place == HERE
        finally:
            ray.shutdown()


def _guard() -> Mapping[str, str]:
    """Settings that let nobody else into a cluster of our own.

    Ray reads them when it is imported and never again. So they are the same for as long as this process lives, and
    where somebody has imported Ray before, it is as they wanted it.
    """
    if "ray" in sys.modules and not _token.cache_info().currsize:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}


@cache
def _token() -> str:
    return secrets.token_hex(32)


@contextmanager
def _set(settings: Mapping[str, str]) -> Iterator[None]:
    """Meanwhile these variables are set, unless the environment has others."""
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def _unheard(place: str) -> str:
    """Why nothing listens at HOST:PORT; empty where something does, and for places of another form."""
    host, colon, port = place.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal()):
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return one_line(error)
    return ""


def _no_cluster(place: str, why: str) -> str:
    return (
        f"--engine ray: no Ray cluster answers at {place} ({why}); start one with `ray start --head`, or leave "
        "--address out."
    )


class _Crew:
    """The actors of a run, and what each of them does now."""

    def __init__(self, run: Run, options: WorkerOptions, needs: Mapping[str, float]) -> None:
        import ray

        from diffaug_datasets.run.engines.ray_actor import Hand

        self._run, self._options, self._number = run, options, 0
        self._actor = ray.remote(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_restarts=0, scheduling_strategy="SPREAD"
        )(Hand)
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, str]] = {}
        self._idle: list[Any] = []
        self._deaths: Counter[str] = Counter()
        self._stillborn = 0
        self._reasons: list[str] = []

    def hire(self) -> None:
        """Start one more worker."""
        fits_from = tuple(map(from_anywhere, self._options.fits_from))
        options = asdict(replace(self._options, number=self._number, fits_from=fits_from))
        hand = self._actor.remote(self._run.from_anywhere, json.dumps(options, default=str))
        self._starting[hand.begin.remote()] = hand
        self._number += 1

    def dismiss(self) -> None:
        """End all workers."""
        import ray

        for hand in (*self._starting.values(), *(hand for hand, _ in self._busy.values()), *self._idle):
            ray.kill(hand)

    def work(self, on_progress: OnProgress) -> None:
        """Make the units, stage by stage, then assemble."""
        from diffaug_datasets.run.engines.ray_actor import ASSEMBLY

        for stage, units in self._run.units():
            if not (self._options.only_fits and stage == "synthetic"):
                self._make([unit.name for unit in units], on_progress)
        if not self._options.only_fits:
            self._make([ASSEMBLY], on_progress)

    def _make(self, names: Sequence[str], on_progress: OnProgress) -> None:
        import ray

        todo, left, held = deque(names), set(names), deque[tuple[float, str]]()
        while left:
            while held and held[0][0] <= time.monotonic():
                todo.append(held.popleft()[1])
            while self._idle and todo:
                hand, name = self._idle.pop(), todo.popleft()
                self._busy[hand.make.remote(name)] = hand, name
            if not (self._starting or self._busy or self._idle):
                raise RunError(f"all workers failed: {few(list(dict.fromkeys(self._reasons)))}")
            if calls := [*self._starting, *self._busy]:
                calls = ray.wait(calls, num_returns=1, timeout=WATCH_SECONDS)[0]
            else:
                time.sleep(WATCH_SECONDS)
            on_progress()
            for call in calls:
                name, is_made = self._settled(call)
                if is_made:
                    left.discard(name)
                elif is_made is False:
                    held.append((time.monotonic() + HELD_SECONDS, name))
                elif name:
                    todo.appendleft(name)

    def _settled(self, call: Any) -> tuple[str, bool | None]:
        """The unit of a finished call, if any, and what came of it: made, held elsewhere, or None for a worker lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        hand, name = (self._starting.pop(call), "") if call in self._starting else self._busy.pop(call)
        try:
            said = ray.get(call)
        except RayTaskError as error:
            self._lost(name, _reason(error.cause))
            ray.kill(hand)
            return name, None
        except RayError as error:
            self._lost(name, _end(error), is_dead=True)
            self.hire()
            return name, None
        self._idle.append(hand)
        self._stillborn = 0
        return name, said if name else None

    def _lost(self, name: str, reason: str, is_dead: bool = False) -> None:
        """A worker is lost, at a unit or before its first. Raises RunError where the next one would be, too."""
        self._reasons.append(reason)
        if name:
            self._deaths[name] += 1
            if self._deaths[name] >= DEATHS_A_UNIT:
                what = f"{DEATHS_A_UNIT} workers died on it" if is_dead else f"{DEATHS_A_UNIT} workers failed on it"
                raise RunError(f"{name}: {what}, the last of: {reason.rstrip('.')}; what is finished stays.")
            return
        self._stillborn += 1
        alive = len(self._starting) + len(self._busy) + len(self._idle)
        if is_dead and self._stillborn >= DEATHS_A_UNIT * (alive + 1):
            raise RunError(f"{self._stillborn} workers died before they had begun, the last of: {reason.rstrip('.')}.")


def _end(error: BaseException) -> str:
    """Why a worker is dead, without Ray's colours; where it could not even be made, what its node says."""
    text = COLOUR.sub("", str(error))
    if "creation task" not in text:
        return one_line(text)
    last = one_line(text.strip().rpartition("\n")[2])
    is_bare = last.startswith(("ModuleNotFoundError", "ImportError"))
    return f"{last.rstrip('.')} (every node needs the packages that this machine has)" if is_bare else last


def _reason(cause: BaseException) -> str:
    """What a worker raised: a sentence of ours, or the error by its name."""
    return str(cause) if isinstance(cause, DiffAugError) else f"{type(cause).__name__}: {one_line(cause)}"

"""Who works on a unit: leases in the run's place, made by `create` alone, the same in a folder and in an object store.

`leases/UNIT/000001` is the first generation. Who creates it holds the unit, and rewrites it every third of its TTL with
a counter. Who has seen a generation unchanged for its TTL, by the monotonic clock of its own, takes the holder for dead
and creates the next one. No clock of another host is read, no file is locked. Of a holder on this very machine and pid
namespace it is known at once whether it has ended, so that a command given again after a kill need not wait.

A lease saves work, and no more: what makes a unit done is its receipt, created if absent. Who was stopped and wakes
finds a later generation, or none, and commits nothing (`Leases.is_current`).

Each decision is a generator of calls to the place, so that tests can put any delay, loss or repetition between two of
them, on a clock of their own.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.files import born, is_gone, machine
from diffaug_datasets.run.place import Entry, FolderPlace, Place

LEASES = "leases"
TTL_VARIABLE = "DIFFAUG_LEASE_SECONDS"
TTL = 30.0  # seconds
BEATS = 3  # in a TTL
SIZE = 512  # bytes: a lease is always rewritten whole
FREE = b"free".ljust(SIZE)

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A verb of the place and what it is given."""

    verb: Literal["list", "get", "create", "put", "delete"]
    key: str
    content: bytes = b""

    def on(self, place: Place) -> Any:
        """Its answer."""
        if self.verb == "create":
            return place.create(self.key, self.content, durable=False)
        if self.verb == "put":
            return place.put(self.key, self.content)
        return getattr(place, self.verb)(self.key)


Steps = Generator[Call, Any, T]
"""Calls one after the other; each is sent its answer."""


@dataclass(frozen=True)
class Holder:
    """What a lease says. `machine`: host, boot and pid namespace, where process ids mean the same; `beat` counts."""

    holder: str
    host: str
    machine: str
    pid: int
    born: str | None
    ttl: float
    beat: int = 0

    def text(self) -> bytes:
        """The lease's content, always of one size."""
        return json.dumps(vars(self)).encode().ljust(SIZE)

    @property
    def seconds(self) -> float:
        """For how long it has been held, as its own beats tell it: to a third of its TTL."""
        return self.beat * self.ttl / BEATS

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended, being a process of this machine."""
        return is_gone(self.machine, self.pid, self.born)


def read_holder(content: bytes | None) -> Holder | None:
    """Who holds a lease of that content; None where it is free, half written or foreign."""
    try:
        holder = Holder(**json.loads(content or b""))
        is_whole = isinstance(holder.pid, int) and holder.ttl > 0 and holder.beat >= 0
    except (ValueError, TypeError, RecursionError):
        return None
    return holder if is_whole else None


@dataclass
class Lease:
    """A generation that this process made. `done`: its unit is, and nobody needs it any more.

    `shown`: when the holder gave its last sign, in its own monotonic seconds.
    """

    unit: str
    key: str
    holder: Holder
    shown: float
    done: bool = False


@dataclass
class Leases:
    """The leases of one place, as one worker takes and sees them. `now` gives monotonic seconds."""

    place: Place
    ttl: float = 0.0
    now: Callable[[], float] = time.monotonic
    machine: str = field(default_factory=machine)
    host: str = field(default_factory=socket.gethostname)
    held: dict[str, Lease] = field(default_factory=dict)
    _seen: dict[str, tuple[tuple[str, bytes], float]] = field(default_factory=dict)
    _born: str | None = field(default_factory=lambda: born(os.getpid()))

    def __post_init__(self) -> None:
        self.ttl = self.ttl or default_ttl()

    @contextmanager
    def hold(self, unit: str) -> Iterator[Lease | None]:
        """A lease of the unit while the block runs, kept alive from a thread; None where somebody else has it.

        Raises:
            RunError: the place cannot be read or written.
        """
        lease = self._run(self.taking(unit))
        if lease is None:
            yield None
            return
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(lease, over), name=f"lease of {unit}", daemon=True)
        beats.start()
        try:
            yield lease
        finally:
            over.set()
            beats.join()
            with suppress(RunError):  # a place that cannot be written now frees it by its TTL
                self._run(self.releasing(lease))

    def is_current(self, lease: Lease) -> bool:
        """Whether nobody has taken this process for dead and its unit over."""
        return self._run(self.looking(lease))

    def holder(self, unit: str) -> Holder | None:
        """Who seems to work on a unit: whoever made its last generation and is not known to have ended."""
        _, content = self._run(self._last(unit)) or ("", FREE)
        holder = read_holder(content)
        return None if holder is None or holder.is_gone else holder

    def taking(self, unit: str) -> Steps[Lease | None]:
        """Create the unit's next generation, where that is allowed."""
        last = yield from self._last(unit)
        number = self._next(unit, last)
        if number is None:
            return None
        key = f"{LEASES}/{unit}/{number:06d}"
        name = f"{self.host}-{os.getpid()}-{secrets.token_hex(4)}"
        holder, begun = Holder(name, self.host, self.machine, os.getpid(), self._born, self.ttl), self.now()
        created = yield Call("create", key, holder.text())
        if not created and (yield Call("get", key)) != holder.text():  # equal: the answer to our creation went lost
            return None
        self._seen.pop(unit, None)
        lease = self.held[unit] = Lease(unit, key, holder, begun)
        return lease

    def looking(self, lease: Lease) -> Steps[bool]:
        """Whether the last generation is still this lease's."""
        last = yield from self._last(lease.unit)
        if last is None or last[0] != lease.key:
            return False
        found = read_holder(last[1])
        return found is not None and found.holder == lease.holder.holder

    def beating(self, lease: Lease) -> Steps[bool]:
        """Show that the holder lives; who stood still for too long looks first whether that is still its to show."""
        if self.now() - lease.shown > self.ttl and not (yield from self.looking(lease)):
            return False
        lease.holder = Holder(**{**vars(lease.holder), "beat": lease.holder.beat + 1})
        yield Call("put", lease.key, lease.holder.text())
        lease.shown = self.now()
        return True

    def releasing(self, lease: Lease) -> Steps[None]:
        """Free the unit; where it is done, take its leases away."""
        self.held.pop(lease.unit, None)
        if not lease.done:
            if (yield from self.looking(lease)):
                yield Call("put", lease.key, FREE)
            return
        found: list[Entry] = yield Call("list", f"{LEASES}/{lease.unit}/")
        for key in [entry.key for entry in found if entry.key <= lease.key]:
            yield Call("delete", key)

    def _last(self, unit: str) -> Steps[tuple[str, bytes] | None]:
        """The key and content of the unit's last generation; None where it has none."""
        found: list[Entry] = yield Call("list", f"{LEASES}/{unit}/")
        keys = [entry.key for entry in found if entry.key.rpartition("/")[2].isdecimal()]  # others are no leases
        if not keys:
            return None
        key = keys[-1]
        content: bytes | None = yield Call("get", key)
        return key, content or b""

    def _next(self, unit: str, last: tuple[str, bytes] | None) -> int | None:
        """The generation that may be made now; None while somebody holds the unit, as far as one can see."""
        if last is None:
            return 1
        key, content = last
        number = int(key.rpartition("/")[2]) + 1
        holder = read_holder(content)
        if content == FREE or (holder is not None and holder.is_gone):
            return number
        if self._seen.get(unit, (None,))[0] != last:
            self._seen[unit] = last, self.now()
            return None
        patience = holder.ttl if holder else self.ttl
        return number if self.now() - self._seen[unit][1] > patience else None

    def _beat(self, lease: Lease, over: threading.Event) -> None:
        is_ours = True
        while is_ours and not over.wait(self.ttl / BEATS):
            with suppress(RunError):  # a beat that goes lost is made good by the next one
                is_ours = self._run(self.beating(lease))

    def _run(self, steps: Steps[T]) -> T:
        answer = None
        while True:
            try:
                call = steps.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            answer = call.on(self.place)


def default_ttl() -> float:
    """Seconds after which a holder that gives no sign is taken for dead: `DIFFAUG_LEASE_SECONDS`, or 30.

    Raises:
        RunError: the variable holds no number from 0.1 to a day.
    """
    text = os.environ.get(TTL_VARIABLE, "")
    try:
        ttl = float(text or TTL)
    except ValueError:
        ttl = -1.0
    if not 0.1 <= ttl <= 86400:
        raise RunError(f"{TTL_VARIABLE}: got {text!r}, expected seconds from 0.1 to 86400, such as 30.")
    return ttl


def all_holders(place: Place) -> dict[str, tuple[Holder, Entry]]:
    """Unit -> who holds its last generation, and the entry of that; units that are free are left out."""
    last = {entry.key.split("/")[1]: entry for entry in place.list(f"{LEASES}/") if entry.key.count("/") == 2}
    found = {unit: (read_holder(place.get(entry.key)), entry) for unit, entry in last.items()}
    return {unit: (holder, entry) for unit, (holder, entry) in found.items() if holder and not holder.is_gone}


@cache
def leases_of(folder: Path) -> Leases:
    """The leases of a folder that is no run, such as one of a bench."""
    return Leases(FolderPlace(folder))


@contextmanager
def lease(folder: Path, unit: str) -> Iterator[bool]:
    """True while this process alone holds a unit of a folder, as far as can be known.

    Raises:
        RunError: the folder cannot be written.
    """
    with leases_of(folder).hold(unit) as mine:
        if mine:
            mine.done = True  # what is made under it says itself that it is made
        yield mine is not None

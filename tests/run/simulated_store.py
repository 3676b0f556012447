"""A store and workers on a virtual clock: every call takes its time, may fail, go lost, or be carried out twice, late.

The leases are the package's own: what `Leases` decides is a generator of calls, and the events of all workers' calls
are interleaved here by a queue. A worker does as `Worker` and `Run` do: it takes a unit, looks whether it is made,
works, looks whether its lease is current, creates the data and then the receipt, and frees the unit.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.leases import BEATS, Call, Leases, Steps
from diffaug_datasets.run.place import Entry

TTL = 30.0


@dataclass
class Chances:
    """Of a call: that it fails before or after it is done, that it comes a second time later, and its longest delay.

    Of a unit's work: that the worker dies in it, or stands still for several TTLs.
    """

    fails: float = 0.02
    lost_answer: float = 0.02
    repeated: float = 0.02
    delay: float = 2.0
    dies: float = 0.002
    sleeps: float = 0.01


@dataclass
class Simulation:
    """64 workers on 2,000 units by default; `run` to the end, then look at `store`, `made` and `committed`."""

    seed: int
    workers: int = 64
    units: int = 2000
    chances: Chances = field(default_factory=Chances)
    now: float = 0.0
    store: dict[str, bytes] = field(default_factory=dict)
    by_unit: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    made: dict[str, list[tuple[str, float, float]]] = field(default_factory=lambda: defaultdict(list))
    presumed_dead: set[str] = field(default_factory=set)
    committed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    deaths: int = 0
    twice: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.queue: list[tuple[float, int, Any]] = []
        self.ticket = 0
        self.alive = self.workers

    # The store

    def apply(self, call: Call) -> Any:
        """What a sound store does."""
        if call.verb == "list":
            return [Entry(key, len(self.store[key]), 0.0) for key in sorted(self.by_unit[call.key])]
        if call.verb == "get":
            return self.store.get(call.key)
        folder = call.key[: call.key.rindex("/") + 1]
        if call.verb == "delete":
            self.store.pop(call.key, None)
            self.by_unit[folder].discard(call.key)
            return None
        if call.verb == "create" and call.key in self.store:
            return False
        self.store[call.key] = call.content
        self.by_unit[folder].add(call.key)
        return True

    # Time

    def later(self, seconds: float, action: Any) -> None:
        self.ticket += 1
        heapq.heappush(self.queue, (self.now + seconds, self.ticket, action))

    def run(self) -> "Simulation":
        """Until every worker has seen that nothing is missing, or is dead."""
        for number in range(self.workers):
            process = Process(self, f"host{number}")
            self.later(self.rng.random(), lambda process=process: process.resume(None))
        while self.queue:
            self.now, _, action = heapq.heappop(self.queue)
            action()
        return self


class Process:
    """A worker: its steps wait for calls and for time; a second thread of steps beats."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.sim, self.name = simulation, name
        self.leases = Leases(None, ttl=TTL, now=lambda: simulation.now, machine=name, host=name)  # type: ignore[arg-type]
        self.steps = self.work()
        self.dead = False
        self.asleep_until = 0.0

    def resume(self, answer: Any, error: Exception | None = None) -> None:
        """Go on with an answer, once awake, until the next call or wait."""
        if self.dead:
            return
        if self.asleep_until > self.sim.now:
            self.sim.later(self.asleep_until - self.sim.now, lambda: self.resume(answer, error))
            return
        self.advance(self.steps, self.resume, answer, error)

    def advance(self, steps: Generator[Any, Any, Any], back: Any, answer: Any, error: Exception | None) -> None:
        try:
            wanted = steps.throw(error) if error else steps.send(answer)
        except StopIteration:
            return
        if isinstance(wanted, Call):
            self.ask(wanted, back)
        else:
            self.sim.later(wanted, lambda: back(None))

    def ask(self, call: Call, back: Any) -> None:
        """Carry a call out, as the network lets it."""
        sim, rng, chances = self.sim, self.sim.rng, self.sim.chances
        delay = rng.random() ** 4 * chances.delay
        dice = rng.random()
        writes = call.verb in ("create", "put", "delete")
        if dice < chances.fails:
            sim.later(delay, lambda: back(None, RunError("503")))
            return
        if writes and dice < chances.fails + chances.repeated:  # the same request comes twice, the second time late
            sim.later(delay + rng.random() * 3 * chances.delay, lambda: sim.apply(call))

        def done() -> None:
            answer = sim.apply(call)
            if writes and dice > 1 - chances.lost_answer:
                sim.later(0.1, lambda: back(None, RunError("timeout")))
            else:
                sim.later(delay / 2, lambda: back(answer))

        sim.later(delay / 2, done)

    def work(self) -> Generator[Any, Any, None]:
        sim = self.sim
        start = sim.rng.randrange(sim.units)
        waiting = [f"u{(start + i) % sim.units}" for i in range(sim.units)]
        while waiting:
            left = []
            for unit in waiting:
                if f"receipts/{unit}" in sim.store:  # the listing of all receipts, which costs next to nothing a unit
                    continue
                with suppress(RunError):
                    yield from self.attempt(unit)
                left.append(unit)
            waiting = [unit for unit in left if f"receipts/{unit}" not in sim.store]
            yield 1.0 + sim.rng.random() * 5

    def attempt(self, unit: str) -> Generator[Any, Any, None]:
        sim, rng = self.sim, self.sim.rng
        lease = yield from self.leases.taking(unit)
        if lease is None:
            return
        generation = int(lease.key.rpartition("/")[2])
        over = [False]
        beats = self.beats(lease, over)
        self.advance(beats, lambda answer, error=None: self.beat_on(beats, answer, error), None, None)
        try:
            if (yield Call("get", f"receipts/{unit}")) is not None:
                lease.done = True
                return
            begin = sim.now
            if rng.random() < sim.chances.dies and sim.alive > 1:
                sim.alive -= 1
                sim.deaths += 1
                self.dead = over[0] = True
                sim.presumed_dead.add(unit)
                yield 1.0
            if rng.random() < sim.chances.sleeps:
                self.asleep_until = sim.now + rng.random() * 4 * TTL
                sim.presumed_dead.add(unit)
            yield 1.0 + rng.random() * 60
            sim.made[unit].append((self.name, begin, sim.now))
            sim.twice += generation > 1
            if not (yield from self.leases.looking(lease)):
                return
            text = f"{unit}"
            yield Call("create", f"data/{unit}-{hash(text)}", text.encode())
            body = f"{unit} by {self.name}".encode()
            created = yield Call("create", f"receipts/{unit}", body)
            if created:
                sim.committed[unit].append(self.name)
            there = yield Call("get", f"receipts/{unit}")
            lease.done = there is not None
        finally:
            over[0] = True
            if not self.dead:
                yield from self.freeing(lease)

    def freeing(self, lease: Any) -> Steps[None]:
        with suppress(RunError):
            yield from self.leases.releasing(lease)

    def beats(self, lease: Any, over: list[bool]) -> Generator[Any, Any, None]:
        while True:
            yield TTL / BEATS
            if over[0]:
                return
            try:
                if not (yield from self.leases.beating(lease)):
                    return
            except RunError:
                pass

    def beat_on(self, beats: Generator[Any, Any, None], answer: Any, error: Exception | None) -> None:
        if self.dead:
            return
        if self.asleep_until > self.sim.now:  # a stopped process beats no more
            self.sim.later(self.asleep_until - self.sim.now, lambda: self.beat_on(beats, answer, error))
            return
        self.advance(beats, lambda a, e=None: self.beat_on(beats, a, e), answer, error)

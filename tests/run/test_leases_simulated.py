"""64 workers on 2,000 units under the package's own leases, on a virtual clock: nothing is lost, nothing is doubled."""

import random

import pytest
from simulated_store import Chances, Simulation

from diffaug_datasets.run.leases import Leases

STEADY = Chances(fails=0.0, lost_answer=0.0, repeated=0.0, delay=1.0, dies=0.0, sleeps=0.0)


def check(sim: Simulation) -> None:
    """Every unit has one receipt, from whoever made it; nobody else believes to have committed it."""
    units = {f"u{i}" for i in range(sim.units)}
    receipts = {key.partition("/")[2]: body for key, body in sim.store.items() if key.startswith("receipts/")}
    assert receipts.keys() == units, f"lost: {sorted(units - receipts.keys())[:5]}"
    for unit in units:
        assert len(sim.committed[unit]) <= 1, f"{unit} committed by {sim.committed[unit]}"
        text = receipts[unit].decode()
        assert text in {f"{unit} by {name}" for name, _, _ in sim.made[unit]}, f"{unit}: nobody made {text}"
        assert not sim.committed[unit] or text == f"{unit} by {sim.committed[unit][0]}"


def doubled(sim: Simulation) -> set[str]:
    """Units that were made more than once."""
    return {unit for unit, times in sim.made.items() if len(times) > 1}


@pytest.mark.parametrize("seed", range(2))
def test_a_bad_network_loses_and_doubles_nothing(seed: int) -> None:
    sim = Simulation(seed).run()
    check(sim)
    assert sim.deaths and sim.twice, "somebody died, and somebody took over"


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)  # 12 minutes of an idle core
def test_a_thousand_bad_networks_lose_and_double_nothing() -> None:
    for seed in range(2, 1002):
        check(Simulation(seed).run())


@pytest.mark.parametrize("seed", range(2))
def test_a_good_network_makes_every_unit_once(seed: int) -> None:
    sim = Simulation(seed, units=500, chances=STEADY).run()
    check(sim)
    assert doubled(sim) == set()


@pytest.mark.parametrize("seed", range(2))
def test_a_unit_is_made_twice_only_if_its_holder_stood_still(seed: int) -> None:
    """Calls fail at times, but no answer is lost: whoever made a unit beside another one had taken it for dead."""
    chances = Chances(fails=0.01, lost_answer=0.0, repeated=0.0, delay=1.0, dies=0.005, sleeps=0.05)
    sim = Simulation(seed, units=500, chances=chances).run()
    check(sim)
    beside = {
        unit
        for unit, times in sim.made.items()
        for name, begin, end in times
        for other, since, until in times
        if name != other and begin < until and since < end
    }
    assert beside <= sim.presumed_dead


def test_the_simulation_sees_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that do not always wait for a TTL make units twice."""
    real, rng = Leases._next, random.Random(0)

    def hasty(self: Leases, unit: str, last: tuple[str, bytes] | None) -> int | None:
        number = real(self, unit, last)
        return number if number or last is None or rng.random() > 0.1 else int(last[0].rpartition("/")[2]) + 1

    monkeypatch.setattr(Leases, "_next", hasty)
    assert doubled(Simulation(0, workers=4, units=60, chances=STEADY).run())

"""The card of `generate --progress` on the loopback Hub: who writes it, how often, and what it never does."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import Command
from hands import hands
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from huggingface_hub import CommitOperationAdd, HfApi, constants
from small_runs import small_run

from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run import live_card as module
from diffaug_datasets.run.leases import Leases
from diffaug_datasets.run.live_card import MARK, LiveCard, live_card
from diffaug_datasets.run.store import Receipt, Run

NAME = "org/shirts"
APART = 0.6  # seconds, instead of ten minutes


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with loopback_hub(tmp_path / "hub") as found:
        yield found


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("planned") / "run", "txt2img", per_class=1, shard_rows=5).folder


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the client was asked to commit, in monotonic seconds; time goes fast meanwhile."""
    for name, seconds in {"INTERVAL": APART, "LONGEST": 3 * APART, "LOOK": 0.02, "LEASE_LOOK": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)
    asked: list[float] = []
    inner = HfApi.create_commit

    def create_commit(self: HfApi, *given: object, **more: object) -> object:
        asked.append(time.monotonic())
        return inner(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    return asked


def card(hub: LoopbackHub) -> str:
    return hub.files(NAME)["README.md"].decode()


def apart(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in pairwise(times)]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.02)


def test_a_run_keeps_a_private_card_that_publish_replaces(
    hub: LoopbackHub, planned: Path, commits: list[float], diffaug: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard waits for its commit, so that the run never ends before the second one."""
    shards: list[str] = []
    write = Run.write_receipt

    def write_receipt(self: Run, receipt: Receipt) -> bool:
        if receipt.unit.startswith("synthetic"):
            shards.append(receipt.unit)
        wait_until(lambda: len(commits) >= len(shards))
        return write(self, receipt)

    monkeypatch.setattr(Run, "write_receipt", write_receipt)
    said = diffaug("generate", planned, "--workers", 1, "--device", "cpu", "--progress", NAME)
    assert said.code == 0, said
    assert "progress:" not in said.err
    assert f"how far it is: {hub.url}/datasets/{NAME}, written anew at most every ten minutes\n" in said.out
    assert hub.repo(NAME).private
    assert len(shards) == 2 <= len(commits) and min(apart(commits)) >= APART
    assert MARK in card(hub) and "| images | " in card(hub)
    names = {Run.open(planned).leases.host, str(Path.home())}
    assert not [name for name in names if name in card(hub)], "a card names no machine"
    publish(Run.open(planned), NAME, PublishOptions(allow=("licence",)))
    assert MARK not in card(hub) and "configs:" in card(hub)


def test_one_of_several_writes_and_another_takes_over(hub: LoopbackHub, planned: Path, commits: list[float]) -> None:
    first, second = (LiveCard(Run.open(planned), NAME) for _ in range(2))
    for one, host in ((first, "a"), (second, "b")):
        one.run.leases = Leases(one.run.place, ttl=60, machine=host, host=host)
    threads = [threading.Thread(target=one.keep, daemon=True) for one in (first, second)]
    threads[0].start()
    wait_until(lambda: bool(commits))
    threads[1].start()
    time.sleep(APART)
    assert not second._has_written
    first.over.set()
    threads[0].join(10)
    wait_until(lambda: second._has_written)
    second.over.set()
    threads[1].join(10)
    assert second._has_written
    assert min(apart(commits)) >= APART
    assert not list((planned / "leases").glob("progress/*"))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("token", "the Hub refuses the token (401); run `hf auth login`, or set HF_TOKEN to one that may write there"),
        ("network", "the Hub cannot be reached (ConnectError)"),
        ("foreign", f"{NAME} holds a card that is none of progress, which stays; give another name"),
    ],
)
def test_what_is_in_the_way_is_said_once_and_the_run_goes_on(
    hub: LoopbackHub,
    tmp_path: Path,
    commits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
    said: str,
) -> None:
    foreign = b"---\nlicense: mit\n---\n# Mine\n"
    if trouble == "token":
        hub.token = "hf_another_secret"
    elif trouble == "network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    else:
        HfApi().create_repo(NAME, repo_type="dataset")
        HfApi().create_commit(
            NAME, [CommitOperationAdd("README.md", foreign)], commit_message="mine", repo_type="dataset"
        )
    place = tmp_path / "run"
    run = price_plan_of(place)
    monkeypatch.setattr(module, "INTERVAL", 0.1)
    with caplog.at_level(logging.WARNING, "diffaug_datasets"), live_card(run, NAME):
        worker = hands(str(place), "a", 0.2)
        for unit in worker._leased():
            worker.make(unit)
    assert len([shard for shard in run.plan.shards() if run.receipt(shard.name)]) == 3
    assert [record.getMessage() for record in caplog.records] == [f"progress: {said}; the run goes on."]
    assert trouble != "foreign" or hub.files(NAME)["README.md"] == foreign


def price_plan_of(place: Path) -> Run:
    from small_runs import small_recipe

    return price_plan(small_recipe("txt2img"), place).write()


@pytest.mark.parametrize("name", ["shirts", "a/b/c", "org/na me", "https://hub/org/name"])
def test_what_is_no_name_is_refused_at_once(planned: Path, diffaug: Command, name: str) -> None:
    said = diffaug("generate", planned, "--progress", name).sentence
    assert said == f"--progress: got {name!r}, expected org/name of a dataset repository on the Hub."

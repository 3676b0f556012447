"""Requests to an object store that a price states are those that a run makes there, one by one."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_stores import BUCKET, Asked, ObjectStore, object_store
from small_runs import small_recipe

from diffaug_datasets.core.plan import Plan
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.planning.store_requests import Requests, store_requests
from diffaug_datasets.run import progress, remote
from diffaug_datasets.run.execute import generate
from diffaug_datasets.run.place import place_of

pytestmark = pytest.mark.xdist_group("leases")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as served:
        yield served


def counted(asked: list[Asked]) -> Requests:
    """By kind: what changes something, listings (they name no key), anything else."""
    writes = sum(one.method in ("PUT", "POST", "DELETE") for one in asked)
    listings = sum(one.method == "GET" and one.key == f"/{BUCKET}" for one in asked)
    return Requests(writes, listings, len(asked) - writes - listings)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("txt2img", {"filters": [{"column": "clip_score", "maximum": -1.0, "min_keep": 1}]}),
    ("retrieval", {"include_test": True}),
    ("diffii", {"per_class": 1, "shard_rows": 5}),
    ("diffmix", {"config": {"concepts": {"steps": 200, "batch": 4}}}),  # enough for pictures of the training
    ("datadream", {}),
]


@pytest.mark.parametrize(
    ("method", "changes"), [("diffinversion", {}), *(pytest.param(*case, marks=pytest.mark.full) for case in CASES)]
)
def test_a_run_asks_as_often_as_its_price_says(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, changes: dict[str, Any]
) -> None:
    """What follows from time alone never comes here, however slow the machine is. Where nothing was measured of the
    whole set, there is no file of it.
    """
    monkeypatch.setenv("DIFFAUG_LEASE_SECONDS", "86400")
    monkeypatch.setattr(remote, "EVENT_SECONDS", 86400.0)
    monkeypatch.setattr(progress, "NEWS_SECONDS", 86400.0)
    monkeypatch.setattr(progress, "LONGEST_NEWS", 86400.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "desk"))
    before, address = len(store.log), f"s3://{BUCKET}/requests/{time.time_ns()}"
    drawn = price_plan(small_recipe(method, **changes), address)
    drawn.write()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "pod"))
    generate(address, workers=1, device="cpu", progress=io.StringIO())
    asked, price = counted(store.log[before:]), drawn.price
    unmeasured = place_of(address).get("quality.parquet") is None
    assert asked == Requests(price.store_writes - unmeasured, price.store_listings, price.store_reads)


def test_time_is_paid_for() -> None:
    """A beat every ten seconds, an event every twenty, a look every two minutes, which is two listings."""
    recipe = small_recipe("txt2img")
    plan: Plan = prepare(recipe).plan
    none, hour = store_requests(recipe, plan, 0), store_requests(recipe, plan, 3600)
    assert (hour.writes - none.writes, hour.listings - none.listings, hour.reads) == (540, 60, none.reads)

"""A run on an object store: the same bytes as in a folder, whoever goes away meanwhile; nothing of the keys is said."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Answer, Command
from object_stores import BUCKET, ObjectStore, object_store
from small_runs import METHODS, digests, small_recipe, small_run

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.release.verify import verify
from diffaug_datasets.run.assembly import current
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.place import ObjectPlace, place_of, probe
from diffaug_datasets.run.progress import status
from diffaug_datasets.run.remote import RemoteRun
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

pytestmark = pytest.mark.xdist_group("leases")
SECRET = "loopback-secret"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as served:
        yield served


@pytest.fixture
def address(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/runs/{time.time_ns()}"


def test_from_plan_to_verify(
    diffaug: Command, address: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit is preempted at its fifth step; another pod, with an empty cache, goes on from the fourth."""
    changes = {"per_class": 1, "shard_rows": 5}
    local = small_run(tmp_path / "local", "diffii", **changes)
    execute(local, WorkerOptions(), workers=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(small_recipe("diffii", **changes).to_yaml())
    said = [diffaug("plan", recipe, "--run", address)]
    assert f"next: diffaug generate {address}" in said[0].out
    assert re.search(r"\n  store    about [\d,]+ writes, [\d,]+ listings, [\d,]+ reads\n", said[0].out)

    steps: list[int] = []
    event = Run.event

    def preempted(run: Run, **content: Any) -> None:
        event(run, **content)
        if content["event"] == "fit" and content["total"] == METHODS["diffii"]["concepts"]["steps"]:
            steps.append(content["step"])
            if len(steps) == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(Run, "event", preempted)
    assert diffaug("generate", address, "--workers", 1, "--device", "cpu").code == 130
    assert steps == [1, 2, 3, 4, 5]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another pod"))
    said.append(diffaug("generate", address, "--workers", 1, "--device", "cpu"))
    assert steps[5:] == [5, 6], "no more than what came after the last checkpoint is done again"
    run = Run.open(address, whole=True)
    assert digests(run.folder) == digests(local.folder)
    assert not [e.key for e in place_of(address).list("") if "checkpoint" in e.key or e.key.startswith("leases")]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "laptop"))
    said += [diffaug("status", address), diffaug("status", address, "--json"), diffaug("report", address)]
    state = json.loads(said[-2].out)
    assert (state["finished"], state["shards_done"], state["rows_written"], state["work"]) == (True, 2, 10, [])
    assert place_of(address).get("report.html") and f"{address}/report.html" in said[-1].out
    said += looked_at(diffaug, run, address, store, tmp_path, monkeypatch)
    shelf = f"s3://{BUCKET}/shelf/{time.time_ns()}"
    said.append(diffaug("publish", address, shelf, "--allow", "licence"))
    assert [(answer.code, answer.err) for answer in said if answer.code] == []
    assert verify(shelf).passed
    damaged(diffaug, address)
    assert not [answer for answer in said if SECRET in answer.out + answer.err or "loopback-id" in answer.out]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def looked_at(
    diffaug: Command, run: Run, address: str, store: ObjectStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Answer]:
    """Every verb that takes a run, on the address, with an empty cache; what a row does not need is not fetched."""
    row_id = run.plan.rows[7].row_id
    [unread] = [shard for shard in run.plan.shards() if all(row.row_id != row_id for row in shard.rows)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "desk"))
    before = len(store.log)
    said = [diffaug("show", address, row_id[:12], "--out", home / "row.png")]
    said.append(diffaug("regen", address, row_id[:12], "--device", "cpu", "--out", home / "again.png"))
    fetched = [
        one.key for one in store.log[before:] if one.method == "GET" and one.key.endswith((".arrow", ".safetensors"))
    ]
    assert not [key for key in fetched if unread.name in key] and any("fits/" in key for key in fetched)
    assert len(fetched) == len(set(fetched)), "nothing is fetched twice"
    assert "bit-equal to the stored image" in said[-1].out
    said.append(diffaug("show", home / "again.png", address))
    assert f"run folder: {address}\n" in said[-1].out
    said.append(diffaug("export", address, home / "files", "--synthetic-only"))
    assert sorted(path.stem for path in (home / "files" / "train").rglob("*.png")) == sorted(
        row.row_id for row in run.plan.rows
    )
    said.append(diffaug("verify", address, "--sample", 1, "--device", "cpu"))
    assert "sample: ok, 1 of 1 rows are bit-equal" in said[-1].out
    return said


def damaged(diffaug: Command, address: str) -> None:
    """`verify` finds an object with other bytes, whatever lies in the cache."""
    place, key = place_of(address), "shards/synthetic-00001.arrow"
    place.put(key, b"T" + (place.get(key) or b"")[1:])
    (Run.open(address).folder / key).unlink()
    said = diffaug("verify", address)
    assert said.code == 1
    assert f"digests: WRONG, {key} has other bytes than stated; `diffaug generate {address}`" in said.out


def planned(address: str) -> Run:
    return price_plan(small_recipe("txt2img"), address).write()


def test_a_second_plan_of_the_same_address(diffaug: Command, address: str) -> None:
    first = planned(address)
    assert planned(address).plan.id == first.plan.id and isinstance(first, RemoteRun)
    said = diffaug("plan", "fashion_2shot_txt2img", "--run", address)
    assert said.code == 2 and f"{address}: holds another plan; what differs:" in said.err
    assert "no plan.json here" in diffaug("status", f"{address}/elsewhere").sentence


def test_one_listing_tells_a_worker_what_is_done(address: str, store: ObjectStore) -> None:
    run = planned(address)
    before = len(store.log)
    run.refresh()
    assert [run.receipt(shard.name) for shard in run.plan.shards()] == [None] * 3
    asked = [(one.method, one.key) for one in store.log[before:]]
    assert len(asked) == 2, asked
    assert status(run).shards_done == 0 and current(run) is None


def test_a_store_that_ignores_the_condition_is_refused(
    address: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = store.inner

    def ignoring(environ: dict[str, Any], start: Any) -> Any:
        return inner({key: value for key, value in environ.items() if key != "HTTP_IF_NONE_MATCH"}, start)

    probe(ObjectPlace(address))
    before = planned(f"{address}/before")
    monkeypatch.setattr(store, "inner", ignoring)
    for step in (lambda: planned(address), lambda: execute(before, WorkerOptions(), workers=1)):
        with pytest.raises(RunError, match=r"s3://shelf/.*ignores If-None-Match.*use a store that honours"):
            step()
    with pytest.raises(RunError, match=r"no plan\.json here"):
        Run.open(address)
    assert not [entry.key for entry in before.place.list("") if "synthetic" in entry.key or "leases" in entry.key]


@pytest.mark.full
def test_what_others_take_from_it(
    diffaug: Command, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` in one go; a run that takes its fits, one that takes its images, and one without a real image of it."""
    recipe, filtered = tmp_path / "recipe.yaml", tmp_path / "filtered.yaml"
    recipe.write_text(small_recipe("diffii").to_yaml())
    filtered.write_text(small_recipe("diffii", filters=[{"column": "clip_score", "minimum": -1}]).to_yaml())
    said = diffaug("run", recipe, "--run", address, "--workers", 1, "--device", "cpu")
    assert said.code == 0, said
    assert f"next: diffaug export {address} FOLDER" in said.out and place_of(address).get("report.html")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "desk"))
    monkeypatch.chdir(tmp_path)
    assert diffaug("plan", filtered, "--run", "filtered").code == 0
    taken = diffaug("generate", "filtered", "--workers", 1, "--device", "cpu", "--fits-from", address)
    assert taken.code == 0, taken
    events = [json.loads(line) for line in Path("filtered/events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] in ("fit", "batch")], "nothing was made again"
    image = Run.open(address).plan.real[0].source_ids[0]
    said = diffaug("withdraw", address, image)
    assert said.code == 0, said
    [new] = Path("runs").iterdir()
    assert image not in {row.source_ids[0] for row in Run.open(new).plan.real}


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_is_measured_and_benched_where_it_lies(diffaug: Command, address: str, tmp_path: Path) -> None:
    run = price_plan(small_recipe("txt2img", include_test=True), address).write()
    execute(run, WorkerOptions(), workers=1)
    said = diffaug("measure", address)
    assert said.code == 0, said
    assert f"measures: {address}/measures.json, for report and publish" in said.err
    assert place_of(address).get("measures.json")
    said = diffaug("bench", address, "--out", tmp_path / "bench")
    assert said.code == 0, said
    assert "txt2img alone" in said.out
    report = diffaug("report", address)
    assert report.code == 0 and b"Frechet distance" in (place_of(address).get("report.html") or b"")


@pytest.mark.parametrize("status", ["403 Forbidden", "401 Unauthorized"])
def test_a_store_that_refuses_is_told_how_keys_are_found(
    diffaug: Command, address: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    def refusing(environ: dict[str, Any], start: Any) -> Any:
        start(status, [("Content-Type", "text/xml")])
        return [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"]

    monkeypatch.setattr(store, "inner", refusing)
    said = diffaug("generate", address).sentence
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for words in ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", f"requests go to {endpoint} by AWS_ENDPOINT_URL"):
        assert words in said
    assert said.startswith(f"{address}: refuses plan.json to these keys (403)")


def test_a_cut_object_is_fetched_again(address: str) -> None:
    run = planned(address)
    path = run.folder / "shards" / "real-00000.arrow"
    assert run.intact("real-00000")
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert run.intact("real-00000") and path.read_bytes() == good
    run.place.put("shards/real-00000.arrow", b"x")
    path.unlink()
    assert not run.intact("real-00000")


def test_without_obstore_it_is_one_sentence(diffaug: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    said = diffaug("status", f"s3://{BUCKET}/run")
    assert said.code == 2 and "this needs obstore" in said.err and os.linesep not in said.err.strip()

"""Workers as Ray actors: the same bytes on one node and on two, whatever dies."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Command
from object_stores import BUCKET, ObjectStore, object_store
from ray_nodes import Fragile, RayNodes, ray_nodes
from slurm_nodes import free_ports, wait_until
from small_runs import digests, small_recipe, small_run

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.planning.new_run import price_plan
from diffaug_datasets.run.engines import ray_actor
from diffaug_datasets.run.engines.ray_cluster import HERE, OBJECT_STORE, Ray, _room
from diffaug_datasets.run.execute import execute, execute_by_ray
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as served:
        yield served


@pytest.fixture(scope="module")
def cluster(store: ObjectStore) -> Iterator[RayNodes]:
    """Its nodes have the keys of the store, which Ray does not pass on, and a cache each."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # paths of sockets are short
    with ray_nodes(folder, free_ports(1)[0]) as nodes:
        yield nodes
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A planned run of two kinds of fits and 5 shards, and what it holds where one process made it."""
    return _planned(tmp_path_factory.mktemp("fits"), "diffii", shard_rows=4)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A planned run of 10 shards that take a while."""
    changes = {"per_class": 4, "shard_rows": 4, "config": {"num_inference_steps": 30}}
    return _planned(tmp_path_factory.mktemp("many"), "txt2img", **changes)


def _planned(folder: Path, slug: str, **changes: object) -> tuple[Path, dict[str, str]]:
    run = small_run(folder / "planned", slug, **changes)
    shutil.copytree(run.folder, folder / "here")
    execute(Run.open(folder / "here"), WorkerOptions(), workers=1)
    return run.folder, digests(folder / "here")


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_cluster_of_its_own_makes_the_same_bytes(planned: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """As a user types it: no setting of Ray is in the environment."""
    folder = Path(shutil.copytree(planned[0], tmp_path / "run"))
    line = [sys.executable, "-m", "diffaug_datasets", "generate", folder, "--engine", "ray", "--workers", "2"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([*line, "--device", "cpu"], env=plain, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "20 images written, 0 failed" in done.stdout
    assert digests(folder) == planned[1]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_nodes_make_the_same_bytes(cluster: RayNodes, planned: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(planned[0], tmp_path / "run"))
    execute_by_ray(run, WorkerOptions("auto"), 0, Ray(address=cluster.address))
    assert digests(run.folder) == planned[1]
    assert len({event["pid"] for event in _events(run.folder)}) == 2, "each node has made something"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_nodes_on_an_object_store(
    cluster: RayNodes, planned: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is shared but the bucket: a node that makes images has fits that the other one learned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = f"s3://{BUCKET}/ray/{time.time_ns()}"
    run = price_plan(small_recipe("diffii", shard_rows=4), address).write()
    execute_by_ray(run, WorkerOptions("auto"), 2, Ray(address=cluster.address))
    whole = Run.open(address, whole=True)
    assert digests(whole.folder) == planned[1]
    receipts = [whole.receipt(unit.name) for unit in (*run.plan.fits, *run.plan.shards())]
    assert len({receipt.worker for receipt in receipts if receipt}) == 2, "each node has made something"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_workers_share_a_gpu(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Ray is told of a GPU that nobody uses; of half a GPU each there is room for two, not for a third."""
    import ray

    run = Run.open(shutil.copytree(many[0], tmp_path / "run"))
    few: dict[str, Any] = {"object_store_memory": OBJECT_STORE, "include_dashboard": False, "logging_level": "ERROR"}
    ray.init(HERE, num_cpus=4, num_gpus=1, log_to_driver=False, **few)
    try:
        execute_by_ray(run, WorkerOptions("cpu"), 0, Ray(gpus=0.5))
    finally:
        ray.shutdown()
    assert digests(run.folder) == many[1]
    assert len({event["pid"] for event in _events(run.folder) if event["event"] == "batch"}) == 2


def test_rooms() -> None:
    """How many workers a node takes: of whole GPUs, of parts of them, of none."""
    node = {"CPU": 8.0, "GPU": 2.0}
    assert [_room(node, {"CPU": 2.0, "GPU": gpus}) for gpus in (0.0, 0.25, 0.3, 0.5, 1.0, 2.0, 4.0)] == [
        *(4, 4, 4, 4, 2, 1, 0),
    ]
    assert _room({"CPU": 64.0}, {"CPU": 1.0, "GPU": 1.0}) == 0


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_unit_that_workers_die_on_is_named(
    cluster: RayNodes, many: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actor, "Hand", Fragile)
    run = Run.open(shutil.copytree(many[0], tmp_path / "run"))
    with pytest.raises(RunError, match=r"^synthetic-00001: 3 workers died on it, the last of: "):
        execute_by_ray(run, WorkerOptions("cpu"), 2, Ray(address=cluster.address))
    monkeypatch.undo()
    execute_by_ray(run, WorkerOptions("cpu"), 2, Ray(address=cluster.address))
    assert digests(run.folder) == many[1]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_what_a_worker_says_is_the_error(
    cluster: RayNodes, planned: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run = Run.open(shutil.copytree(planned[0], tmp_path / "run"))
    with pytest.raises(RunError, match=r"^all workers failed: --device cuda:7: torch .* sees no GPU here"):
        execute_by_ray(run, WorkerOptions("cuda:7"), 2, Ray(address=cluster.address))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_node_that_dies_changes_no_bytes(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with ray_nodes(folder, free_ports(1)[0]) as nodes:
        run = Run.open(shutil.copytree(many[0], tmp_path / "run"))
        killed: list[psutil.Process] = []

        def kill() -> None:
            wait_until(lambda: len({e["pid"] for e in _events(run.folder) if e["event"] == "batch"}) == 2, 300)
            raylet = nodes.raylet(nodes.second)
            killed.extend(raylet.children())
            raylet.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        execute_by_ray(run, WorkerOptions("cpu"), 2, Ray(address=nodes.address))
        killer.join()
    assert killed
    assert digests(run.folder) == many[1]
    shutil.rmtree(folder, ignore_errors=True)


def _events(folder: Path) -> list[dict[str, object]]:
    try:
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "pbs"), "--engine: got 'pbs', expected local, slurm or ray."),
        (("--gpus", "1"), "--gpus: is for --engine ray, and the engine is local; leave one of them out."),
        (("--engine", "ray", "--wait"), "--wait: is for --engine slurm, and the engine is ray; leave one of them out."),
        (("--engine", "ray", "--gpus", "1.5"), "--gpus: got 1.5, expected a part of one GPU, such as 0.5, or a whole"),
        (
            ("--engine", "ray", "--address", "127.0.0.2:1"),
            "--engine ray: no Ray cluster answers at 127.0.0.2:1 ([Errno",
        ),
        (
            ("--engine", "slurm", "--workers", "0"),
            "--engine slurm: needs --workers N, how many tasks to ask Slurm for.",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    words: tuple[str, ...], said: str, planned_alone: Path, diffaug: Command
) -> None:
    assert diffaug("generate", planned_alone, *words).sentence.startswith(said)


@pytest.fixture(scope="module")
def planned_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody makes."""
    return small_run(tmp_path_factory.mktemp("alone") / "run", "txt2img").folder

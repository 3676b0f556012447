"""A Ray cluster of two nodes on this machine, on loopback addresses of their own, and workers that die on purpose."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffaug_datasets.run.engines.ray_actor import Hand
from diffaug_datasets.run.engines.ray_cluster import SETTINGS

os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # of nodes and drivers
HEAD, SECOND = "127.0.0.2", "127.0.0.3"  # Ray rewrites 127.0.0.1 to the outward address
OBJECT_STORE = 80 << 20


class Fragile(Hand):
    """A worker that dies on the unit that the environment of its node names, as one that runs out of memory does."""

    def make(self, name: str) -> bool:
        if name == "synthetic-00001":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(name)


@dataclass
class RayNodes:
    """The processes of two nodes."""

    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]
    address: str

    def raylet(self, node: subprocess.Popen[bytes]) -> psutil.Process:
        """The process that keeps a node."""
        [raylet] = [p for p in psutil.Process(node.pid).children(recursive=True) if p.name() == "raylet"]
        return raylet


@contextmanager
def ray_nodes(folder: Path, port: int) -> Iterator[RayNodes]:
    """Meanwhile two nodes of one CPU each run; ended by their ids, for `ray stop` ends every Ray of a machine."""
    ray = Path(sys.executable).with_name("ray")
    line = [sys.executable, str(ray)] if ray.exists() else [sys.executable, "-m", "ray.scripts.scripts"]
    line += ["start", "--num-cpus=1", f"--object-store-memory={OBJECT_STORE}", "--disable-usage-stats", "--block"]
    head = [*line, "--head", f"--node-ip-address={HEAD}", f"--port={port}", "--include-dashboard=false"]
    second = [*line, f"--address={HEAD}:{port}", f"--node-ip-address={SECOND}"]
    begun: list[subprocess.Popen[bytes]] = []
    try:
        begun.append(
            _started([*head, f"--temp-dir={folder}", "--min-worker-port=21000", "--max-worker-port=21050"], folder)
        )
        begun.append(_started([*second, "--min-worker-port=22000", "--max-worker-port=22050"], folder))
        yield RayNodes(*begun, f"{HEAD}:{port}")
    finally:
        everyone = [p for one in begun for p in (*psutil.Process(one.pid).children(recursive=True), one)]
        for process in everyone:
            process.kill()
        psutil.wait_procs([p for p in everyone if isinstance(p, psutil.Process)], timeout=10)
        for one in begun:
            one.wait()


def _started(line: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A node that says that it runs."""
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    folders = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))  # actors are of this module
    cache = folder / f"cache of {log.stem}"  # as two machines have
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": folders, "XDG_CACHE_HOME": str(cache)}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=environment
        )
    limit = time.monotonic() + 240
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        time.sleep(0.5)
    return process

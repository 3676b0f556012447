"""One thread per process, no network, a cache of their own, and a line that says which tests were left out."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Answer, Command

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.update(ONE_THREAD | OFFLINE)  # before any test module imports a library that reads them

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("full", "soak")
_counts: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    yield


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads what another day left in the user's cache, or leaves anything there."""
    folder = tmp_path_factory.getbasetemp()
    of_all = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["XDG_CACHE_HOME"] = str(of_all / "cache")


@pytest.fixture
def diffaug(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: `diffaug("plan", recipe)`."""
    from diffaug_datasets.cli import main

    def call(*words: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        said = capfd.readouterr()
        return Answer(int(left.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def shell() -> Command:
    """A command in a process of its own: `shell(sys.executable, "-m", "diffaug_datasets", "status", folder)`."""

    def call(*words: object, cwd: Path | None = None, **changes: str) -> Answer:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHON": sys.executable, **changes}
        line = [str(word) for word in words]
        done = subprocess.run(
            line, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands and runs first, so that no process is left alone with a long test at the end."""
    folders = [ROOT / "tests", ROOT / "tests" / "run"]
    items.sort(key=lambda item: folders.index(item.path.parent) if item.path.parent in folders else len(folders))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what the marker expression leaves out."""
    for item in items:
        _counts.update(mark for mark in LEFT_OUT if item.get_closest_marker(mark))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist every worker has collected all tests; each tells the main process what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_counts)


class _FromWorkers:
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take a worker's counts; all workers have the same."""
        _counts.update(node.workeroutput["left_out"] if not _counts and hasattr(node, "workeroutput") else {})


def pytest_configure(config: pytest.Config) -> None:
    """Listen to workers where there are any."""
    config.pluginmanager.register(_FromWorkers())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The markers outside the default, how many tests they hold, and how to run them."""
    for mark in LEFT_OUT:
        if _counts[mark]:
            terminalreporter.write_line(f"not run: {_counts[mark]} tests marked {mark} (scripts/test -m {mark})")

"""One small real run for all tests of publishing, and a Hub on loopback."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub.clients import loopback_hub
from hub.server import LoopbackHub
from small_release import Waits, made

from diffaug_datasets.run.store import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that most tests publish; nothing may change it."""
    return made(tmp_path_factory.mktemp("publish") / "run")


@pytest.fixture(scope="session")
def other_plan(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same config under another plan."""
    return made(tmp_path_factory.mktemp("publish") / "other", seed=7)


@pytest.fixture(scope="session")
def other_config(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another trial: a config of its own."""
    return made(tmp_path_factory.mktemp("publish") / "trial", "fashion_1shot_seed1_genie")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Callable[[], Run]:
    """A copy of the run that a test may damage."""

    def copy() -> Run:
        shutil.copytree(finished.folder, tmp_path / "copy")
        return Run.open(tmp_path / "copy")

    return copy


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub where large files travel by LFS."""
    with loopback_hub(tmp_path) as found:
        yield found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """No waiting, neither ours nor that of huggingface_hub."""
    found = Waits()
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return found

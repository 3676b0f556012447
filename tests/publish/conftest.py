"""One small real run for all tests of publishing, and a Hub on loopback."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub.clients import loopback_hub
from hub.server import LoopbackHub

from diffaug_datasets.data.catalogue import config_recipe
from diffaug_datasets.data.prepare import prepare, write_run
from diffaug_datasets.publish.patience import Patience
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions

SMALL: dict[str, Any] = {
    "per_class": 1,
    "shard_rows": 4,
    "include_test": False,
    "config": {"num_inference_steps": 2},
    "scores": {"encoder": "tiny", "judge": "tiny"},
}


def made(folder: Path, name: str = "fashion_1shot_genie", **changes: Any) -> Run:
    """A finished run of 10 images in 3 shards, scored, in two steps each."""
    run = write_run(prepare(config_recipe(name, **{**SMALL, **changes})), folder)
    execute(run, WorkerOptions(device="cpu"), workers=1)
    return Run.open(folder)


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
        shutil.copytree(finished.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".locks"))
        return Run.open(tmp_path / "copy")

    return copy


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub where large files travel by LFS."""
    with loopback_hub(tmp_path) as found:
        yield found


@dataclass
class Waits:
    """Notes how long a publisher would have waited."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)

    @property
    def patience(self) -> Patience:
        """Waits for nothing."""
        return Patience(sleep=self)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """No waiting, neither ours nor that of huggingface_hub."""
    found = Waits()
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return found

"""Small real runs to publish, and a publisher that waits for nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.targets import Retry
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


@dataclass
class Waits:
    """Notes how long a publisher would have waited."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)

    @property
    def retry(self) -> Retry:
        """Waits for nothing."""
        return Retry(sleep=self)

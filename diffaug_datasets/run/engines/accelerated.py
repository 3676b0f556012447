"""Under `accelerate launch` every process is a worker; the run folder shares the work, not a process group.

Only where batches are to be split do the processes speak to each other, and only while they learn concepts.
"""

import os
from dataclasses import replace

from diffaug_datasets.run.engines.local import Tick
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import Worker, WorkerOptions


def launched() -> bool:
    """Whether this process was started by `accelerate launch` or `torchrun` as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def rank() -> int:
    """Number of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def execute(run: Run, options: WorkerOptions, tick: Tick) -> Worker:
    """Work on this process's device; gives its worker, which has the models loaded.

    Unless batches are split no collective is called, so one death stops no other.
    """
    device = options.device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    worker = Worker(run, replace(options, number=rank(), device=device))
    if options.split_batches:
        from diffaug_datasets.run.engines.together import learn_together

        learn_together(worker)
    worker.work()
    tick()
    return worker

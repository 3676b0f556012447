"""Processes that something else started as several: the tasks of `srun`, the pods of a Kubernetes Indexed Job.

Each is a worker of its own; the run folder shares the work. All that they are told is a number.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

from diffaug_datasets.run.worker import WorkerOptions

POD = "JOB_COMPLETION_INDEX"


def number(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's number among all workers that were started with it; None where it was started alone.

    Of Slurm: the task of the job array, and in it SLURM_PROCID of the step.
    """
    if "SLURM_PROCID" in environment:
        task = _count("SLURM_ARRAY_TASK_ID", environment) - _count("SLURM_ARRAY_TASK_MIN", environment)
        return task * max(1, in_step(environment)) + _count("SLURM_PROCID", environment)
    return _count(POD, environment) if POD in environment else None


def in_step(environment: Mapping[str, str] = os.environ) -> int:
    """How many tasks the `srun` that started this process has; 0 where none did, as in a batch script."""
    is_step = environment.get("SLURM_STEP_ID", "").isdecimal() and "SLURM_PROCID" in environment
    return _count("SLURM_STEP_NUM_TASKS", environment) if is_step else 0


def leads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks for its step: the only one, or the first."""
    return in_step(environment) < 2 or _count("SLURM_PROCID", environment) == 0


def placed(options: WorkerOptions, gpus: int, environment: Mapping[str, str] = os.environ) -> WorkerOptions:
    """The options of this process's worker: its number, and of several GPUs that all tasks of a node see its own.

    Args:
        options: with a device that is resolved already.
        gpus: how many GPUs this process sees.
        environment: the process's variables.
    """
    own = number(environment)
    if own is None:
        return options
    device = options.device
    if device == "cuda" and gpus > 1 and in_step(environment) > 1:
        device = f"cuda:{_count('SLURM_LOCALID', environment) % gpus}"
    return replace(options, number=own, device=device)


def _count(name: str, environment: Mapping[str, str]) -> int:
    """A variable that holds a number, 0 where it holds none."""
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0

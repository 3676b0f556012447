"""Which worker a process is, by what `srun` and Kubernetes tell it."""

import pytest

from diffaug_datasets.run.engines import ranks
from diffaug_datasets.run.worker import WorkerOptions

STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}
SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}  # what a batch script sees
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5"}


@pytest.mark.parametrize(
    ("environment", "number", "in_step", "leads"),
    [
        ({}, None, 0, True),
        ({"JOB_COMPLETION_INDEX": "11"}, 11, 0, True),
        ({"JOB_COMPLETION_INDEX": ""}, 0, 0, True),
        (STEP, 2, 4, False),
        (SCRIPT, 0, 0, True),
        ({**SCRIPT, **ARRAY}, 2, 0, True),
        ({**STEP, **ARRAY}, 2 * 4 + 2, 4, False),
        ({**STEP, "SLURM_PROCID": "0"}, 0, 4, True),
    ],
)
def test_numbers(environment: dict[str, str], number: int | None, in_step: int, leads: bool) -> None:
    assert ranks.number(environment) == number
    assert ranks.in_step(environment) == in_step
    assert ranks.leads(environment) == leads


def test_tasks_that_see_all_gpus_of_a_node_share_them() -> None:
    cuda = WorkerOptions("cuda")
    assert ranks.placed(cuda, 4, STEP) == WorkerOptions("cuda:2", number=2)
    assert ranks.placed(cuda, 2, STEP) == WorkerOptions("cuda:0", number=2)
    assert ranks.placed(cuda, 1, STEP) == WorkerOptions("cuda", number=2), "Slurm gave each its own"
    assert ranks.placed(WorkerOptions("cuda:1"), 4, STEP) == WorkerOptions("cuda:1", number=2)
    assert ranks.placed(cuda, 4, SCRIPT) == WorkerOptions("cuda", number=0)
    assert ranks.placed(cuda, 4, {}) == cuda

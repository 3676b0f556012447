"""Processes that share every training batch: each computes a part, and all take the same step.

Every draw of a step is made for the whole batch from the seed, then cut, so the split changes nothing but the order of
a sum. One process alone adds nothing up.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffaug_datasets.core.errors import RunError

# A process may wait for another that computes; one that has died breaks the connection at once.
PATIENCE = timedelta(days=7)


@runtime_checkable
class Team(Protocol):
    """Who computes a batch: this process is number `rank` of `size`."""

    @property
    def rank(self) -> int:
        """Number of this process; 0 decides and writes."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in every tensor's place; all processes call it with the same shapes."""


class Alone:
    """One process that computes whole batches."""

    rank = 0
    size = 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """A sum of one: nothing changes, to the bit."""


ALONE = Alone()


class Processes:
    """All processes of one `accelerate launch`: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.rank, self.size = int(self._state.process_index), int(self._state.num_processes)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """One exchange for all tensors together, in float32.

        Raises:
            RunError: a process has ended.
        """
        from accelerate.utils import reduce

        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        try:
            summed = reduce(flat.to(self._state.device), reduction="sum")
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0][:120]
            raise RunError(
                f"a process that shares the batches has ended ({reason}); the same command goes on from the last "
                "checkpoint."
            ) from None
        for tensor, part in zip(tensors, summed.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def close(self) -> None:
        """Leave the group; no process may add after that."""
        self._state.destroy_process_group()


def told_by_first(team: Team, value: int) -> int:
    """The value that process 0 gives (a whole number below 2^24), in every process."""
    said = torch.tensor([float(value if team.rank == 0 else 0)])
    team.add([said])
    return int(said.item())


def total(team: Team, value: int) -> int:
    """The sum over all processes of whole numbers, exact below 2^36."""
    counts = torch.tensor([float(value // 4096), float(value % 4096)])
    team.add([counts])
    return int(counts[0].item()) * 4096 + int(counts[1].item())

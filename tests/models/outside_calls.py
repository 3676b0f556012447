"""Counts what a batch asks of torch outside its networks, and which of it makes the host wait for a GPU."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "lift_fresh")
"""Numbers read from a tensor, and tensors made of numbers: on a GPU each is a copy that the host waits for."""


class OutsideCalls(TorchDispatchMode):
    """Operations by name, those inside a forward of the given networks left out."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self._networks, self._depth, self._hooks = networks, 0, ExitStack()

    def __enter__(self) -> "OutsideCalls":
        for network in self._networks:
            self._hooks.callback(network.register_forward_pre_hook(self._into).remove)
            self._hooks.callback(network.register_forward_hook(self._out_of).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._depth:
            self.names[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    def _into(self, *_: Any) -> None:
        self._depth += 1

    def _out_of(self, *_: Any) -> None:
        self._depth -= 1


def calls_a_step(run: Callable[[int], object], networks: tuple[nn.Module, ...], few: int, many: int) -> Counter[str]:
    """By name, the operations that `many - few` more steps add, over all of them, once a batch was seen before."""
    found = []
    for steps in (few, many):
        run(steps)
        with OutsideCalls(*networks) as calls, torch.inference_mode():
            run(steps)
        found.append(calls.names)
    found[1].subtract(found[0])
    return Counter({name: count for name, count in found[1].items() if count})

"""The work folder: atomic files, resumable checkpoints, moving averages and progress lines."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


def atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of path, then move it into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    write(temporary)
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON atomically."""
    atomic(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def read_json(path: Path) -> object:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically (an open file keeps numpy from changing the name)."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)

    atomic(path, write)


def publish(source: Path, target: Path) -> None:
    """Move every file of a freshly saved folder into target, each in one step, so that readers never see halves."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        atomic(target / file.relative_to(source), lambda p, f=file: shutil.copyfile(f, p))


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_state(path: Path, **state: object) -> None:
    """Save a training state; every value is tensors and plain numbers, so weights_only loading suffices."""
    atomic(path, lambda p: torch.save(state, p))


def load_state(path: Path) -> dict | None:
    """The state last saved at path, or None before the first save."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Average:
    """Exponential moving average of a module's floating-point parameters, with a warm-up of the decay."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def load(self, shadow: dict[str, torch.Tensor]) -> None:
        """Continue from a saved average."""
        for name, value in shadow.items():
            self.shadow[name].copy_(value)

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """Move the average towards the module after optimiser step `step`."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        live = module.state_dict()
        for name, value in self.shadow.items():
            if not value.is_floating_point():
                value.copy_(live[name])
        names = [k for k, v in self.shadow.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.shadow[k] for k in names], [live[k] for k in names], weight)


@dataclass
class Progress:
    """Prints a line every `every` steps: step, mean loss, steps per second and the time left."""

    name: str
    total: int
    every: int = 50
    started: float = field(default_factory=time.monotonic)
    first: int = -1
    losses: list[float] = field(default_factory=list)

    def step(self, number: int, loss: float) -> None:
        """Report that step `number` ended with `loss`."""
        self.first = number - 1 if self.first < 0 else self.first
        self.losses.append(loss)
        if number % self.every == 0 or number == self.total:
            rate = (number - self.first) / (time.monotonic() - self.started)
            mean, left = sum(self.losses) / len(self.losses), (self.total - number) / rate
            line = f"[{self.name}] step {number}/{self.total} loss {mean:.4f} {rate:.2f} it/s ETA {left:.0f} s"
            print(line, flush=True)
            self.losses.clear()


def cosine_share(share: float, peak: float, floor: float = 0.02) -> float:
    """Learning rate after `share` (0..1) of the training: cosine decay from peak to floor * peak."""
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def weight_count(modules: Iterable[torch.nn.Module]) -> int:
    """Number of parameters of the modules together."""
    return sum(p.numel() for m in modules for p in m.parameters())

"""The plain training loop of autoencoder, encoder and judge: fixed steps, averaged weights, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tiny import work

SAVE_EVERY = 200


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train; decay is that of the moving average."""

    name: str
    steps: int
    rate: float
    decay: float = 0.998
    weight_decay: float = 1e-4


@dataclass
class Run:
    """One training run and its state on disk."""

    plan: Plan
    model: torch.nn.Module
    average: work.Average
    optimizer: torch.optim.Optimizer
    path: Path
    done: int = 0

    @classmethod
    def open(cls, folder: Path, plan: Plan, model: torch.nn.Module) -> Run:
        """A fresh run, or the one whose checkpoint lies in the folder."""
        optimizer = torch.optim.AdamW(model.parameters(), plan.rate, weight_decay=plan.weight_decay)
        run = cls(plan, model, work.Average(model, plan.decay), optimizer, folder / f"{plan.name}.pt")
        state = work.load_state(run.path)
        if state is not None:
            model.load_state_dict(state["model"])
            run.average.load(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            run.done = state["step"]
        return run

    def save(self) -> None:
        """Write the checkpoint that `open` resumes from."""
        work.save_state(self.path, step=self.done, model=self.model.state_dict(),
                        average=self.average.shadow, optimizer=self.optimizer.state_dict())  # fmt: skip

    def update(self, loss: torch.Tensor) -> None:
        """One clipped optimiser step on a cosine schedule with warm-up."""
        share = self.done / self.plan.steps
        work.set_rate(self.optimizer, work.cosine_share(share, self.plan.rate) * min(1.0, (self.done + 1) / 100))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model, self.done)
        self.done += 1


def fit(folder: Path, plan: Plan, model: torch.nn.Module, loss_at: Callable[[int], torch.Tensor]) -> None:
    """Train model on loss_at(step) for the plan's steps, resuming; leaves the averaged weights in it, on the CPU."""
    run = Run.open(folder, plan, model)
    progress = work.Progress(plan.name, plan.steps)
    while run.done < plan.steps:
        loss = loss_at(run.done)
        run.update(loss)
        progress.step(run.done, loss.item())
        if run.done % SAVE_EVERY == 0 or run.done == plan.steps:
            run.save()
    model.load_state_dict(run.average.shadow)
    model.to("cpu").eval()

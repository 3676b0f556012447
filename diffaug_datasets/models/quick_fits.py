"""Fits as the profiles fast and turbo train them: nothing is read from the device but at every so many steps.

Draws, order and steps are those of `training`; a table of levels on the device takes the place of numbers that are made
a step, conditions are encoded once where the text encoder and its tokens stay as they are, losses and the sign that
training diverges are looked at every `LOOK` steps, and checkpoints are written by a thread. Sums are taken in other
shapes, so weights differ from those of exact in their last digits. Sizes: b rows, latents [c h w].
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.learning import OnStep
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.training import LOSSES, Checkpoint, Descent, TrainingState

LOOK = 25  # steps between two looks at the losses


class QuickDescent(Descent):
    """Steps without a look at the gradients: `look` says later whether one was not finite."""

    _odd: Tensor | None = None

    def take(self, loss: Float[Tensor, ""], max_norm: float | None = None) -> Tensor:
        """One update; returns the loss, on its device.

        Raises:
            BackboneError: training in half precision diverges, which is seen at once.
        """
        if self.loss_scale != 1.0:
            return torch.tensor(self(loss, max_norm))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimiser.param_groups:
            shown = [p for p in group["params"] if p.grad is not None]
            norm = nn.utils.clip_grad_norm_(shown, max_norm if max_norm is not None else float("inf"))
            odd = ~norm.isfinite()
            self._odd = odd if self._odd is None else self._odd | odd
        self.optimiser.step()
        return loss.detach()

    def look(self) -> None:
        """Raises BackboneError where a step since the last look was not finite."""
        if self._odd is not None and bool(self._odd):
            self._skip()
        self._odd = None


class Levels:
    """Noise by label on a device: x = a x0 + s eps, each row at its own."""

    def __init__(self, backbone: Backbone) -> None:
        pairs = [backbone.schedule.pair(t) for t in range(backbone.schedule.num_train_timesteps)]
        self.signal, self.noise = (
            torch.tensor([pair[i] for pair in pairs], dtype=torch.float32).to(backbone.device) for i in (0, 1)
        )

    def noised(
        self, x0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], t: Tensor
    ) -> Float[Tensor, "b c h w"]:
        """A draw of q(x_t | x_0), as `schedule.add_noise`."""
        return self.signal[t][:, None, None, None] * x0 + self.noise[t][:, None, None, None] * eps

    def as_eps(self, kind: str, said: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """eps of a prediction of v or x0."""
        a, s = self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]
        if kind == "v_prediction":
            return a * said + s * xt
        return (xt - a * said) / s if kind == "sample" else said


def predicted_eps(backbone: Backbone, levels: Levels, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """The noise that the network sees, float32, rows at labels `t` on the device: one call of b rows."""
    backbone.calls += 1
    backbone.rows_evaluated += len(xt)
    shown, text = xt.to(backbone.dtype), cond.to(backbone.dtype)
    said: Tensor = backbone.unet(shown, t, encoder_hidden_states=text, return_dict=False)[0]
    return levels.as_eps(backbone.prediction_type, said.float(), xt, t)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Writer:
    """Writes checkpoints in a thread, one at a time; the state is copied before."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._pool = checkpoint, ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Any] | None = None

    def write(self, state: TrainingState, losses: list[float]) -> None:
        """Replace the checkpoint soon; the one before is waited for. Raises RunError as `write_bytes`."""
        if not self._checkpoint.writes:
            return
        self.wait()
        tensors = state.tensors() | {LOSSES: torch.tensor(losses, dtype=torch.float64)}
        self._writing = self._pool.submit(self._put, tensors)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        self._checkpoint.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._checkpoint.path, save(tensors))

    def wait(self) -> None:
        """Until the last checkpoint is there."""
        if self._writing:
            self._writing.result()
        self._writing = None

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def run_quick_steps(
    step: Callable[[int], Tensor],
    total: int,
    every: int,
    checkpoint: Checkpoint,
    state: TrainingState,
    look: Callable[[], None],
    progress: OnStep | None,
) -> list[float]:
    """Do the steps that a checkpoint leaves to do; the losses of all. `progress` is told at every look, `look` before.

    Raises:
        BackboneError: training diverges, or the checkpoint is damaged.
    """
    losses = checkpoint.restore(state)
    pending: list[Tensor] = []
    writer = Writer(checkpoint)
    try:
        for i in range(len(losses), total):
            pending.append(step(i))
            is_kept = (i + 1) % every == 0 or i + 1 == total
            if not (is_kept or len(pending) >= LOOK):
                continue
            look()
            losses += torch.stack(pending).double().tolist()
            pending = []
            if is_kept:
                writer.write(state, losses)
            if progress:
                progress(i + 1, total, losses[-1])
    finally:
        writer.close()
    return losses


def optimiser_of(groups: list[dict[str, Any]], name: str) -> torch.optim.Optimizer:
    """AdamW, or that of bitsandbytes with 8-bit moments.

    Raises:
        BackboneError: bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    if name == "adamw":
        return torch.optim.AdamW(groups, **settings)
    try:
        kind = import_module("bitsandbytes.optim").AdamW8bit
    except ImportError:
        raise BackboneError(
            "profile.optimiser: adamw8bit needs bitsandbytes, which is not installed: `pip install bitsandbytes`, or "
            "leave adamw."
        ) from None
    made: torch.optim.Optimizer = kind(groups, **settings)
    return made

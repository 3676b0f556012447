"""A training run that several processes may share and that goes on exactly where it was killed.

A step's draws are a function of the seed and the step's number alone, made on the CPU for the whole batch and then cut,
so a split among processes (`Team`) changes nothing but the order of a sum. `Checkpoint` keeps weights, AdamW's moments
and all losses so far in one safetensors file that is replaced at once. `Descent` takes the steps.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Generator, Tensor, nn

from diffaug_datasets.core.errors import BackboneError, RunError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.learning import OnStep

# A process may wait for another that computes; one that has died breaks the connection at once.
PATIENCE = timedelta(days=7)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
NARROW_MOMENTS = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")  # of an optimiser with 8-bit moments
LOSSES = "losses"
# Gradients of a half-precision network underflow; a power of two changes no other bit.
HALF_LOSS_SCALE = 1024.0
MOST_SKIPPED = 20
ORDERS = 2  # of epochs that are kept; more are drawn anew where a batch spans more


@runtime_checkable
class Team(Protocol):
    """The processes that share a batch; this one is number `rank`, from 0, of `size`."""

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


def broadcast(team: Team, value: int) -> int:
    """The value that process 0 gives (a whole number below 2^24), in every process."""
    shared = torch.tensor([float(value if team.rank == 0 else 0)])
    team.add([shared])
    return int(shared.item())


def total(team: Team, value: int) -> int:
    """The sum over all processes of whole numbers, exact below 2^36."""
    counts = torch.tensor([float(value // 4096), float(value % 4096)])
    team.add([counts])
    return int(counts[0].item()) * 4096 + int(counts[1].item())


@runtime_checkable
class DrawConfig(Protocol):
    """What decides the draws: `batch` images per step, the share `flip` that is mirrored, classes balanced or not."""

    @property
    def seed(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def flip(self) -> float: ...

    @property
    def class_balanced(self) -> bool: ...


@dataclass(frozen=True)
class StepDraw:
    """Which images, mirrored or not, at which timestep labels, under which noise and prompt; all on the CPU."""

    images: Int[Tensor, " b"]
    mirrored: Bool[Tensor, " b"]
    t: tuple[int, ...]
    eps: Float[Tensor, "b c h w"]
    prompts: Int[Tensor, " b"]

    def part(self, number: int, of: int) -> "StepDraw":
        """Part `number` of `of` nearly equal ones, in order; the parts together are the whole."""
        size = len(self.t)
        cut = slice(number * size // of, (number + 1) * size // of)
        return StepDraw(self.images[cut], self.mirrored[cut], self.t[cut], self.eps[cut], self.prompts[cut])


@dataclass(frozen=True)
class StepDraws:
    """The random choices of a training run over images with these class ids; `purpose` sets runs apart.

    `shuffled`: every epoch draws an order of its own; else it is the order of the images.
    """

    cfg: DrawConfig
    labels: tuple[int, ...]
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int
    prompts: int = 1
    purpose: str = "concepts"
    shuffled: bool = True

    def step(self, i: int) -> StepDraw:
        """Everything random about step i: the same whether or not the run was interrupted before it."""
        size = self.cfg.batch
        t = torch.randint(self.num_train_timesteps, (size,), generator=self._generator(i, "timestep"))
        mirrored = torch.rand(size, generator=self._generator(i, "flip")) < self.cfg.flip
        eps = torch.randn(size, *self.latent_shape, generator=self._generator(i, "noise"))
        images = self._balanced(i) if self.cfg.class_balanced else self._in_epochs(i)
        prompts = torch.randint(self.prompts, (size,), generator=self._generator(i, "prompt"))
        return StepDraw(images, mirrored, tuple(t.tolist()), eps, prompts)

    def _generator(self, i: int, role: str) -> Generator:
        return torch.Generator().manual_seed(uint63(f"{self.cfg.seed}|{self.purpose}|{i}|{role}"))

    def _balanced(self, i: int) -> Int[Tensor, " b"]:
        """Images with replacement, image j with weight 1 over the number of images of its class."""
        generator = self._generator(i, "image")
        return torch.multinomial(self._weights, self.cfg.batch, replacement=True, generator=generator)

    @cached_property
    def _weights(self) -> Float[Tensor, " n"]:
        counts = Counter(self.labels)
        return torch.tensor([1 / counts[label] for label in self.labels], dtype=torch.float64)

    def _in_epochs(self, i: int) -> Int[Tensor, " b"]:
        """Images without replacement, in the order of their epoch; a batch may span epochs."""
        count = len(self.labels)
        places = range(i * self.cfg.batch, (i + 1) * self.cfg.batch)
        orders = {epoch: self._orders(epoch) for epoch in {place // count for place in places}}
        return torch.stack([orders[place // count][place % count] for place in places])

    @cached_property
    def _orders(self) -> Callable[[int], Int[Tensor, " n"]]:
        """The order of an epoch; the last ones that were asked for are kept."""
        return lru_cache(ORDERS)(self._order)

    def _order(self, epoch: int) -> Int[Tensor, " n"]:
        if not self.shuffled:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=self._generator(epoch, "epoch"))


@dataclass(frozen=True)
class TrainingState:
    """The parameters by name, and the optimiser that holds their moments."""

    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything that a later step reads."""
        tensors: dict[str, Tensor] = {f"{name}|value": parameter for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state.get(parameter, {})
            kept = [moment for moment in (*MOMENTS, *NARROW_MOMENTS) if moment in moments]
            tensors |= {f"{name}|{moment}": torch.as_tensor(moments[moment]) for moment in kept}
        return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the copies back. Raises KeyError or RuntimeError where they belong to other parameters."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"{name}|value"])
            # AdamW keeps its step counter on the CPU, in the dtype it was saved in.
            known = (*MOMENTS, *NARROW_MOMENTS)
            kept = {m: tensors[f"{name}|{m}"] for m in known if f"{name}|{m}" in tensors}
            if kept:
                step = {"step": kept["step"] if "exp_avg" in kept else int(kept["step"])} if "step" in kept else {}
                moments = {m: value.to(parameter.device) for m, value in kept.items() if m != "step"}
                self.optimiser.state[parameter] = step | moments


@dataclass(frozen=True)
class Checkpoint:
    """Where a run with this fingerprint is kept; another fingerprint is another file, so settings never mix.

    `writes`: of processes that train together one alone writes, and all read.
    """

    folder: Path
    fingerprint: str
    writes: bool = True

    @property
    def path(self) -> Path:
        """The file; its number of losses is the number of finished steps."""
        return self.folder / f"{self.fingerprint}.safetensors"

    def write(self, state: TrainingState, losses: list[float]) -> None:
        """Replace the checkpoint by the state after `len(losses)` steps."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = state.tensors() | {LOSSES: torch.tensor(losses, dtype=torch.float64)}
        write_bytes(self.path, save(tensors))

    def restore(self, state: TrainingState) -> list[float]:
        """Bring the state to the last checkpoint; returns the losses up to there, none if there is no checkpoint.

        Raises:
            BackboneError: the file is damaged.
        """
        if not self.path.is_file():
            return []
        try:
            tensors = load_file(self.path)
            state.restore(tensors)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise BackboneError(
                f"checkpoint {str(self.path)!r} is damaged ({error}): delete it and the concepts are learned anew."
            ) from error
        losses: list[float] = tensors[LOSSES].tolist()
        return losses


class Descent:
    """Steps of an optimiser. The loss of a half-precision network is scaled up, and a step that overflows left out.

    `what` diverges, and which `rates` to lower then, is for the message. The losses of a `team` are parts of one sum.
    """

    def __init__(
        self, optimiser: torch.optim.Optimizer, dtype: torch.dtype, what: str, rates: str, team: Team = ALONE
    ) -> None:
        self.optimiser, self._what, self._rates, self._team = optimiser, what, rates, team
        self.loss_scale = HALF_LOSS_SCALE if dtype == torch.float16 else 1.0
        self.skipped = 0

    def __call__(self, loss: Float[Tensor, ""], max_norm: float | None = None) -> float:
        """One update; returns the loss. Parameters that the loss does not depend on stay as they are.

        Raises:
            BackboneError: training diverges.
        """
        self.optimiser.zero_grad(set_to_none=True)
        (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        groups = [group["params"] for group in self.optimiser.param_groups]
        gradients = [p.grad for group in groups for p in group if p.grad is not None]
        whole = loss.detach().clone()
        self._team.add([*gradients, whole])
        for gradient in gradients:
            gradient.div_(self.loss_scale)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self._skip()
            return float(whole)
        self.skipped = 0
        if max_norm is not None:
            for group in groups:
                nn.utils.clip_grad_norm_(group, max_norm)
        self.optimiser.step()
        return float(whole)

    def _skip(self) -> None:
        self.skipped += 1
        if self.loss_scale == 1.0 or self.skipped > MOST_SKIPPED:
            raise BackboneError(
                f"{self._what} diverged (gradients are not finite): lower {self._rates}, "
                "or set backbone.dtype to bfloat16 or float32."
            )


def run_steps(
    step: Callable[[int], float],
    total: int,
    every: int,
    checkpoint: Checkpoint,
    state: TrainingState,
    progress: OnStep | None,
) -> list[float]:
    """Do the steps that a checkpoint leaves to do, saving after every so many; the losses of all, first to last."""
    losses = checkpoint.restore(state)
    for i in range(len(losses), total):
        losses.append(step(i))
        if (i + 1) % every == 0 or i + 1 == total:
            checkpoint.write(state, losses)
        if progress:
            progress(i + 1, total, losses[-1])
    return losses


def mean_losses(losses: Sequence[float]) -> dict[str, float | None]:
    """For a fit's receipt: the mean loss of the first and of the last tenth; None where there is none.

    Losses that are not finite are left out: half precision may skip a step.
    """
    finite = [loss for loss in losses if isfinite(loss)]
    tenth = max(1, len(finite) // 10)
    ends = {"loss_first": finite[:tenth], "loss_last": finite[-tenth:]}
    return {name: fmean(part) if part else None for name, part in ends.items()}

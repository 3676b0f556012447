"""The training loop of concept learning: AdamW on token rows and LoRA matrices, mean squared error on eps.

Several processes may share every batch: their gradients are weighted by their share of it and added up.

Processes that share every training batch: each computes a part, and all take the same step.

Every draw of a step is made for the whole batch from the seed, then cut, so the split changes nothing but the order of
a sum. One process alone adds nothing up.

What one training step draws: a function of the seed and the step's number alone, on CPU generators.

A training run on disk: weights, AdamW's moments and all losses so far, in one safetensors file replaced at once.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Generator, Tensor, nn

from diffaug_datasets.core.errors import BackboneError, RunError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.numerics.schedule import Schedule, add_noise

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


@runtime_checkable
class DrawConfig(Protocol):
    """What decides the draws: `batch` images a step, the share `flip` that is mirrored, classes balanced or not."""

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
    """The random choices of a training run over images with these class ids; `purpose` sets runs apart."""

    cfg: DrawConfig
    labels: tuple[int, ...]
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int
    prompts: int = 1
    purpose: str = "concepts"

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
        counts = Counter(self.labels)
        weights = torch.tensor([1 / counts[label] for label in self.labels], dtype=torch.float64)
        return torch.multinomial(weights, self.cfg.batch, replacement=True, generator=self._generator(i, "image"))

    def _in_epochs(self, i: int) -> Int[Tensor, " b"]:
        """Images without replacement, in an order that every epoch draws anew; a batch may span epochs."""
        count = len(self.labels)
        places = range(i * self.cfg.batch, (i + 1) * self.cfg.batch)
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        return torch.stack([orders[place // count][place % count] for place in places])

    def _order(self, epoch: int) -> Int[Tensor, " n"]:
        return torch.randperm(len(self.labels), generator=self._generator(epoch, "epoch"))


MOMENTS = ("step", "exp_avg", "exp_avg_sq")
LOSSES = "losses"


@dataclass(frozen=True)
class TrainingState:
    """The parameters by name, and the optimiser that holds their moments."""

    parameters: Mapping[str, nn.Parameter]
    optimiser: torch.optim.Optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Copies of everything that a later step reads."""
        found = {f"{name}|value": parameter for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimiser.state.get(parameter, {})
            found |= {f"{name}|{moment}": moments[moment] for moment in MOMENTS if moment in moments}
        return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the copies back. Raises KeyError or RuntimeError where they belong to other parameters."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"{name}|value"])
            # AdamW keeps its step counter on the CPU, in the dtype it was saved in.
            kept = {m: tensors[f"{name}|{m}"] for m in MOMENTS if f"{name}|{m}" in tensors}
            if kept:
                self.optimiser.state[parameter] = {
                    m: value if m == "step" else value.to(parameter.device) for m, value in kept.items()
                }


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

    def discard(self) -> None:
        """Delete the file, once what was learned is safe elsewhere."""
        self.path.unlink(missing_ok=True)


MAX_NORM = 1.0
# Gradients of a half-precision network underflow; a power of two changes no other bit.
HALF_LOSS_SCALE = 1024.0
MOST_SKIPPED = 20

Progress = Callable[[int, int, float], None]
"""(steps done, of how many, loss of the last one) -> nothing."""


class ConceptTraining:
    """A run over latents (plain and mirrored) of images with the token ids of their class's k prompts."""

    def __init__(
        self,
        backbone: Backbone,
        cfg: ConceptConfig,
        latents: Float[Tensor, "n 2 c h w"],
        labels: Sequence[int],
        ids: Mapping[int, Int[Tensor, "k s"]],
        rows: nn.Parameter,
        lora: Mapping[str, nn.Parameter],
        team: Team = ALONE,
    ) -> None:
        self.backbone, self.cfg, self.latents, self.team = backbone, cfg, latents, team
        self.ids = torch.stack([ids[label] for label in labels])
        steps = backbone.schedule.num_train_timesteps
        self.draws = StepDraws(cfg, tuple(labels), backbone.latent_shape, steps, self.ids.shape[1])
        self.optimiser = _adamw(cfg, rows, list(lora.values()))
        self.state = TrainingState({"rows": rows, **lora}, self.optimiser)
        self.descent = Descent(self.optimiser, backbone.dtype, "concept learning", "lr_lora and lr_embedding", team)

    def to_the_end(
        self, checkpoint: Checkpoint, progress: Progress | None, look: Callable[[int], None] | None = None
    ) -> list[float]:
        """The losses of all steps, those before the checkpoint included; `look` is called after every step.

        Raises:
            BackboneError: training diverges, or the checkpoint is damaged.
        """

        def step(i: int) -> float:
            self._set_rates(i)
            loss = self.step(self.draws.step(i))
            if look:
                look(i + 1)
            return loss

        return run_steps(step, self.cfg.steps, self.cfg.checkpoint_every, checkpoint, self.state, progress)

    def step(self, draw: StepDraw) -> float:
        """One update, each group clipped to norm 1; returns the loss of the whole batch before it."""
        own = draw.part(self.team.rank, self.team.size)
        return self.descent(self.loss(own) * (len(own.t) / len(draw.t)), MAX_NORM)

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """Mean squared error on eps, with Min-SNR weights if asked for."""
        device = self.backbone.device
        x0 = self.latents[draw.images, draw.mirrored.long()].to(device)
        eps = draw.eps.to(device)
        xt = add_noise(self.backbone.schedule, x0, eps, draw.t)
        cond = self.backbone.text.encode(self.ids[draw.images.to(self.ids.device), draw.prompts.to(self.ids.device)])
        errors = (self.backbone.eps(xt, draw.t, cond) - eps).square().mean(dim=(1, 2, 3))
        return (errors * min_snr_weights(self.backbone.schedule, draw.t, self.cfg.snr_gamma).to(device)).mean()

    def _set_rates(self, i: int) -> None:
        is_cosine = self.cfg.lr_schedule == "cosine"
        share = 0.5 * (1 + math.cos(math.pi * i / self.cfg.steps)) if is_cosine else 1.0
        rates = (self.cfg.lr_embedding, self.cfg.lr_lora)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=False):
            group["lr"] = share * rate


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
        for group in groups if max_norm else ():
            nn.utils.clip_grad_norm_(group, max_norm or MAX_NORM)
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
    progress: Progress | None,
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


def _adamw(cfg: ConceptConfig, rows: nn.Parameter, lora: list[nn.Parameter]) -> torch.optim.AdamW:
    groups = [{"params": [rows], "lr": cfg.lr_embedding}]
    groups += [{"params": lora, "lr": cfg.lr_lora}] if lora else []
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)


def min_snr_weights(schedule: Schedule, t: Sequence[int], gamma: float | None) -> Float[Tensor, " b"]:
    """min(SNR, gamma) / SNR at each label, SNR = alpha_bar / (1 - alpha_bar); ones without a gamma.

    Implements the eps-prediction weights of Hang et al. (arXiv 2303.09556).
    """
    snr = [schedule.level(label) / (1 - schedule.level(label)) for label in t]
    return torch.tensor([1.0 if gamma is None else min(s, gamma) / s for s in snr])

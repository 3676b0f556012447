"""The training loop of concept learning: AdamW on token rows and LoRA matrices, mean squared error on eps.

Several processes may share every batch: their gradients are weighted by their share of it and added up.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffaug_datasets.core.concept_config import ConceptConfig
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.checkpoint import Checkpoint, TrainingState
from diffaug_datasets.models.draws import StepDraw, StepDraws
from diffaug_datasets.models.team import ALONE, Team
from diffaug_datasets.numerics.schedule import Schedule, add_noise

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

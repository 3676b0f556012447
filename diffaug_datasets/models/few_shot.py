"""LoRA of the U-Net and of the text encoder, learned from a few images under a prompt in words (DataDream).

`learn_lora` minimises E || eps - eps_theta(z_t, t, tau_phi(prompt)) ||^2 (of v, for a model that predicts v) over the
LoRA matrices of both networks: Kim et al. 2024, arXiv 2407.10910, after DreamBooth's script of diffusers. `beside` puts
matrices beside the projections while the networks stay as they are, one pair for all rows of a batch or one per row, so
that rows with LoRA of their own share network calls. Follows the authors' code in targets, start, optimiser, schedule,
clipping and loss; departs from it in latents (the posterior's mode, encoded once, fitted where theirs are cropped at
random), in batches that may span epochs, and in resuming exactly.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.learning import LoraConfig, OnStep
from diffaug_datasets.core.method import DiffusionModel, Resize
from diffaug_datasets.models.adapters import LORA_FILE, TARGETS, initial_matrix
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.kernels import as_written
from diffaug_datasets.models.latents import ConceptExample, Latents, ReadLatents
from diffaug_datasets.models.training import (
    Checkpoint,
    Descent,
    StepDraw,
    StepDraws,
    TrainingState,
    mean_losses,
    run_steps,
)
from diffaug_datasets.numerics.schedule import add_noise

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
MAX_NORM = 1.0

Lora = Mapping[str, Tensor]
"""`unet.<module>.lora_A.weight` [r in] and `..._B.weight` [out r], and the same of `text_encoder`."""


@dataclass(frozen=True)
class LearnedLora:
    """The matrices, on the CPU, and the loss of every step."""

    matrices: Lora
    losses: tuple[float, ...]

    def files(self) -> dict[str, Lora]:
        """What a fit stores."""
        return {LORA_FILE: self.matrices}

    def measured(self) -> dict[str, object]:
        """Numbers for the fit's receipt: steps, mean loss of the first and last tenth."""
        return {"steps": len(self.losses), **mean_losses(self.losses)}


def learn_lora(
    backbone: Backbone,
    examples: Sequence[ConceptExample],
    prompts: Mapping[int, str],
    cfg: LoraConfig,
    *,
    workdir: Path,
    resize: Resize,
    progress: OnStep | None = None,
) -> LearnedLora:
    """Learn the matrices of images under the prompts of their classes. The backbone is left as it was.

    Killed and called again with the same arguments, it goes on from the last checkpoint under `workdir` and ends at the
    same bits, as concept learning does. `progress` gets (steps done, of how many, loss).

    Raises:
        BackboneError: there is no example, or training diverges.
    """
    if not examples:
        raise BackboneError("LoRA got no image to learn from: expected at least one of any class.")
    backbone.use_concepts(None)
    latents, labels = Latents(backbone, examples, resize), [example.class_id for example in examples]
    settings: list[object] = [backbone.name, str(backbone.dtype), cfg.identity(), sorted(prompts.items()), labels]
    fingerprint = digest([*settings, latents.identity])[:16]
    training = LoraTraining(backbone, cfg, latents, labels, prompts)
    with beside(backbone, [training.matrices]):
        checkpoint = Checkpoint(workdir / "lora-checkpoint", fingerprint)
        losses = training.to_the_end(checkpoint, progress)
    learned = {key: matrix.detach().cpu().clone() for key, matrix in training.matrices.items()}
    return LearnedLora(learned, tuple(losses))


class LoraTraining:
    """A run over the latents of images, with the prompts of their classes."""

    def __init__(
        self,
        backbone: Backbone,
        cfg: LoraConfig,
        latents: ReadLatents,
        labels: Sequence[int],
        prompts: Mapping[int, str],
    ) -> None:
        self.backbone, self.cfg, self.latents = backbone, cfg, latents
        places = {label: place for place, label in enumerate(sorted(set(labels)))}
        self.ids = torch.stack([backbone.text.ids(prompts[label]) for label in places])
        self.rows_of_ids = torch.tensor([places[label] for label in labels])
        self.matrices = fresh_matrices(backbone, cfg)
        self.optimiser = torch.optim.AdamW(
            self.matrices.values(), lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2
        )
        self.state = TrainingState(self.matrices, self.optimiser)
        self.steps = cfg.steps(len(labels))
        train_steps = backbone.schedule.num_train_timesteps
        self.draws = StepDraws(cfg, tuple(labels), backbone.latent_shape, train_steps, purpose="lora")
        self.descent = Descent(self.optimiser, backbone.dtype, "LoRA", "lora.lr")

    def to_the_end(self, checkpoint: Checkpoint, progress: OnStep | None) -> list[float]:
        """The losses of all steps, those before the checkpoint included.

        Raises:
            BackboneError: training diverges, or the checkpoint is damaged.
        """
        with as_written(self.backbone):
            return run_steps(self.step, self.steps, self.cfg.checkpoint_every, checkpoint, self.state, progress)

    def step(self, i: int) -> float:
        """Step i, all gradients together clipped to norm 1; returns the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.cfg.lr * self._rate(i)
        return self.descent(self.loss(self.draws.step(i)), MAX_NORM)

    def _rate(self, i: int) -> float:
        return 1.0 if self.cfg.lr_schedule == "constant" else rate(i, self.steps, self.cfg.warmup)

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """Mean squared error of what the network predicts, eps or v."""
        backbone = self.backbone
        x0, eps = self.latents(draw.images, draw.mirrored).to(backbone.device), draw.eps.to(backbone.device)
        cond = backbone.text.encode(self.ids[self.rows_of_ids[draw.images].to(self.ids.device)])
        errors = (backbone.eps(add_noise(backbone.schedule, x0, eps, draw.t), draw.t, cond) - eps).square()
        if backbone.prediction_type == "v_prediction":  # eps - eps' = sqrt(alpha_bar) (v - v')
            levels = torch.tensor([backbone.vp_schedule.level(t) for t in draw.t], device=errors.device)
            errors = errors / levels[:, None, None, None]
        return errors.mean()


def rate(i: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at step i: up along a line, then down along half a cosine to 0 at the end."""
    if i < warmup:
        return i / max(1, warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (i - warmup) / max(1, steps - warmup))))


def fresh_matrices(backbone: Backbone, cfg: LoraConfig) -> dict[str, nn.Parameter]:
    """Float32 matrices by key: A drawn from the seed and its own key, N(0, 1/rank^2), B zero (alpha = rank)."""
    parts: list[tuple[str, Any, tuple[str, ...]]] = [("unet", backbone.unet, TARGETS)]
    parts += [("text_encoder", backbone.text_encoder, TEXT_TARGETS)] if cfg.text_encoder else []
    matrices: dict[str, nn.Parameter] = {}
    for part, network, targets in parts:
        for name, module in network.named_modules():
            if not name.endswith(tuple(f".{target}" for target in targets)):
                continue
            rows, columns = module.weight.shape
            for side, shape in (("A", (cfg.rank, columns)), ("B", (rows, cfg.rank))):
                key = f"{part}.{name}.lora_{side}.weight"
                start = initial_matrix(torch.Size(shape), key, cfg.seed, "gaussian")
                matrices[key] = nn.Parameter(start.to(backbone.device))
    return matrices


@contextmanager
def beside(model: DiffusionModel, loras: Sequence[Lora]) -> Iterator[None]:
    """The networks with B A beside their projections: one LoRA for all rows, or LoRA j for row j of b.

    A call of 2 b rows is taken for the b rows twice over, as the branches of guidance come.

    Raises:
        BackboneError: a matrix belongs to no projection of this backbone, or has another shape.
    """
    backbone = cast(Backbone, model)
    handles: list[Any] = []
    try:
        for key in loras[0]:
            if key.endswith(".lora_A.weight"):
                module = _projection(backbone, key, loras)
                pairs = [(lora[key], lora[key.replace(".lora_A.", ".lora_B.")]) for lora in loras]
                handles.append(module.register_forward_hook(_added(pairs)))
        backbone.text.forget()
        yield
    finally:
        for handle in handles:
            handle.remove()
        backbone.text.forget()


def _projection(backbone: Backbone, key: str, loras: Sequence[Lora]) -> nn.Module:
    part, _, rest = key.removesuffix(".lora_A.weight").partition(".")
    network: nn.Module = backbone.unet if part == "unet" else backbone.text_encoder
    try:
        module = network.get_submodule(rest)
    except AttributeError:
        raise BackboneError(f"LoRA is for {rest!r}, which this model has not: use the one it was learned on.") from None
    expected = tuple(getattr(module, "weight", torch.empty(0, 0)).shape)
    for lora in loras:
        got = (len(lora[key.replace(".lora_A.", ".lora_B.")]), lora[key].shape[1])
        if got != expected:
            sentence = f"LoRA of {rest!r} has shape {got}, expected {expected}: use the model it was learned on."
            raise BackboneError(sentence)
    return module


def _added(pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """A forward hook that adds B A x to a linear layer's output."""
    if len(pairs) == 1:
        [(a, b)] = pairs

        def of_all(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            return output + F.linear(F.linear(x, a.to(x)), b.to(x))

        return of_all
    down, up = (torch.stack([pair[side].mT for pair in pairs]) for side in (0, 1))

    def of_each(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        times = len(x) // len(pairs)
        inner = torch.bmm(x, down.to(x).repeat(times, 1, 1))
        return output + torch.bmm(inner, up.to(x).repeat(times, 1, 1))

    return of_each

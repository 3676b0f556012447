"""Image embeddings: a sequence of vectors per image, learned as the condition under which the model denoises it.

Minimises E || eps - eps_theta(z_t, t, c_j) ||^2 over c_j [s d] alone, for every image j of a group (Diffusion
Inversion, arXiv 2305.15316, stage 1). Follows the authors' code in start, optimiser and rate. Departs from it: an image
that a step does not show is not touched by that step (theirs decays and drifts on), latents are the posterior's mode,
and training resumes exactly.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.identity import digest, uint63
from diffaug_datasets.core.learning import EmbeddingConfig, OnStep
from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.training import (
    Checkpoint,
    Descent,
    StepDraw,
    StepDraws,
    TrainingState,
    mean_losses,
    run_steps,
)
from diffaug_datasets.numerics.sampling import Eps
from diffaug_datasets.numerics.schedule import add_noise

START_RANGE = 0.1  # a linear map without bias from 100 one-hot inputs starts uniform within 1 / sqrt(100)


@dataclass(frozen=True)
class LearnedEmbeddings:
    """Embeddings [s d] in the order of the images, and the loss of every step."""

    embeddings: tuple[Tensor, ...]
    losses: tuple[float, ...]

    def measured(self) -> dict[str, object]:
        """Numbers for the fit's receipt: steps, mean loss of the first and last tenth."""
        return {"steps": len(self.losses), **mean_losses(self.losses)}


def learn_embeddings(
    backbone: Backbone,
    images: Iterable[Float[Tensor, "3 H W"]],
    cfg: EmbeddingConfig,
    *,
    workdir: Path,
    progress: OnStep | None = None,
) -> LearnedEmbeddings:
    """Learn the embeddings of images in [-1, 1], one group, taken one by one. The backbone is left without concepts.

    Killed and called again with the same arguments, it goes on from the last checkpoint under `workdir` and ends at the
    same bits, as concept learning does. `progress` gets (steps done, of how many, loss).

    Raises:
        BackboneError: there is no image, or training diverges.
    """
    backbone.use_concepts(None)
    encoded = [backbone.encode(image[None]).cpu() for image in images]
    if not encoded:
        raise BackboneError("image embeddings: got no image, expected at least one.")
    latents = torch.cat(encoded)
    settings = [backbone.name, str(backbone.dtype), cfg.identity()]
    fingerprint = digest([*settings, hashlib.sha256(latents.contiguous().numpy().data).hexdigest()])[:16]
    training = EmbeddingTraining(backbone, cfg, latents)
    losses = training.to_the_end(Checkpoint(workdir / "embedding-checkpoint", fingerprint), progress)
    return LearnedEmbeddings(tuple(c.detach().cpu().clone() for c in training.embeddings), tuple(losses))


class EmbeddingTraining:
    """The embeddings of one group of latents, and how a step changes them."""

    def __init__(self, backbone: Backbone, cfg: EmbeddingConfig, latents: Float[Tensor, "n c h w"]) -> None:
        self.backbone, self.cfg, self.latents = backbone, cfg, latents
        self.embeddings = _start(backbone, cfg, len(latents))
        self.optimiser = torch.optim.AdamW(self.embeddings, lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
        self.state = TrainingState({f"{j:06d}": c for j, c in enumerate(self.embeddings)}, self.optimiser)
        steps = backbone.schedule.num_train_timesteps
        self.draws = StepDraws(cfg, (0,) * len(latents), backbone.latent_shape, steps, purpose="image embeddings")
        self.descent = Descent(self.optimiser, backbone.dtype, "image embeddings", "embeddings.lr")

    def to_the_end(self, checkpoint: Checkpoint, progress: OnStep | None) -> list[float]:
        """The losses of all steps, those before the checkpoint included.

        Raises:
            BackboneError: training diverges, or the checkpoint is damaged.
        """
        every = self.cfg.checkpoint_every
        return run_steps(self.step, self.cfg.steps, every, checkpoint, self.state, progress)

    def step(self, i: int) -> float:
        """Step i; returns the loss before it."""
        return self.descent(self.loss(self.draws.step(i)))

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """Mean squared error on eps."""
        device = self.backbone.device
        x0, eps = self.latents[draw.images].to(device), draw.eps.to(device)
        cond = torch.stack([self.embeddings[j] for j in draw.images.tolist()])
        xt = add_noise(self.backbone.schedule, x0, eps, draw.t)
        return (self.backbone.eps(xt, draw.t, cond) - eps).square().mean()


def _start(backbone: Backbone, cfg: EmbeddingConfig, n: int) -> list[nn.Parameter]:
    """`n` conditions [s d], embedding j drawn from the seed and j alone."""
    shape = cfg.vectors, int(backbone.unet.config.cross_attention_dim)
    generators = [torch.Generator().manual_seed(uint63(f"{cfg.seed}|image embeddings|start|{j}")) for j in range(n)]
    rows = [torch.empty(shape).uniform_(-START_RANGE, START_RANGE, generator=g) for g in generators]
    return [nn.Parameter(row.to(backbone.device)) for row in rows]


def perturbed(
    own: Float[Tensor, "s d"], partner: Float[Tensor, "s d"], alpha: float, noise: Float[Tensor, "s d"], lam: float
) -> Float[Tensor, "s d"]:
    """A new condition near an image's own: (1 - alpha) c_i + alpha c_k + lambda eps (stage 2 of the paper)."""
    return (1 - alpha) * own + alpha * partner + lam * noise


def guided_by_mean(
    backbone: DiffusionModel, cond: Float[Tensor, "b s d"], mean: Float[Tensor, "b s d"], scale: Float[Tensor, " b"]
) -> Eps:
    """Guidance away from the mean embedding of each row's group: eps(mean) + scale (eps(cond) - eps(mean))."""
    return lambda xt, t, _: backbone.guided_eps(xt, t, cond, mean, scale)

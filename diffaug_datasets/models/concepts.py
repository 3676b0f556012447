"""Concept learning: one token a class and LoRA on the U-Net, trained together on eps (Diff-Mix; Diff-II, section 3.2).

Minimises E || eps - eps_theta(z_t, t, "a photo of a <class_i> ...") ||^2 over token rows and LoRA matrices. Follows the
authors' code in optimiser, clipping, template and targets. Departs from it: frozen rows are never in the optimiser, the
gradient of the embeddings is clipped too, images are stretched to a square where theirs are cropped at random, latents
are the posterior's mode and are encoded once, and training resumes exactly, since every draw of step i is a function of
the seed and i. Several processes may share every batch.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn

from diffaug_datasets.core.canonical import digest
from diffaug_datasets.core.concept_config import ConceptConfig
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.seeds import uint63
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.checkpoint import Checkpoint
from diffaug_datasets.models.learned import LoadedConcepts, load_concepts
from diffaug_datasets.models.lora import attach, detach
from diffaug_datasets.models.pixels import Resize
from diffaug_datasets.models.previews import Previews, shown_classes
from diffaug_datasets.models.team import ALONE, Team
from diffaug_datasets.models.textual_inversion import initial_rows, starting_point
from diffaug_datasets.models.training import ConceptTraining, Progress
from diffaug_datasets.numerics.schedule import add_noise

__all__ = [
    "ConceptExample",
    "LoadedConcepts",
    "TrainedConcepts",
    "held_out_loss",
    "load_concepts",
    "train_concepts",
    "unlearned_concepts",
]


@dataclass(frozen=True)
class ConceptExample:
    """One real image of a class: a picture, a function that reads it, or a latent [c h w] that is never mirrored."""

    image: Image.Image | Tensor | Callable[[], Image.Image]
    class_id: int


@dataclass(frozen=True)
class TrainedConcepts:
    """What was learned, the loss of every step, and what the tokens started from."""

    concepts: LoadedConcepts
    losses: tuple[float, ...]
    init: str

    def files(self) -> dict[str, dict[str, Tensor]]:
        """File name -> tensors, as `LoadedConcepts.files`."""
        return self.concepts.files()

    def save(self, folder: Path) -> None:
        """Write the files, as `LoadedConcepts.save`."""
        self.concepts.save(folder)

    def measured(self) -> dict[str, Any]:
        """Numbers for the fit's receipt: steps, mean loss of the first and last tenth, the tokens' start."""
        losses = [loss for loss in self.losses if math.isfinite(loss)]  # half precision may skip a step
        tenth = max(1, len(losses) // 10)
        ends = {"loss_first": losses[:tenth], "loss_last": losses[-tenth:]}
        means = {name: fmean(part) if part else None for name, part in ends.items()}
        return {"steps": len(self.losses), "init": self.init, **means}


def train_concepts(
    backbone: Backbone,
    examples: Sequence[ConceptExample],
    names: Mapping[int, str],
    cfg: ConceptConfig,
    *,
    workdir: Path,
    metaclass: str = "",
    resize: Resize = "lanczos",
    progress: Progress | None = None,
    team: Team = ALONE,
) -> TrainedConcepts:
    """Learn the concepts of all classes (`names`: class id -> phrase, where its token starts) in one run.

    Images are seen at `cfg.resolution`, which need not be the size that the backbone then makes pictures at.
    Killed and called again with the same arguments, it goes on from the last checkpoint under `workdir` and ends at the
    same bits: always on a CPU, on a GPU as far as the backward kernels that torch picks are deterministic. The backbone
    is left without concepts. `progress` gets (steps done, of how many, loss). The processes of a `team` call it alike
    and each computes its part of every batch; the first one keeps checkpoints and draws pictures for the report.

    Raises:
        BackboneError: there is no example, an example's class has no name, a batch has fewer images than the team
            processes, or training diverges.
    """
    _check(examples, names)
    if cfg.batch < team.size:
        raise BackboneError(f"concepts.batch: {cfg.batch} images cannot be shared by {team.size} processes; use fewer.")
    backbone.use_concepts(None)
    with _at_resolution(backbone, cfg.resolution):
        latents = _latents(backbone, examples, resize)
    labels = [example.class_id for example in examples]
    start = unlearned_concepts(backbone, names, cfg, metaclass=metaclass)
    settings: list[object] = [
        backbone.name,
        str(backbone.dtype),
        cfg.identity(),
        metaclass,
        sorted(names.items()),
        labels,
    ]
    settings += [team.size] if team.size > 1 else []  # sums in another order have other bits
    fingerprint = digest([*settings, hashlib.sha256(latents.numpy().data).hexdigest()])[:16]
    with _at_resolution(backbone, cfg.resolution), _trainable(backbone, start, cfg) as (rows, lora):
        prompts = {label: cfg.training_prompts(label, metaclass) for label in set(labels)}
        ids = {label: torch.stack([backbone.text.ids(text) for text in texts]) for label, texts in prompts.items()}
        training = ConceptTraining(backbone, cfg, latents, labels, ids, rows, lora, team)
        checkpoint = Checkpoint(workdir / "concept-checkpoint", fingerprint, writes=team.rank == 0)
        shown = shown_classes(labels) if team.rank == 0 else ()
        look = Previews(backbone, cfg, {label: ids[label][0] for label in shown}, workdir)
        losses = training.to_the_end(checkpoint, progress, look)
        learned = _collect(start, rows, lora)
    return TrainedConcepts(learned, tuple(losses), str(starting_point(backbone.text_encoder, cfg, metaclass)))


def unlearned_concepts(
    backbone: Backbone, names: Mapping[int, str], cfg: ConceptConfig, *, metaclass: str = ""
) -> LoadedConcepts:
    """The tokens as training finds them, without LoRA."""
    models = backbone.tokenizer, backbone.text_encoder
    return LoadedConcepts({cfg.token(c): initial_rows(*models, cfg, names[c], metaclass) for c in sorted(names)})


def held_out_loss(
    backbone: Backbone,
    concepts: LoadedConcepts | None,
    examples: Sequence[ConceptExample],
    names: Mapping[int, str],
    cfg: ConceptConfig,
    *,
    n_noise: int = 8,
    seed: int = 0,
    metaclass: str = "",
    resize: Resize = "lanczos",
) -> dict[int, float]:
    """Mean squared error on eps under the class prompt, by class; None for `concepts` = tokens at their start, no LoRA.

    Every image is seen at `cfg.resolution` and at `n_noise` levels spread over the schedule, one batch an image; levels
    and noises are the same for all concepts. The backbone is left without concepts.
    """
    backbone.use_concepts(concepts or unlearned_concepts(backbone, names, cfg, metaclass=metaclass))
    losses: dict[int, list[float]] = {}
    for j, example in enumerate(examples):
        with _at_resolution(backbone, cfg.resolution):
            latent = _both_ways(backbone, example.image, resize)[0]
        generator = torch.Generator().manual_seed(uint63(f"{seed}|held out|{j}"))
        cond = backbone.prompt(cfg.prompt(example.class_id, metaclass))
        losses.setdefault(example.class_id, []).append(_denoising_error(backbone, latent, cond, n_noise, generator))
    backbone.use_concepts(None)
    return {class_id: fmean(values) for class_id, values in sorted(losses.items())}


@torch.no_grad()
def _denoising_error(backbone: Backbone, x0: Tensor, cond: Tensor, n: int, generator: Generator) -> float:
    offset = float(torch.rand(1, generator=generator))
    t = [int((k + offset) / n * backbone.schedule.num_train_timesteps) for k in range(n)]
    eps = torch.randn(n, *x0.shape, generator=generator)
    xt = add_noise(backbone.schedule, x0.expand(n, *x0.shape), eps, t)
    found = backbone.eps(xt, t, cond.expand(n, *cond.shape)).cpu()
    return float((found - eps).square().mean())


def _check(examples: Sequence[ConceptExample], names: Mapping[int, str]) -> None:
    if not examples:
        raise BackboneError("concept learning got no image: expected at least one of any class.")
    if unnamed := {example.class_id for example in examples} - names.keys():
        raise BackboneError(f"concept learning got images of class {min(unnamed)}, but names only of {sorted(names)}.")


def _latents(backbone: Backbone, examples: Sequence[ConceptExample], resize: Resize) -> Float[Tensor, "n 2 c h w"]:
    """Every image and its mirror image, encoded one by one, on the CPU (128 KiB an image of 512 x 512)."""
    return torch.stack([_both_ways(backbone, example.image, resize) for example in examples]).contiguous()


def _both_ways(
    backbone: Backbone, image: Image.Image | Tensor | Callable[[], Image.Image], resize: Resize
) -> Float[Tensor, "2 c h w"]:
    if isinstance(image, Tensor):
        return torch.stack([image, image]).float().cpu()
    pixels = backbone.preprocess(image if isinstance(image, Image.Image) else image(), resize)
    return torch.cat([backbone.encode(way[None]) for way in (pixels, pixels.flip(-1))]).cpu()


@contextmanager
def _at_resolution(backbone: Backbone, side: int | None) -> Iterator[None]:
    """The backbone at side x side pixels for a while; None leaves it at its own size."""
    size = backbone.height, backbone.width
    backbone.height, backbone.width = (side, side) if side else size
    try:
        yield
    finally:
        backbone.height, backbone.width = size


@contextmanager
def _trainable(
    backbone: Backbone, start: LoadedConcepts, cfg: ConceptConfig
) -> Iterator[tuple[nn.Parameter, dict[str, nn.Parameter]]]:
    """Token rows and LoRA matrices that require gradients; afterwards the backbone is as before, whatever happened."""
    lora: dict[str, nn.Parameter] = {}
    try:
        embedding = backbone.text.install(start.tokens)
        if cfg.rank:
            lora = attach(backbone.unet, cfg.rank, cfg.seed)
        embedding.rows.requires_grad = True
        yield embedding.rows, lora
    finally:
        if lora:
            detach(backbone.unet)
        backbone.use_concepts(None)


def _collect(start: LoadedConcepts, rows: Tensor, lora: Mapping[str, Tensor]) -> LoadedConcepts:
    parts = torch.split(rows.detach().cpu(), [len(row) for row in start.tokens.values()])
    tokens = {token: part.clone() for token, part in zip(start.tokens, parts, strict=True)}
    return LoadedConcepts(tokens, {key: matrix.detach().cpu().clone() for key, matrix in lora.items()})

"""Concept learning: one token a class and LoRA on the U-Net, trained together on eps (Diff-Mix; Diff-II, section 3.2).

Minimises E || eps - eps_theta(z_t, t, "a photo of a <class_i> ...") ||^2 over token rows and LoRA matrices. Follows the
authors' code in optimiser, clipping, template and targets. Departs from it: frozen rows are never in the optimiser, the
gradient of the embeddings is clipped too, images are stretched to a square where theirs are cropped at random, latents
are the posterior's mode and are encoded once, and training resumes exactly, since every draw of step i is a function of
the seed and i. Several processes may share every batch.

Pictures for the eye while concepts are learned: a few classes, the same noise each time, beside the fit.

They are no part of the fit: nothing reads them but the report, training ends at the same bits without them, and they
count among no fit's evaluations.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import digest, uint63
from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.models.adapters import LoadedConcepts, attach, detach, initial_rows, load_concepts, starting_point
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.pixels import Resize, to_uint8
from diffaug_datasets.models.training import ALONE, Checkpoint, ConceptTraining, Progress, Team
from diffaug_datasets.numerics.sampling import ddim_sample
from diffaug_datasets.numerics.schedule import add_noise, ddim_timesteps

FOLDER = "previews"
LEAST, MOST, CLASSES, STEPS, SCALE, SIDE = 3, 12, 4, 10, 7.5, 256
# A training step costs about three evaluations an image; pictures may cost a twentieth of them.
TRAINING_COST, SHARE = 3, 20


def shown_classes(labels: Sequence[int]) -> tuple[int, ...]:
    """A few classes spread evenly over all."""
    known = sorted(set(labels))
    count = min(CLASSES, len(known))
    return tuple(known[i * len(known) // count] for i in range(count))


def moments(cfg: ConceptConfig, classes: int) -> tuple[int, ...]:
    """After how many steps to look at so many classes: at every checkpoint, or at twelve of them.

    At fewer where looking would cost more than a twentieth of the training, at none where three are too many. With
    fewer than three checkpoints, at thirds of the way.
    """
    ends = [*range(cfg.checkpoint_every, cfg.steps, cfg.checkpoint_every), cfg.steps]
    if len(ends) < LEAST:
        ends = [cfg.steps * (i + 1) // LEAST for i in range(LEAST)]
    cost = SHARE * classes * STEPS * 2
    count = next((n for n in range(min(MOST, len(ends)), LEAST - 1, -1) if n * cost <= _training_cost(cfg)), 0)
    return tuple(step for step in dict.fromkeys(ends[(i + 1) * len(ends) // count - 1] for i in range(count)) if step)


def _training_cost(cfg: ConceptConfig) -> int:
    return TRAINING_COST * cfg.steps * cfg.batch


@dataclass(frozen=True)
class Previews:
    """What is drawn of a training run: class id -> token ids of its prompt; PNG files named by step and class."""

    backbone: Backbone
    cfg: ConceptConfig
    ids: Mapping[int, Int[Tensor, " s"]]
    folder: Path

    def __call__(self, done: int) -> None:
        """Draw the classes if so many steps are a moment to look."""
        if self.ids and done in moments(self.cfg, len(self.ids)):
            with self.backbone.uncounted():
                self._write(done)

    @torch.no_grad()
    def _write(self, done: int) -> None:
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for label, latent in zip(self.ids, self._latents(), strict=True):
            # One by one: decoding takes more memory than a training step's share of an image.
            pixels = torch.nan_to_num(self.backbone.decode_float(latent[None]))
            buffer = io.BytesIO()
            picture = Image.fromarray(to_uint8(pixels)[0].numpy())
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.save(buffer, "PNG")
            write_bytes(self.folder / FOLDER / f"step-{done:06d}-class-{label}.png", buffer.getvalue())

    def _latents(self) -> Float[Tensor, "b c h w"]:
        """Guided DDIM from noise that follows from the seed and the class; prompts as they stand now, never cached."""
        backbone, text = self.backbone, self.backbone.text
        cond = text.encode(torch.stack(list(self.ids.values())))
        uncond = text.encode(torch.stack([text.ids("")] * len(cond)))
        scale = torch.full((len(cond),), SCALE)

        def eps(xt: Tensor, t: int, _: int) -> Tensor:
            return backbone.guided_eps(xt, t, cond, uncond, scale)

        noise = torch.stack([self._noise(label) for label in self.ids]).to(backbone.device)
        labels = ddim_timesteps(backbone.schedule, STEPS)
        return ddim_sample(eps, noise, backbone.schedule, labels, [0] * len(cond))

    def _noise(self, label: int) -> Float[Tensor, "c h w"]:
        generator = Generator().manual_seed(uint63(f"{self.cfg.seed}|concepts|preview|{label}"))
        return torch.randn(self.backbone.latent_shape, generator=generator)


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

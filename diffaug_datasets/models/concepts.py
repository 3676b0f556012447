"""What is learned for a dataset: concepts per class (a token and LoRA on the U-Net), and embeddings per image.

Concepts minimise E || eps - eps_theta(z_t, t, "a photo of a <class_i> ...") ||^2 over token rows and LoRA matrices
(Diff-Mix, arXiv 2403.19600; Diff-II, arXiv 2408.16266, section 3.2). They follow the authors' code in optimiser,
clipping, template and targets, and depart from it: frozen rows are never in the optimiser, the gradient of the
embeddings is clipped too, images are stretched to a square where theirs are cropped at random, latents are the
posterior's mode, and training resumes exactly, since every draw of step i is a function of the seed and i. An image is
read and encoded when a step shows it (`Latents`), so that memory does not grow with their number. Several processes may
share every batch; each reads its own part. While it runs, a few classes are drawn for people to look at (`Previews`);
nothing but the report reads them, and training ends at the same bits without.

Image embeddings minimise E || eps - eps_theta(z_t, t, c_j) ||^2 over c_j [s d] alone, for every image j of a group
(Diffusion Inversion, arXiv 2305.15316, stage 1). They follow the authors' code in optimiser and rate, with `start` and
`order` in those too, and depart from it: an image that a step does not show is not touched by that step (theirs decays
and drifts on), latents are the posterior's mode, and training resumes exactly.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import digest, uint63
from diffaug_datasets.core.learning import ConceptConfig, EmbeddingConfig, OnStep
from diffaug_datasets.core.method import DiffusionModel, Resize
from diffaug_datasets.core.training_looks import PREVIEW_STEPS, moments, shown_classes
from diffaug_datasets.models.adapters import LoadedConcepts, attach, detach, initial_rows, starting_point, word_row
from diffaug_datasets.models.backbone import Backbone, to_uint8
from diffaug_datasets.models.driving import can_drive
from diffaug_datasets.models.kernels import as_written
from diffaug_datasets.models.latents import ConceptExample, Latents, ReadLatents
from diffaug_datasets.models.quick_fits import (
    Levels,
    QuickDescent,
    optimiser_of,
    predicted_eps,
    run_quick_steps,
    sent,
)
from diffaug_datasets.models.training import (
    ALONE,
    Checkpoint,
    Descent,
    StepDraw,
    StepDraws,
    Team,
    TrainingState,
    mean_losses,
    run_steps,
)
from diffaug_datasets.numerics.sampling import Network, ddim_sample
from diffaug_datasets.numerics.schedule import Process, Schedule, add_noise, sampler_timesteps

MAX_NORM = 1.0

PREVIEWS = "previews"
PREVIEW_SCALE, PREVIEW_SIDE = 7.5, 256
START_RANGE = 0.1  # as for the usual 100 images: a linear map without bias from n one-hot inputs has 1 / sqrt(n)


@dataclass(frozen=True)
class TrainedConcepts:
    """What was learned, the loss of every step, and what the tokens started from."""

    concepts: LoadedConcepts
    losses: tuple[float, ...]
    init: str

    def measured(self) -> dict[str, object]:
        """Numbers for the fit's receipt: steps, mean loss of the first and last tenth, the tokens' start."""
        return {"steps": len(self.losses), "init": self.init, **mean_losses(self.losses)}


def train_concepts(
    backbone: Backbone,
    examples: Sequence[ConceptExample],
    names: Mapping[int, str],
    cfg: ConceptConfig,
    *,
    workdir: Path,
    metaclass: str = "",
    resize: Resize = "lanczos",
    progress: OnStep | None = None,
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
    if not examples:
        raise BackboneError("concept learning got no image: expected at least one of any class.")
    if unnamed := {example.class_id for example in examples} - names.keys():
        raise BackboneError(f"concept learning got images of class {min(unnamed)}, but names only of {sorted(names)}.")
    if cfg.batch < team.size:
        raise BackboneError(f"concepts.batch: {cfg.batch} images cannot be shared by {team.size} processes; use fewer.")
    backbone.use_concepts(None)
    latents, labels = Latents(backbone, examples, resize), [example.class_id for example in examples]
    start = unlearned_concepts(backbone, names, cfg, metaclass=metaclass)
    network = [backbone.name, str(backbone.dtype)]
    settings: list[object] = [*network, cfg.identity(), metaclass, sorted(names.items()), labels]
    settings += [team.size] if team.size > 1 else []  # sums in another order have other bits
    with at_resolution(backbone, cfg.resolution):
        fingerprint = digest([*settings, latents.identity])[:16]
    with at_resolution(backbone, cfg.resolution), trainable(backbone, start, cfg) as (rows, lora):
        prompts = {label: cfg.training_prompts(label, metaclass) for label in set(labels)}
        ids = {label: torch.stack([backbone.text.ids(text) for text in texts]) for label, texts in prompts.items()}
        kind = QuickConceptTraining if can_drive(backbone) and team.size == 1 else ConceptTraining
        training = kind(backbone, cfg, latents, labels, ids, rows, lora, team)
        checkpoint = Checkpoint(workdir / "concept-checkpoint", fingerprint, writes=team.rank == 0)
        shown = shown_classes(labels) if team.rank == 0 else ()
        look = Previews(backbone, cfg, {label: ids[label][0] for label in shown}, workdir)
        losses = training.to_the_end(checkpoint, progress, look)
        learned = collected(start, rows, lora)
    words = backbone.text.takes_words
    init = "words" if words else str(starting_point(backbone.text_encoder, cfg, metaclass))
    return TrainedConcepts(learned, tuple(losses), init)


class ConceptTraining:
    """A run over the latents of images with the token ids of their class's k prompts."""

    def __init__(
        self,
        backbone: Backbone,
        cfg: ConceptConfig,
        latents: ReadLatents,
        labels: Sequence[int],
        ids: Mapping[int, Int[Tensor, "k ..."]],
        rows: Sequence[nn.Parameter],
        lora: Mapping[str, nn.Parameter],
        team: Team = ALONE,
    ) -> None:
        self.backbone, self.cfg, self.latents, self.team = backbone, cfg, latents, team
        places = {label: place for place, label in enumerate(ids)}
        self.ids = torch.stack(list(ids.values()))
        self.rows_of_ids = torch.tensor([places[label] for label in labels])
        steps = backbone.schedule.num_train_timesteps
        self.draws = StepDraws(cfg, tuple(labels), backbone.latent_shape, steps, self.ids.shape[1])
        groups = [{"params": list(rows), "lr": cfg.lr_embedding}] if rows else []
        groups += [{"params": list(lora.values()), "lr": cfg.lr_lora}] if lora else []
        self._groups = [bool(rows), bool(lora)]
        self.optimiser = optimiser_of(groups, backbone.profile.optimiser)
        learned = {f"rows_{i}" if i else "rows": part for i, part in enumerate(rows)}
        self.state = TrainingState({**learned, **lora}, self.optimiser)
        self.descent = Descent(self.optimiser, backbone.dtype, "concept learning", "lr_lora and lr_embedding", team)

    def to_the_end(
        self, checkpoint: Checkpoint, progress: OnStep | None, look: Callable[[int], None] | None = None
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

        with as_written(self.backbone):
            return run_steps(step, self.cfg.steps, self.cfg.checkpoint_every, checkpoint, self.state, progress)

    def step(self, draw: StepDraw) -> float:
        """One update, each group clipped to norm 1; returns the loss of the whole batch before it."""
        own = draw.part(self.team.rank, self.team.size)
        return self.descent(self.loss(own) * (len(own.t) / len(draw.t)), MAX_NORM)

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """Mean squared error on eps, on a flow on the velocity eps - x0, with Min-SNR weights if asked for."""
        device = self.backbone.device
        x0 = self.latents(draw.images, draw.mirrored).to(device)
        eps = draw.eps.to(device)
        xt = add_noise(self.backbone.schedule, x0, eps, draw.t)
        shown = self.rows_of_ids[draw.images].to(self.ids.device)
        cond = self.backbone.text.encode(self.ids[shown, draw.prompts.to(self.ids.device)])
        is_flow = self.backbone.schedule.prediction == "flow_prediction"
        said = self.backbone.said(xt, draw.t, cond) if is_flow else self.backbone.eps(xt, draw.t, cond)
        errors = (said - (eps - x0 if is_flow else eps)).square().mean(dim=(1, 2, 3))
        return (errors * min_snr_weights(self.backbone.schedule, draw.t, self.cfg.snr_gamma).to(device)).mean()

    def _set_rates(self, i: int) -> None:
        is_cosine = self.cfg.lr_schedule == "cosine"
        share = 0.5 * (1 + math.cos(math.pi * i / self.cfg.steps)) if is_cosine else 1.0
        both = (self.cfg.lr_embedding, self.cfg.lr_lora)
        rates = [rate for rate, is_there in zip(both, self._groups, strict=True) if is_there]
        for group, rate in zip(self.optimiser.param_groups, rates, strict=False):
            group["lr"] = share * rate


class QuickConceptTraining(ConceptTraining):
    """The same, that looks at nothing but every few steps; see `quick_fits`."""

    def __init__(
        self,
        backbone: Backbone,
        cfg: ConceptConfig,
        latents: ReadLatents,
        labels: Sequence[int],
        ids: Mapping[int, Int[Tensor, "k s"]],
        rows: Sequence[nn.Parameter],
        lora: Mapping[str, nn.Parameter],
        team: Team = ALONE,
    ) -> None:
        super().__init__(backbone, cfg, latents, labels, ids, rows, lora, team)
        self.levels, device = Levels(backbone), backbone.device
        every = range(backbone.schedule.num_train_timesteps)
        self.weights = min_snr_weights(backbone.schedule, every, cfg.snr_gamma).to(device)
        self.quick = QuickDescent(self.optimiser, backbone.dtype, "concept learning", "lr_lora and lr_embedding")
        # Tokens that are not trained leave the text encoder as it is: every prompt is encoded once.
        self.frozen = self._encoded() if cfg.lr_embedding == 0 else None
        if self.frozen is not None:
            for part in rows:
                part.requires_grad = False

    @torch.no_grad()
    def _encoded(self) -> Float[Tensor, "n k s d"]:
        text = self.backbone.text
        return torch.stack([torch.cat([text.encode(one[None]) for one in prompts]) for prompts in self.ids])

    def to_the_end(
        self, checkpoint: Checkpoint, progress: OnStep | None, look: Callable[[int], None] | None = None
    ) -> list[float]:
        """As `ConceptTraining`; `progress` is told every few steps."""

        def step(i: int) -> Tensor:
            self._set_rates(i)
            loss = self.quick.take(self.loss(self.draws.step(i)), MAX_NORM)
            if look:
                look(i + 1)
            return loss

        with as_written(self.backbone):
            every, steps = self.cfg.checkpoint_every, self.cfg.steps
            return run_quick_steps(step, steps, every, checkpoint, self.state, self.quick.look, progress)

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """As `ConceptTraining`, without a number that the host waits for."""
        device = self.backbone.device
        t, eps = sent(torch.tensor(draw.t), device), sent(draw.eps, device)
        x0 = sent(self.latents(draw.images, draw.mirrored), device)
        shown, prompts = sent(self.rows_of_ids[draw.images], device), sent(draw.prompts, device)
        if self.frozen is None:
            cond = self.backbone.text.encode(self.ids[shown, prompts])
        else:
            cond = self.frozen[shown, prompts]
        xt = self.levels.noised(x0, eps, t)
        errors = (predicted_eps(self.backbone, self.levels, xt, t, cond) - eps).square().mean(dim=(1, 2, 3))
        return (errors * self.weights[t]).mean()


def min_snr_weights(process: Process, t: Sequence[int], gamma: float | None) -> Float[Tensor, " b"]:
    """min(SNR, gamma) / SNR at each label, SNR = (signal / noise)^2; ones without a gamma.

    Implements the eps-prediction weights of Hang et al. (arXiv 2303.09556).
    """
    if isinstance(process, Schedule):
        snr = [process.level(label) / (1 - process.level(label)) for label in t]
    else:
        snr = [(level.signal / level.noise) ** 2 if level.noise else math.inf for level in map(process.pair, t)]
    return torch.tensor([1.0 if gamma is None or s == 0 else min(s, gamma) / s for s in snr])


def unlearned_concepts(
    backbone: Backbone, names: Mapping[int, str], cfg: ConceptConfig, *, metaclass: str = ""
) -> LoadedConcepts:
    """The tokens as training finds them, without LoRA; the words that they stand for, where the model reads words."""
    if backbone.text.takes_words:
        return LoadedConcepts({cfg.token(c): word_row(cfg, c, names[c], metaclass) for c in sorted(names)})

    def start(label: int) -> Float[Tensor, "n d"]:
        """Side by side where there are several text encoders."""
        sides = [initial_rows(*pair, cfg, names[label], metaclass) for pair in backbone.text.encoders]
        return torch.cat(sides, dim=1)

    return LoadedConcepts({cfg.token(c): start(c) for c in sorted(names)})


@contextmanager
def at_resolution(backbone: Backbone, side: int | None) -> Iterator[None]:
    """The backbone at side x side pixels for a while; None leaves it at its own size."""
    size = backbone.height, backbone.width
    backbone.height, backbone.width = (side, side) if side else size
    try:
        yield
    finally:
        backbone.height, backbone.width = size


@contextmanager
def trainable(
    backbone: Backbone, start: LoadedConcepts, cfg: ConceptConfig
) -> Iterator[tuple[tuple[nn.Parameter, ...], dict[str, nn.Parameter]]]:
    """Token rows, a part per text encoder, and LoRA matrices that require gradients.

    Afterwards the backbone is as before, whatever happened.
    """
    lora: dict[str, nn.Parameter] = {}
    try:
        rows = backbone.text.install(start.tokens)
        if cfg.rank:
            where = backbone.model.lora_prefix, backbone.model.lora_targets
            lora = attach(backbone.network, cfg.rank, cfg.seed, cfg.lora_start, *where)
        for part in rows:
            part.requires_grad = True
        yield rows, lora
    finally:
        if lora:
            detach(backbone.network)
        backbone.use_concepts(None)


def collected(start: LoadedConcepts, rows: Sequence[Tensor], lora: Mapping[str, Tensor]) -> LoadedConcepts:
    """Copies on the CPU of token rows [n d], those of several text encoders side by side, cut into the tokens of
    `start`, and of LoRA matrices.
    """
    matrices = {key: matrix.detach().cpu().clone() for key, matrix in lora.items()}
    if not rows:
        return LoadedConcepts(start.tokens, matrices)
    together = torch.cat([part.detach().cpu() for part in rows], dim=1)
    parts = torch.split(together, [len(row) for row in start.tokens.values()])
    tokens = {token: part.clone() for token, part in zip(start.tokens, parts, strict=True)}
    return LoadedConcepts(tokens, matrices)


@dataclass(frozen=True)
class Previews:
    """What is drawn of a training run: class id -> token ids of its prompt; PNG files named by step and class."""

    backbone: Backbone
    cfg: ConceptConfig
    ids: Mapping[int, Int[Tensor, "..."]]
    folder: Path

    def __call__(self, done: int) -> None:
        """Draw the classes if so many steps are a moment to look."""
        if self.ids and done in moments(self.cfg, len(self.ids)):
            with self.backbone.uncounted():
                self._write(done)

    @torch.no_grad()
    def _write(self, done: int) -> None:
        (self.folder / PREVIEWS).mkdir(parents=True, exist_ok=True)
        for label, latent in zip(self.ids, self._latents(), strict=True):
            # One by one: decoding takes more memory than a training step's share of an image.
            pixels = torch.nan_to_num(self.backbone.decode_float(latent[None]))
            buffer = io.BytesIO()
            picture = Image.fromarray(to_uint8(pixels)[0].numpy())
            picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
            picture.save(buffer, "PNG")
            write_bytes(self.folder / PREVIEWS / f"step-{done:06d}-class-{label}.png", buffer.getvalue())

    def _latents(self) -> Float[Tensor, "b c h w"]:
        """Guided DDIM from noise that follows from the seed and the class; prompts as they stand now, never cached."""
        backbone, text = self.backbone, self.backbone.text
        cond = text.encode(torch.stack(list(self.ids.values())))
        uncond = text.encode(torch.stack([text.ids("")] * len(cond)))
        is_guided = backbone.model.facts.guidance != "none"
        scale = torch.full((len(cond),), PREVIEW_SCALE if is_guided else 1.0)

        def eps(xt: Tensor, t: float, _: int) -> Tensor:
            return backbone.guided_eps(xt, t, cond, uncond, scale)

        noise = torch.stack([self._noise(label) for label in self.ids]).to(backbone.device)
        labels = sampler_timesteps(backbone.schedule, "ddim", PREVIEW_STEPS)
        return ddim_sample(eps, noise, backbone.schedule, labels, [0] * len(cond))

    def _noise(self, label: int) -> Float[Tensor, "c h w"]:
        generator = Generator().manual_seed(uint63(f"{self.cfg.seed}|concepts|preview|{label}"))
        return torch.randn(self.backbone.latent_shape, generator=generator)


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
    labels: Sequence[int] | None = None,
    prompts: Mapping[int, str] | None = None,
    progress: OnStep | None = None,
) -> LearnedEmbeddings:
    """Learn the embeddings of images in [-1, 1], one group, taken one by one. The backbone is left without concepts.

    `labels`: the images' classes, inside which images may share an embedding; None = all are of one. `prompts`: of
    these classes, where embeddings start at those.
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
    settings: list[object] = [backbone.name, str(backbone.dtype), cfg.identity()]
    classes = list(labels or [0] * len(latents))
    settings += [classes, sorted((prompts or {}).items())] if cfg.clusters or cfg.start == "prompt" else []
    fingerprint = digest([*settings, hashlib.sha256(latents.contiguous().numpy().data).hexdigest()])[:16]
    training = EmbeddingTraining(backbone, cfg, latents, classes, prompts)
    losses = training.to_the_end(Checkpoint(workdir / "embedding-checkpoint", fingerprint), progress)
    learned = [c.detach().cpu().clone() for c in training.embeddings]
    return LearnedEmbeddings(tuple(learned[owner].clone() for owner in training.owners), tuple(losses))


class EmbeddingTraining:
    """The embeddings of one group of latents, and how a step changes them. `owners`: by image, the place of its own."""

    def __init__(
        self,
        backbone: Backbone,
        cfg: EmbeddingConfig,
        latents: Float[Tensor, "n c h w"],
        labels: Sequence[int] | None = None,
        prompts: Mapping[int, str] | None = None,
    ) -> None:
        self.backbone, self.cfg, self.latents = backbone, cfg, latents
        labels = labels or [0] * len(latents)
        self.owners = clusters_of(latents, labels, cfg) if cfg.clusters else list(range(len(latents)))
        count = max(self.owners) + 1
        if cfg.start == "prompt":
            texts = [(prompts or {}).get(labels[self.owners.index(owner)], "") for owner in range(count)]
            self.embeddings = [nn.Parameter(backbone.prompt(text).clone()) for text in texts]
        else:
            self.embeddings = _start(backbone, cfg, count)
        self.optimiser = torch.optim.AdamW(self.embeddings, lr=cfg.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
        self.state = TrainingState({f"{j:06d}": c for j, c in enumerate(self.embeddings)}, self.optimiser)
        steps = backbone.schedule.num_train_timesteps
        alike, shape = (0,) * len(latents), backbone.latent_shape
        self.draws = StepDraws(cfg, alike, shape, steps, 1, "image embeddings", shuffled=cfg.order == "shuffled")
        self.descent = Descent(self.optimiser, backbone.dtype, "image embeddings", "embeddings.lr")

    def to_the_end(self, checkpoint: Checkpoint, progress: OnStep | None) -> list[float]:
        """The losses of all steps, those before the checkpoint included.

        Raises:
            BackboneError: training diverges, or the checkpoint is damaged.
        """
        every = self.cfg.checkpoint_every
        with as_written(self.backbone):
            return run_steps(self.step, self.cfg.steps, every, checkpoint, self.state, progress)

    def step(self, i: int) -> float:
        """Step i; returns the loss before it."""
        return self.descent(self.loss(self.draws.step(i)))

    def loss(self, draw: StepDraw) -> Float[Tensor, ""]:
        """Mean squared error on eps."""
        device = self.backbone.device
        x0, eps = self.latents[draw.images].to(device), draw.eps.to(device)
        cond = torch.stack([self.embeddings[self.owners[j]] for j in draw.images.tolist()])
        xt = add_noise(self.backbone.schedule, x0, eps, draw.t)
        return (self.backbone.eps(xt, draw.t, cond) - eps).square().mean()


def clusters_of(latents: Float[Tensor, "n c h w"], labels: Sequence[int], cfg: EmbeddingConfig) -> list[int]:
    """By image the number of its cluster: `cfg.clusters` per class at most, by k-means, numbered as they occur."""
    from sklearn.cluster import KMeans

    homes: dict[int, tuple[int, int]] = {}
    for label in dict.fromkeys(labels):
        own = [j for j, other in enumerate(labels) if other == label]
        count = min(cfg.clusters, len(own))
        means = KMeans(count, n_init=10, random_state=cfg.seed % 2**32)
        found = means.fit_predict(latents[own].flatten(1).double().numpy()) if count > 1 else [0] * len(own)
        homes |= {j: (label, int(cluster)) for j, cluster in zip(own, found, strict=True)}
    numbers: dict[tuple[int, int], int] = {}
    return [numbers.setdefault(homes[j], len(numbers)) for j in range(len(labels))]


def _start(backbone: Backbone, cfg: EmbeddingConfig, n: int) -> list[nn.Parameter]:
    """`n` conditions [s d], embedding j drawn from the seed and j alone."""
    shape = cfg.vectors, int(backbone.unet.config.cross_attention_dim)
    generators = [torch.Generator().manual_seed(uint63(f"{cfg.seed}|image embeddings|start|{j}")) for j in range(n)]
    bound = 1 / math.sqrt(n) if cfg.start == "group" else START_RANGE
    rows = [torch.empty(shape).uniform_(-bound, bound, generator=g) for g in generators]
    return [nn.Parameter(row.to(backbone.device)) for row in rows]


def perturbed(
    own: Float[Tensor, "s d"], partner: Float[Tensor, "s d"], alpha: float, noise: Float[Tensor, "s d"], lam: float
) -> Float[Tensor, "s d"]:
    """A new condition near an image's own: (1 - alpha) c_i + alpha c_k + lambda eps (stage 2 of the paper)."""
    return (1 - alpha) * own + alpha * partner + lam * noise


def guided_by_mean(
    backbone: DiffusionModel, cond: Float[Tensor, "b s d"], mean: Float[Tensor, "b s d"], scale: Float[Tensor, " b"]
) -> Network:
    """Guidance away from the mean embedding of each row's group: eps(mean) + scale (eps(cond) - eps(mean))."""
    return lambda xt, t, _: backbone.guided_eps(xt, t, cond, mean, scale)

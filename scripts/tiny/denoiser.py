"""The U-Net and its text encoder, trained together on cached latents and token ids."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from tiny import tokens, work
from tiny.captions import CaptionTable, draw

BATCH, RATE, GAMMA, DECAY = 64, 8e-4, 5.0, 0.999
TIMESTEPS = 1000
HIDDEN = 96
SAVE_EVERY_S = 240


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=TIMESTEPS,
        prediction_type="epsilon", steps_offset=1, set_alpha_to_one=False, clip_sample=False,
    )  # fmt: skip


def text_config(vocab_size: int) -> CLIPTextConfig:
    """Sizes of the text encoder."""
    return CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=tokens.MAX_LENGTH, projection_dim=HIDDEN,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """The untrained U-Net: 8 x 8 and 4 x 4, cross-attention at both."""
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=HIDDEN, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


class Denoiser(nn.Module):
    """eps(z, t, token ids): what is trained and averaged as one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.unet = unet()
        self.text_encoder = CLIPTextModel(text_config(vocab_size))

    def forward(self, z: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Noise prediction [B, 4, 8, 8] for noised latents z, timesteps t [B] and token ids [B, L]."""
        return self.unet(z, t, self.text_encoder(ids).last_hidden_state).sample


@dataclass(frozen=True)
class Batch:
    """Clean latents and noise [B, 4, 8, 8], token ids [B, L], timesteps [B]."""

    z0: torch.Tensor
    ids: torch.Tensor
    eps: torch.Tensor
    t: torch.Tensor

    def split(self, count: int) -> list[Batch]:
        """`count` equal shares."""
        return [Batch(*parts) for parts in zip(*(x.chunk(count) for x in self._tensors()), strict=True)]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(x.to(device) for x in self._tensors()))

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.z0, self.ids, self.eps, self.t


@dataclass(frozen=True)
class Corpus:
    """Cached training data: latent moments [N, 8, 8, 8], labels [N], property states [N, 3], caption ids [C, L]."""

    moments: np.ndarray
    labels: np.ndarray
    states: np.ndarray
    captions: CaptionTable
    ids: torch.Tensor
    vocab_size: int

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        captions, tokenizer = CaptionTable.build(), tokens.build()
        ids = tokenizer(captions.texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        arrays = (np.load(folder / f"{name}.npy") for name in ("latents", "labels", "states"))
        return cls(*arrays, captions, ids, len(tokenizer))

    def batch(self, step: int, size: int) -> Batch:
        """Latents drawn from the cached posteriors with true captions, noise and timesteps; fixed by step.

        Timesteps are stratified: one from each of `size` equal stretches of the schedule, in shuffled order.
        """
        rng = np.random.default_rng([17, step])
        rows = rng.integers(0, len(self.labels), size)
        mean, log_variance = torch.from_numpy(self.moments[rows]).float().chunk(2, dim=1)
        eps, spread = torch.from_numpy(rng.standard_normal((2, *mean.shape), np.float32))
        numbers = draw(self.captions, self.labels[rows], self.states[rows], rng)
        t = ((rng.permutation(size) + rng.random(size)) * (TIMESTEPS / size)).astype(np.int64)
        ids = self.ids[torch.from_numpy(numbers)]
        return Batch(mean + spread * (0.5 * log_variance).exp(), ids, eps, torch.from_numpy(t))


def min_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """min(SNR, gamma) / SNR, the min-SNR weight of an epsilon loss."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp_max(GAMMA) / snr


def loss_of(model: nn.Module, batch: Batch, alpha_bars: torch.Tensor) -> torch.Tensor:
    """Weighted epsilon loss of a batch at its timesteps; all tensors lie on the model's device."""
    alpha_bar = alpha_bars[batch.t]
    signal, noise = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    with torch.autocast(batch.z0.device.type, torch.bfloat16):
        predicted = model(signal * batch.z0 + noise * batch.eps, batch.t, batch.ids)
    return (min_snr(alpha_bar) * (predicted.float() - batch.eps).pow(2).mean((1, 2, 3))).mean()


@dataclass
class Shards:
    """Gradients of equal shares of a batch on one thread each.

    Threads that meet once per step lose far less on shared cores than an OpenMP team that meets in every operator.
    """

    model: nn.Module
    alpha_bars: torch.Tensor
    count: int

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        self.weights = list(self.model.parameters())

    def _one(self, batch: Batch) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = loss_of(self.model, batch, self.alpha_bars)
        return loss.item(), torch.autograd.grad(loss, self.weights)

    def backward(self, batch: Batch) -> float:
        """Fill the gradients of the model with the mean over the shards; returns the mean loss."""
        losses, grads = zip(*self.pool.map(self._one, batch.split(self.count)), strict=True)
        for weight, *parts in zip(self.weights, *grads, strict=True):
            weight.grad = sum(parts[1:], parts[0]) / self.count
        return sum(losses) / self.count


@dataclass
class Trainer:
    """A resumable run: model, average, optimiser, steps done and seconds spent."""

    folder: Path
    model: Denoiser
    average: work.Average
    optimizer: torch.optim.Optimizer
    step: int = 0
    spent: float = 0.0

    @classmethod
    def open(cls, folder: Path, vocab_size: int) -> Trainer:
        """A fresh run, or the one whose checkpoint lies in the folder."""
        torch.manual_seed(1)
        model = Denoiser(vocab_size).to(work.device())
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01, fused=True)
        trainer = cls(folder, model, work.Average(model, DECAY), optimizer)
        trainer._restore(work.load_state(folder / "unet.pt"))
        return trainer

    def _restore(self, state: dict | None) -> None:
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = state["step"], state["spent"]
        torch.manual_seed(self.step)

    def save(self) -> None:
        """Write the checkpoint that `open` resumes from."""
        work.save_state(self.folder / "unet.pt", model=self.model.state_dict(), average=self.average.shadow,
                        optimizer=self.optimizer.state_dict(), step=self.step, spent=self.spent)  # fmt: skip

    def advance(self, corpus: Corpus, shards: Shards, share: float) -> float:
        """One optimiser step with the learning rate of `share` (0..1) of the time budget; returns the loss."""
        work.set_rate(self.optimizer, work.cosine_share(share, RATE) * min(1.0, (self.step + 1) / 200))
        loss = shards.backward(corpus.batch(self.step, BATCH).to(work.device()))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.model, self.step)
        self.step += 1
        return loss


def train(folder: Path, minutes: float, threads: int) -> None:
    """Stage "unet": train until the run, over all its resumptions, has spent `minutes`."""
    corpus, budget = Corpus.load(folder), 60 * minutes
    trainer = Trainer.open(folder, corpus.vocab_size)
    alpha_bars = scheduler().alphas_cumprod.to(work.device())
    shards = Shards(trainer.model, alpha_bars, 1 if alpha_bars.is_cuda else threads)
    saved = last = time.monotonic()
    losses: list[float] = []
    while trainer.spent < budget:
        losses.append(trainer.advance(corpus, shards, trainer.spent / budget))
        now = time.monotonic()
        trainer.spent, last = trainer.spent + now - last, now
        if trainer.step % 100 == 0:
            _report(trainer, losses, budget)
        if now - saved > SAVE_EVERY_S:
            trainer.save()
            saved = now
    trainer.save()


def _report(trainer: Trainer, losses: list[float], budget: float) -> None:
    """Print a progress line and forget the losses it averaged."""
    rate, left = trainer.step / trainer.spent, budget - trainer.spent
    mean = sum(losses) / len(losses)
    print(f"[unet] step {trainer.step} loss {mean:.4f} {rate:.2f} it/s ETA {max(0.0, left):.0f} s", flush=True)
    losses.clear()


def averaged(folder: Path) -> Denoiser:
    """The moving average of the run in the folder, on the CPU."""
    state = work.load_state(folder / "unet.pt")
    if state is None:
        raise FileNotFoundError(f"no U-Net checkpoint in {folder}: run the stage unet first")
    vocab_size = len(state["average"]["text_encoder.embeddings.token_embedding.weight"])
    model = Denoiser(vocab_size)
    model.load_state_dict(state["average"])
    return model.eval()

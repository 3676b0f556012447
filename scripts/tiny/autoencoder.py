"""The autoencoder: 32 px RGB to 8 x 8 x 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from tiny import data, work
from tiny.fit import Plan, fit

BATCH, RATE, KL_WEIGHT = 64, 1.5e-3, 1e-5


def build() -> AutoencoderKL:
    """An untrained autoencoder with two downsamplings."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def loss_of(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Reconstruction (L1 keeps edges, L2 keeps PSNR) plus a small KL term; x is [B, 3, 32, 32] in -1..1."""
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    return F.l1_loss(decoded, x) + 2 * F.mse_loss(decoded, x) + KL_WEIGHT * posterior.kl().float().mean()


def train(folder: Path, steps: int) -> None:
    """Stage "vae": train for `steps` and save the averaged weights as `vae/`."""
    if (folder / "vae" / "config.json").exists():
        return
    torch.manual_seed(0)
    images, vae = data.load_train(folder).images, build().to(work.device())

    def loss_at(step: int) -> torch.Tensor:
        rows = np.random.default_rng([5, step]).integers(0, len(images), BATCH)
        return loss_of(vae, data.tensor(images[rows]).to(vae.device))

    fit(folder, Plan("vae", steps, RATE), vae, loss_at)
    vae.save_pretrained(folder / "vae")


@torch.no_grad()
def encode_all(folder: Path) -> None:
    """Stage "latents": cache the scaled latent means and log-variances of the train split, set scaling_factor."""
    if (folder / "latents.npy").exists():
        return
    vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, trust_remote_code=False).to(work.device())
    moments = []
    for images in np.array_split(data.load_train(folder).images, 240):
        moments.append(vae.quant_conv(vae.encoder(data.tensor(images).to(vae.device))).cpu())
    moments = torch.cat(moments)
    vae.register_to_config(scaling_factor=float(1 / moments[:, :4].std()))
    vae.to("cpu").save_pretrained(folder / "vae")
    moments[:, :4] *= vae.config.scaling_factor
    moments[:, 4:] += 2 * float(np.log(vae.config.scaling_factor))
    work.save_array(folder / "latents.npy", moments.half().numpy())


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean PSNR in dB of the reconstruction of uint8 pictures, on a 0..1 scale."""
    x = data.tensor(images)
    decoded = torch.cat([vae.decode(vae.encode(b).latent_dist.mode()).sample for b in x.split(100)]).clamp(-1, 1)
    error = ((decoded - x) / 2).pow(2).mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())

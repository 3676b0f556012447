"""GIF-SD as its authors have it: CompVis's DDIM, a zero-shot CLIP, one step by the sign of the gradient.

Imports nothing of ours. The random numbers are given: noise, z, b; so is the picture, turned and mirrored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def in_01(picture: Image.Image) -> Tensor:
    """[1 3 h w] in [0, 1]."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() / 255
    return flat.reshape(1, picture.height, picture.width, 3).permute(0, 3, 1, 2)


class Gif:
    """Over packaged models at their own size, with the classes' names."""

    def __init__(self, assets: Path, names: Sequence[str]) -> None:
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(
            assets / "pipeline", safety_checker=None, local_files_only=True
        )
        for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder):
            part.requires_grad_(False)
        self.clip: Any = (
            CLIPModel.from_pretrained(assets / "encoder", local_files_only=True).eval().requires_grad_(False)
        )
        processor = CLIPImageProcessorPil.from_pretrained(assets / "encoder")
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
        self.side = self.clip.config.vision_config.image_size
        tokenizer = AutoTokenizer.from_pretrained(assets / "encoder")
        texts = [tokenizer(f"This is a photo of a {name}", return_tensors="pt").input_ids for name in names]
        rows = [self.clip.get_text_features(ids) for ids in texts]
        self.texts = F.normalize(torch.cat([getattr(row, "pooler_output", row) for row in rows]), dim=-1)

    def seen(self, pictures: Tensor) -> Tensor:
        """CLIP's features of pictures in [0, 1]."""
        small = F.interpolate(pictures, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        features = self.clip.get_image_features((small - self.mean) / self.std)
        return F.normalize(getattr(features, "pooler_output", features), dim=-1)

    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures in [0, 1]."""
        pictures = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return torch.clamp((pictures + 1) / 2, min=0.0, max=1.0)

    @torch.no_grad()
    def redrawn(
        self, picture: Image.Image, prompt: str, noise: Tensor, n: int, strength: float, scale: float
    ) -> Tensor:
        """`stochastic_encode` at index t_enc of rising labels, `decode` from the one below."""
        scheduler = DDIMScheduler(**DDIM)
        scheduler.set_timesteps(n)
        t_enc = int(strength * n)
        rising = scheduler.timesteps.flip(0)
        x0 = self.pipe.vae.encode(in_01(picture) * 2 - 1).latent_dist.mode() * self.pipe.vae.config.scaling_factor
        x = scheduler.add_noise(x0, noise, rising[t_enc][None])
        cond = [self.pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0] for text in ("", prompt)]
        for t in rising[:t_enc].flip(0):
            low, high = self.pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat(cond)).sample.chunk(2)
            x = scheduler.step(low + scale * (high - low), t, x).prev_sample
        return x

    def imagined(self, real: Image.Image, samples: Tensor, z: Tensor, b: Tensor, eps: float) -> Tensor:
        """The moved latents of one image's samples."""
        original = (100.0 * self.seen(in_01(real)) @ self.texts.T).softmax(dim=-1)
        index, entropy = original.argmax(dim=1), -(original * torch.log(original)).sum(dim=1)
        z, b = (part[:, :, None, None].clone().requires_grad_(True) for part in (z, b))
        features = self.seen(self.decoded(samples * (1 + z) + b))
        prob = (100.0 * features @ self.texts.T).softmax(dim=-1)
        delta = (-(prob * torch.log(prob)).sum(dim=1) - entropy).mean()
        top = torch.gather(prob, 1, index[:, None].repeat(len(prob), 1)).mean()
        mean = features.mean(0, keepdim=True).repeat(len(features), 1)
        kl = nn.KLDivLoss(reduction="batchmean", log_target=True)
        divergence = kl(F.log_softmax(features, dim=1), F.log_softmax(mean, dim=1))
        of_z, of_b = torch.autograd.grad(delta + top + divergence, [z, b])
        moved = samples * (1 + z + 0.1 * torch.sign(of_z)) + b + 0.1 * torch.sign(of_b)
        return torch.max(torch.min(moved, samples + eps), samples - eps).detach()

"""Train a small ControlNet of edges and a small InstructPix2Pix on photographs, from a pipeline that knows them.

    python scripts/train_editors.py PHOTOS --model DIR --out DIR [--noun flower] [--steps 300] [--only pix2pix]

PHOTOS holds a folder per class, MODEL a small Stable Diffusion in diffusers' form whose captions are "a photo of a
{name} {noun}". Writes OUT/controlnet (of Canny edges, for SaSPA) and OUT/pix2pix (eight channels in, for ALIA and
DiffuseMix with `editor: instruct`), in safetensors: enough to see what these methods make of photographs where no
released weights are at hand. Edits are taught by pictures made of the photographs themselves, a rule per instruction.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from diffaug_datasets.models.controlnet import edge_picture

LOW, HIGH = 120.0, 200.0  # Canny's thresholds, as SaSPA has them
DROPPED = 0.05  # share of pairs without text, without image, and without both, as InstructPix2Pix trains
INSTRUCTIONS = ("{style}", "A transformed version of image into {style}", "put the {name} {style}")


def grey(x: Tensor) -> Tensor:
    """Luma of pictures [n 3 h w] in [0, 1], three times over."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def tinted(x: Tensor, red: float, green: float, blue: float) -> Tensor:
    """Each channel times its own factor."""
    return (x * torch.tensor([red, green, blue])[:, None, None]).clamp(0, 1)


def sketched(x: Tensor) -> Tensor:
    """Dark lines on white where neighbours differ."""
    luma = grey(x)[:, :1]
    across = torch.nn.functional.pad(luma[..., 1:] - luma[..., :-1], (0, 1)).abs()
    down = torch.nn.functional.pad(luma[..., 1:, :] - luma[..., :-1, :], (0, 0, 0, 1)).abs()
    return (1 - 4 * (across + down)).clamp(0, 1).expand_as(x)


EDITS: dict[str, Callable[[Tensor], Tensor]] = {
    "in black and white": grey,
    "at night": lambda x: tinted(x, 0.25, 0.3, 0.5),
    "in autumn light": lambda x: tinted(0.15 + 0.85 * x, 1.15, 0.85, 0.45),
    "in snow": lambda x: 0.45 + 0.55 * (0.5 * x + 0.5 * grey(x)),
    "as a sketch": sketched,
}


class Photos:
    """Photographs [n 3 side side] in [0, 1], and the names of their classes."""

    def __init__(self, folder: Path, side: int) -> None:
        paths = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not paths:
            raise SystemExit(f"{folder}: expected a folder per class with JPEG or PNG pictures; found none.")
        fitted = [Image.open(p).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for p in paths]
        self.pictures = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in fitted])
        self.names = [p.parent.name.replace("_", " ").replace("-", " ").lower() for p in paths]


class Trainer:
    """A pipeline's frozen parts, and the loss of its noise prediction."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(
            given.model, torch_dtype=torch.float32, safety_checker=None, use_safetensors=True, trust_remote_code=False
        )
        self.photos = Photos(given.photos, self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor)
        self.noiser = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.noun, self.steps, self.batch, self.rate = given.noun, given.steps, given.batch, given.rate
        for part in (self.pipe.unet, self.pipe.vae, self.pipe.text_encoder):
            part.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """The posterior's mode, not scaled, of pictures in [0, 1]."""
        return torch.cat([self.pipe.vae.encode(2 * part - 1).latent_dist.mode() for part in torch.split(pictures, 64)])

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """The text encoder's states of a batch."""
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        states: Tensor = self.pipe.text_encoder(ids)[0]
        return states

    def train(
        self, network: torch.nn.Module, loss: Callable[[Tensor, torch.Generator], Tensor], learnt: Sequence[Tensor]
    ) -> None:
        """AdamW over random batches of photographs; prints the mean loss of every fifty steps."""
        draws, begun, told = torch.Generator().manual_seed(0), time.monotonic(), []
        optimizer = torch.optim.AdamW(learnt, lr=self.rate)
        network.train()
        for step in range(1, self.steps + 1):
            which = torch.randint(len(self.photos.names), (self.batch,), generator=draws)
            value = loss(which, draws)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            told.append(value.item())
            if step % 50 == 0 or step == self.steps:
                mean = sum(told) / len(told)
                print(f"step {step}: loss {mean:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
                told.clear()
        network.eval()

    def noised(self, clean: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, the noise in it, and t, at times drawn."""
        eps = torch.randn(clean.shape, generator=draws)
        times = torch.randint(self.noiser.config.num_train_timesteps, (len(clean),), generator=draws)
        return self.noiser.add_noise(clean, eps, times), eps, times


def controlnet(trainer: Trainer, out: Path) -> None:
    """A copy of the U-Net's encoder that is shown edges, beside the frozen U-Net."""
    unet, photos = trainer.pipe.unet, trainer.photos
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=embedding_channels(trainer))
    edges = torch.stack([edge_picture(2 * picture - 1, LOW, HIGH) for picture in photos.pictures])
    clean = trainer.latents(photos.pictures) * trainer.pipe.vae.config.scaling_factor

    def loss(which: Tensor, draws: torch.Generator) -> Tensor:
        z, eps, times = trainer.noised(clean[which], draws)
        empty = torch.rand(len(which), generator=draws) < 0.1
        named = [f"a photo of a {photos.names[i]} {trainer.noun}".strip() for i in which.tolist()]
        told = trainer.words(["" if e else text for e, text in zip(empty.tolist(), named, strict=True)])
        down, mid = net(z, times, told, edges[which], return_dict=False)
        guess = unet(z, times, told, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        return torch.nn.functional.mse_loss(guess, eps)

    trainer.train(net, loss, list(net.parameters()))
    net.save_pretrained(out)


def embedding_channels(trainer: Trainer) -> tuple[int, ...]:
    """One width more than there are halvings between a picture and its latent."""
    halvings = trainer.pipe.vae_scale_factor.bit_length() - 1
    return (16, 32, 96, 256)[: halvings + 1]


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The U-Net with twice the channels in, the new ones' weights zero."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wide = UNet2DConditionModel(**config | {"in_channels": 2 * unet.config.in_channels})
    state = unet.state_dict()
    weight = state["conv_in.weight"]
    wide.load_state_dict(state | {"conv_in.weight": torch.cat([weight, torch.zeros_like(weight)], dim=1)})
    return wide


def pix2pix(trainer: Trainer, out: Path) -> None:
    """The whole U-Net, taught to make a photograph's edit from the photograph and the edit's words."""
    net, photos = widened(trainer.pipe.unet), trainer.photos
    plain = trainer.latents(photos.pictures)
    scale = trainer.pipe.vae.config.scaling_factor
    styles = list(EDITS)
    edited = torch.stack([trainer.latents(EDITS[style](photos.pictures)) * scale for style in styles])

    def loss(which: Tensor, draws: torch.Generator) -> Tensor:
        style = torch.randint(len(styles), (len(which),), generator=draws)
        form = torch.randint(len(INSTRUCTIONS), (len(which),), generator=draws)
        z, eps, times = trainer.noised(edited[style, which], draws)
        u = torch.rand(len(which), generator=draws)
        told = [
            INSTRUCTIONS[f].format(style=styles[s], name=photos.names[i])
            for f, s, i in zip(form.tolist(), style.tolist(), which.tolist(), strict=True)
        ]
        told = ["" if drop else text for drop, text in zip((u < 2 * DROPPED).tolist(), told, strict=True)]
        shown = plain[which] * ((u < DROPPED) | (u >= 3 * DROPPED))[:, None, None, None]
        guess = net(torch.cat([z, shown], dim=1), times, trainer.words(told)).sample
        return torch.nn.functional.mse_loss(guess, eps)

    trainer.train(net, loss, list(net.parameters()))
    pipe = trainer.pipe
    StableDiffusionInstructPix2PixPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=net,
        scheduler=EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)


PARTS: dict[str, Callable[[Trainer, Path], None]] = {"controlnet": controlnet, "pix2pix": pix2pix}


def main() -> None:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder per class")
    parser.add_argument("--model", type=Path, required=True, help="a small Stable Diffusion in diffusers' form")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go")
    parser.add_argument("--noun", default="", help="what all classes are, as the captions of the model call it")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--only", choices=tuple(PARTS), help="one of the two")
    given = parser.parse_args()
    torch.manual_seed(0)
    trainer = Trainer(given)
    for name in [given.only] if given.only else PARTS:
        print(name, flush=True)
        PARTS[name](trainer, given.out / name)


if __name__ == "__main__":
    main()

"""Every method as its paper and its authors' code have it, out of diffusers, transformers and torch alone.

The reference side of the parity tests: it imports nothing of the package. It reads the packaged weights and pictures,
the files that concept learning left, and what a row records: sources, seed, strength and draws.
"""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import torch
from diffusers import (
    ControlNetModel,
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_cycle_diffusion import (
    compute_noise,
    posterior_sample,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = BETAS | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
PNDM = BETAS | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
FILTERS = {name: getattr(Image.Resampling, name.upper()) for name in ("lanczos", "bilinear", "bicubic")}
W = 7.5

Row = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """Latents [1 c h w] (one a level for GeNIe-Ada), label weights, and the level that is kept."""

    latents: list[Tensor]
    label: dict[int, float]
    level: int | None = None
    distances: list[float] = field(default_factory=list)


class Published:
    """The methods over the packaged model at `size` px; `concepts`: the folder of what was learned."""

    def __init__(self, assets: Path, size: int, concepts: Path | None = None) -> None:
        self.assets, self.size, self.concepts = assets, size, concepts

    @cached_property
    def pipe(self) -> Any:
        """Txt2img, with learned tokens and LoRA where there are any."""
        pipe = StableDiffusionPipeline.from_pretrained(
            self.assets / "pipeline", safety_checker=None, local_files_only=True
        )
        pipe.set_progress_bar_config(disable=True)
        if self.concepts:
            for token, rows in load_file(self.concepts / "learned_embeds.safetensors").items():
                pipe.load_textual_inversion({token: rows})
            if (self.concepts / "pytorch_lora_weights.safetensors").exists():
                pipe.load_lora_weights(self.concepts)
        return pipe

    @cached_property
    def images(self) -> dict[str, tuple[Image.Image, int]]:
        """sha256 -> picture and class of all packaged training images."""
        rows = pq.read_table(self.assets / "fashion" / "pool.parquet").to_pylist()
        return {
            hashlib.sha256(row["image"]["bytes"]).hexdigest(): (
                Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"),
                row["label"],
            )
            for row in rows
        }

    def pixels(self, source: str, how: str) -> Tensor:
        """A source as [1 3 H W] in [-1, 1]; `crop` of a square picture is a bilinear resize."""
        image = self.images[source][0].resize((self.size, self.size), FILTERS["bilinear" if how == "crop" else how])
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255
        return (flat.reshape(1, self.size, self.size, 3) * 2 - 1).permute(0, 3, 1, 2)

    def latent(self, source: str, how: str, noise: Tensor | None = None) -> Tensor:
        """The mode of the posterior, scaled, or what the distribution draws from that noise."""
        vae = self.pipe.vae
        posterior = vae.encode(self.pixels(source, how)).latent_dist
        with patch("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: noise):
            return (posterior.mode() if noise is None else posterior.sample()) * vae.config.scaling_factor

    def use_lora(self, matrices: dict[str, Tensor]) -> None:
        """Load LoRA as diffusers does, in the place of what was loaded before."""
        self.pipe.unload_lora_weights()
        self.pipe.load_lora_weights({key: matrix.clone() for key, matrix in matrices.items()})

    def noise(self, seed: int) -> Tensor:
        """Standard normal latents of a row's seed."""
        side = self.size // self.pipe.vae_scale_factor
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))

    def text(self, prompt: str) -> Tensor:
        """Hidden states [1 s d]."""
        cond, _ = self.pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        return cond

    def guided(self, x: Tensor, t: Any, prompt: str) -> Tensor:
        """eps_u + w (eps_c - eps_u)."""
        both = torch.cat([self.text(""), self.text(prompt)])
        low, high = self.pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        return low + W * (high - low)

    # the methods ----------------------------------------------------------------------------------------------------

    def from_noise(self, row: Row, prompt: str, n: int) -> Tensor:
        """Txt2Img, Real-Gen, Diff-Gen."""
        self.pipe.scheduler = DPMSolverMultistepScheduler(**BETAS)
        noise = self.noise(row["seed"])
        return self.pipe(prompt, latents=noise, num_inference_steps=n, guidance_scale=W, output_type="latent").images

    def img2img(self, row: Row, prompt: str, n: int, how: str, sampler: str = "dpm") -> Tensor:
        """What edits an image, from the mode of its posterior: Img2Img, Real-Guidance, DA-Fusion, all of Diff-Mix."""
        return self._img2img(row, prompt, n, sampler, self.latent(row["source_ids"][0], how))

    def img2img_sampled(self, row: Row, prompt: str, n: int, how: str, sampler: str = "dpm") -> Tensor:
        """The same from a picture, whose latent the pipeline itself draws, with the noise that the row records."""
        picture = self.images[row["source_ids"][0]][0]
        picture = picture.resize((self.size, self.size), FILTERS["bilinear" if how == "crop" else how])
        noise = self.noise(json.loads(row["draw"])["posterior_seed"])
        with patch("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: noise):
            return self._img2img(row, prompt, n, sampler, picture)

    def _img2img(self, row: Row, prompt: str, n: int, sampler: str, image: Tensor | Image.Image) -> Tensor:
        pipe = StableDiffusionImg2ImgPipeline(**self.pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = PNDMScheduler(**PNDM) if sampler == "plms" else DPMSolverMultistepScheduler(**BETAS)
        return pipe(
            prompt,
            image=image,
            strength=row["strength"],
            num_inference_steps=n,
            guidance_scale=W,
            generator=torch.Generator().manual_seed(row["seed"]),
            output_type="latent",
        ).images

    def genie(self, row: Row, prompt: str, n: int, ratio: float) -> Tensor:
        """Noise at int(1000 r), then the labels with t - 1 <= 1000 r; r > 0.999 is pure noise."""
        scheduler = DPMSolverMultistepScheduler(**BETAS)
        scheduler.set_timesteps(n)
        x = self.noise(row["seed"])
        kept = list(scheduler.timesteps)
        if ratio <= 0.999:
            a = scheduler.alphas_cumprod[int(1000 * ratio)]
            x = a.sqrt() * self.latent(row["source_ids"][0], "crop") + (1 - a).sqrt() * x
            kept = [t for t in kept if t - 1 <= 1000 * ratio]
        scheduler.set_begin_index(n - len(kept))
        for t in kept:
            x = scheduler.step(self.guided(x, t, prompt), t, x).prev_sample
        return x

    def genie_ada(
        self, row: Row, prompt: str, levels: Sequence[float], n: int, targets: Sequence[str], unit: bool = True
    ) -> Expected:
        """Algorithm 1 with Z_T the mean over the target's real images; features of unit length or plain."""
        latents = [self.genie(row, prompt, n, level) for level in levels]
        z = [self.features(self.decoded(x), unit) for x in latents]
        source = self.features(self.images[row["source_ids"][0]][0], unit)
        line = torch.stack([self.features(self.images[t][0], unit) for t in targets]).mean(0) - source
        d = [float((x - source) @ line / line.norm()) for x in z]
        jumps = [abs(b - a) for a, b in pairwise(d)]
        return Expected(latents, self.hard(prompt), 1 + jumps.index(max(jumps)), d)

    def diff_ii(self, row: Row, prompt: str, n: int, split: float) -> Tensor:
        """Inversion with w = 1, the circle of Eq. 7, then DDIM with the suffix while t >= 1000 (1 - s)."""
        a, b = (self.inverted(source, prompt, n) for source in row["source_ids"])
        flat = [x.double().flatten() for x in (a, b)]
        alpha = math.acos(float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm())))
        lam = json.loads(row["draw"])["u"] * 2 * math.pi / alpha
        x = math.sin((1 + lam) * alpha) / math.sin(alpha) * a - math.sin(lam * alpha) / math.sin(alpha) * b
        scheduler = DDIMScheduler(**DDIM)
        scheduler.set_timesteps(n)
        for t in scheduler.timesteps:
            text = row["prompt_first"] if t >= 1000 * (1 - split) else prompt
            x = scheduler.step(self.guided(x, t, text), t, x, eta=0.0).prev_sample
        return x

    def inverted(self, source: str, prompt: str, n: int) -> Tensor:
        """DDIM inversion under the class prompt."""
        scheduler = DDIMInverseScheduler(**DDIM)
        scheduler.set_timesteps(n)
        x, cond = self.latent(source, "lanczos"), self.text(prompt)
        for t in scheduler.timesteps:
            x = scheduler.step(self.pipe.unet(x, t, encoder_hidden_states=cond).sample, t, x).prev_sample
        return x

    def dream_da(self, row: Row, prompt: str, n: int) -> Tensor:
        """CycleDiffusion of diffusers at eta 1; 3 xi at the target's bottleneck, first without, then with the prompt.

        The source is guided from "" to "" by 1.5, as the authors do.
        """
        scheduler, unet = DDIMScheduler(**DDIM), self.pipe.unet
        scheduler.set_timesteps(n)
        kept = scheduler.timesteps[n - int(n * row["strength"]) :]
        drawn = json.loads(row["draw"] or "{}").get("posterior_seed")
        clean = self.latent(row["source_ids"][0], "bicubic", None if drawn is None else self.noise(drawn))
        source = target = scheduler.add_noise(clean, self.noise(row["seed"]), kept[:1])
        texts = torch.cat([self.text(""), self.text(prompt)])
        for i, t in enumerate(kept):
            digest = hashlib.sha256(f"{row['seed']}|dream_da|{n - len(kept) + i}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            middle = unet.mid_block.forward

            def noisy(*given: Any, middle: Any = middle, draws: torch.Generator = generator, **named: Any) -> Tensor:
                h = middle(*given, **named)
                return torch.stack([one + 3 * torch.randn(one.shape, generator=draws) for one in h])

            plain = unet(torch.cat([source] * 2), t, encoder_hidden_states=torch.cat([texts[:1]] * 2)).sample
            unet.mid_block.forward = noisy
            low, high = unet(torch.cat([target] * 2), t, encoder_hidden_states=texts).sample.chunk(2)
            unet.mid_block.forward = middle
            e_source = plain[:1] + 1.5 * (plain[1:] - plain[:1])
            before = posterior_sample(scheduler, source, t, clean, generator, 1.0)
            rest = compute_noise(scheduler, before, source, t, e_source, 1.0)
            source = before
            target = scheduler.step(low + W * (high - low), t, target, eta=1.0, variance_noise=rest).prev_sample
        return target

    def saspa(self, row: Row, n: int, low: int, high: int, controlnet: Path) -> Tensor:
        """Text to image with edges, weight 0.75, DDIM; the prompt and its negative are the row's."""
        network = ControlNetModel.from_pretrained(controlnet, local_files_only=True)
        pipe = StableDiffusionControlNetPipeline(
            **self.pipe.components, controlnet=network, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = DDIMScheduler(**DDIM)
        levels = ((self.pixels(row["source_ids"][0], "bilinear")[0] + 1) * 127.5).round().int().tolist()
        edges = torch.tensor(edges_of(levels, low, high)).float()
        return pipe(
            row["prompt"],
            image=edges.expand(1, 3, -1, -1),
            negative_prompt=row["negative_prompt"],
            latents=self.noise(row["seed"]),
            num_inference_steps=n,
            guidance_scale=W,
            controlnet_conditioning_scale=0.75,
            output_type="latent",
        ).images

    # pictures and labels --------------------------------------------------------------------------------------------

    def decoded(self, latent: Tensor, size: int | None = None, how: str = "bilinear") -> Image.Image:
        """The 8-bit picture, brought to `size` where one is given."""
        image = self.pipe.vae.decode(latent / self.pipe.vae.config.scaling_factor).sample[0]
        levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        picture = Image.frombytes("RGB", (self.size, self.size), bytes(levels.flatten().tolist()))
        return picture.resize((size, size), FILTERS[how]) if size else picture

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        folder = self.assets / "encoder"
        return CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessorPil.from_pretrained(folder)

    def features(self, image: Image.Image, unit: bool) -> Tensor:
        """Image features [d], of unit length or as they come."""
        model, processor = self._encoder
        found = model.get_image_features(**processor(images=image, return_tensors="pt"))
        flat = getattr(found, "pooler_output", found)[0]
        return flat / flat.norm() if unit else flat

    def hard(self, prompt: str) -> dict[int, float]:
        """All weight on the class that a prompt names."""
        names = {f"a photo of a {name}": c for c, name in enumerate(CLASSES)}
        tokens = {f"a photo of a <class_{c}>": c for c in range(len(CLASSES))}
        return {(names | tokens)[prompt]: 1.0}

    def mixed(self, row: Row, prompt: str, gamma: float) -> dict[int, float]:
        """(1 - s^gamma) e_source + s^gamma e_target, the target being the class that the prompt names."""
        source, (target,) = self.images[row["source_ids"][0]][1], self.hard(prompt)
        share = row["strength"] ** gamma
        return {target: 1.0} if source == target else {source: 1 - share, target: share}


def edges_of(levels: Sequence[Sequence[Sequence[int]]], low: int, high: int) -> list[list[int]]:
    """1 on Canny edges of 8-bit levels [3][h][w], pixel by pixel as OpenCV's documentation and source have them.

    OpenCV is not installed where tests run; `tests/numerics/test_edges.py` holds digests of what it gave.
    """
    height, width = len(levels[0]), len(levels[0][0])
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]

    def at(channel: int, y: int, x: int) -> int:
        return levels[channel][min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    def gradient(y: int, x: int) -> tuple[int, int]:
        found = []
        for c in range(3):
            dx = sum(w * (at(c, y + d, x + 1) - at(c, y + d, x - 1)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            dy = sum(w * (at(c, y + 1, x + d) - at(c, y - 1, x + d)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            found.append((dx, dy))
        return max(found, key=lambda pair: abs(pair[0]) + abs(pair[1]))

    slopes = {(y, x): gradient(y, x) for y in range(height) for x in range(width)}
    strength = {place: abs(dx) + abs(dy) for place, (dx, dy) in slopes.items()}

    def is_ridge(y: int, x: int) -> bool:
        dx, dy = slopes[y, x]
        steepness = math.inf if dx == 0 else abs(dy / dx)
        if steepness < math.tan(math.pi / 8):
            before, after, keeps_equal = (y, x - 1), (y, x + 1), True
        elif steepness > math.tan(3 * math.pi / 8):
            before, after, keeps_equal = (y - 1, x), (y + 1, x), True
        else:
            side = -1 if (dx < 0) != (dy < 0) else 1
            before, after, keeps_equal = (y - 1, x - side), (y + 1, x + side), False
        own, behind = strength[y, x], strength.get(after, 0)
        return own > strength.get(before, 0) and (own >= behind if keeps_equal else own > behind)

    ridges = {place for place, value in strength.items() if value > low and is_ridge(*place)}
    waiting = [place for place in ridges if strength[place] > high]
    kept = set(waiting)
    while waiting:
        y, x = waiting.pop()
        near = {(y + d, x + r) for d, r in ring} & (ridges - kept)
        kept |= near
        waiting += near
    return [[int((y, x) in kept) for x in range(width)] for y in range(height)]

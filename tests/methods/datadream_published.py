"""DataDream as its authors train and sample, and diffusers' text-to-image script: peft, schedules, torch's AdamW.

Imports nothing of ours. The random numbers of every step are given: images, labels t, noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch import Tensor

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TARGETS = {"unet": ["to_k", "to_q", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}


def pipeline(folder: Path) -> Any:
    """The whole model, frozen."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for part in ("unet", "text_encoder", "vae"):
        getattr(pipe, part).requires_grad_(False)
    return pipe


def with_lora(pipe: Any, matrices: Mapping[str, Tensor]) -> dict[str, torch.nn.Parameter]:
    """Adapters of these values on both networks; their parameters by the names that the values have."""
    rank = next(len(matrix) for key, matrix in matrices.items() if ".lora_A." in key)
    found: dict[str, torch.nn.Parameter] = {}
    for part, targets in TARGETS.items():
        if not any(key.startswith(f"{part}.") for key in matrices):
            continue
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                found[f"{part}.{name.replace('.default.', '.')}"] = parameter
    assert set(found) == set(matrices)
    for key, parameter in found.items():
        parameter.data.copy_(matrices[key])
        parameter.requires_grad_(True)
    return found


def conditions(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Hidden states of prompts, padded to the model's length."""
    ids = pipe.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    states: Tensor = pipe.text_encoder(ids)[0]
    return states


def train(
    pipe: Any,
    start: Mapping[str, Tensor],
    latents: Sequence[Tensor],
    prompts: Sequence[str],
    steps: Sequence[tuple[Sequence[int], Sequence[int], Tensor]],
    lr: float,
    warmup: int,
    schedule: str = "cosine",
) -> tuple[dict[str, Tensor], list[float]]:
    """The matrices after these steps (images, labels, noise), and the loss of each."""
    parameters = with_lora(pipe, start)
    optimiser = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    rates = get_scheduler(schedule, optimiser, num_warmup_steps=warmup, num_training_steps=len(steps))
    noising, losses = DDPMScheduler(**BETAS), []
    for images, labels, noise in steps:
        xt = noising.add_noise(torch.stack([latents[j] for j in images]), noise, torch.tensor(labels))
        cond = conditions(pipe, [prompts[j] for j in images])
        predicted = pipe.unet(xt, torch.tensor(labels), cond).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        losses.append(float(loss.detach()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        rates.step()
        optimiser.zero_grad()
    return {key: parameter.detach().clone() for key, parameter in parameters.items()}, losses


@torch.no_grad()
def image_latents(
    pipe: Any, matrices: Mapping[str, Tensor], prompt: str, noise: Tensor, n: int, scale: float
) -> Tensor:
    """The latents [1 c h w] of a prompt under the matrices, by DDIM."""
    with_lora(pipe, matrices)
    pipe.scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    made: Tensor = pipe(prompt, latents=noise, num_inference_steps=n, guidance_scale=scale, output_type="latent").images
    return made

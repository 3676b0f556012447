"""Tiny random pipelines of the families of one U-Net, written as diffusers writes them; imports nothing of ours."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from sd_tiny import WIDTH, text_encoder, vae, write_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROJECTION, TIME = 24, 8
OTHER_WIDTH = 40


def unet(**changes: Any) -> UNet2DConditionModel:
    """Two levels, cross-attention in both; 8 x 8 latents."""
    words = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**{**words, **changes})


def second_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Wider than the first; its end token is numbered as in configurations before transformers 4.31, like SDXL's."""
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    sizes = {"hidden_size": OTHER_WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=int(tokenizer.model_max_length),
        projection_dim=PROJECTION,
        **sizes,
        **ends,
    )
    return CLIPTextModelWithProjection(config)


def write(folder: Path, kind: str, networks: dict[str, Any], scheduler: Any, switches: dict[str, Any]) -> Path:
    """A folder in diffusers format."""
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.42.1", **switches}
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(network).__name__]
    for path in sorted(folder.glob("tokenizer*")):
        index[path.name] = ["transformers", "CLIPTokenizer"]
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    index |= {name: [None, None] for name in ("feature_extractor", "image_encoder")}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def lcm(folder: Path) -> Path:
    """A consistency model that is told the scale, as SimianLuo/LCM_Dreamshaper_v7."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    networks = {"unet": unet(time_cond_proj_dim=16), "vae": vae(), "text_encoder": text_encoder(tokenizer)}
    networks["text_encoder"].get_input_embeddings().weight.data.normal_()
    # A trained network sees the scale; a random one hardly does.
    networks["unet"].time_embedding.cond_proj.weight.data.normal_()
    switches = {"requires_safety_checker": False, "safety_checker": [None, None]}
    return write(folder, "LatentConsistencyModelPipeline", networks, LCMScheduler(**BETAS), switches)


def sdxl(folder: Path, turbo: bool = False) -> Path:
    """A pipeline shaped like Stable Diffusion XL; `turbo`: with the scheduler of SDXL-Turbo."""
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
    path = folder / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "!"}), encoding="utf-8")
    path = folder / "tokenizer_2" / "special_tokens_map.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "!"}), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    told = {
        "cross_attention_dim": WIDTH + OTHER_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME,
        "projection_class_embeddings_input_dim": 6 * TIME + PROJECTION,
    }
    networks: dict[str, Any] = {"unet": unet(**told), "vae": vae(), "text_encoder": text_encoder(tokenizer)}
    networks["text_encoder_2"] = second_text_encoder(tokenizer)
    for name in ("text_encoder", "text_encoder_2"):
        networks[name].get_input_embeddings().weight.data.normal_()
    steps: dict[str, Any] = {**BETAS, "steps_offset": 1}
    scheduler = (
        EulerAncestralDiscreteScheduler(**steps, timestep_spacing="trailing")
        if turbo
        else EulerDiscreteScheduler(**steps, timestep_spacing="leading")
    )
    switches = {"force_zeros_for_empty_prompt": True, "add_watermarker": None}
    return write(folder, "StableDiffusionXLPipeline", networks, scheduler, switches)


def fused_lcm(folder: Path) -> Path:
    """Stable Diffusion with a consistency model's LoRA fused into it: guided by two branches, with an LCMScheduler."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    networks = {"unet": unet(), "vae": vae(), "text_encoder": text_encoder(tokenizer)}
    networks["text_encoder"].get_input_embeddings().weight.data.normal_()
    switches = {"requires_safety_checker": False, "safety_checker": [None, None]}
    return write(folder, "StableDiffusionPipeline", networks, LCMScheduler(**BETAS), switches)

"""A pipeline shaped like Stable Diffusion 1.5 (12-layer text encoder, 4-level U-Net and VAE) with few random weights.

Written to a folder in diffusers format, tokenizer files as SD 1.5 has them (vocab.json, merges.txt). Imports nothing of
ours, so that it can stand on the reference side of a comparison.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32
LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("p h", "ph o", "pho t", "phot o</w>", "o f</w>", "b i", "r d</w>", "bi rd</w>")


def write_tokenizer(folder: Path) -> None:
    """CLIP's byte-level alphabet, a few merges, two special tokens: 522 entries."""
    letters = sorted(ByteLevel.alphabet())
    merged = ["".join(pair.split()) for pair in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """12 layers, as in SD 1.5."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id, **sizes, **ends
    )
    return CLIPTextModel(config)


def unet() -> UNet2DConditionModel:
    """4 levels with two layers each, cross-attention in the first three, as in SD 1.5."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
    )


def vae() -> AutoencoderKL:
    """4 levels, factor 8."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """SD 1.5's noise levels and offsets."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def rescheduled(folder: Path, changes: dict[str, object]) -> Path:
    """Change keys of the scheduler's file; None takes one out."""
    path = folder / "scheduler" / "scheduler_config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in changes or v is not None}), "utf-8")
    return folder


def build(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write the pipeline into a folder and return it; 64 px, latents 4 x 8 x 8."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {"text_encoder": text_encoder(tokenizer), "unet": unet(), "vae": vae()}
        # A fresh text encoder's embeddings are so small that all prompts look alike.
        networks["text_encoder"].get_input_embeddings().weight.data.normal_()
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    scheduler(prediction_type).save_pretrained(folder / "scheduler")
    rescheduled(folder, {"timestep_spacing": None})  # of which the file of SD 1.5 says nothing
    parts = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False}
    index |= {name: ["transformers", kind] for name, kind in parts.items()}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def pipeline(folder: Path) -> StableDiffusionPipeline:
    """The folder as diffusers sees it."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe

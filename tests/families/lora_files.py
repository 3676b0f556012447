"""LoRA files in every layout, and the weights that diffusers and peft make of them; imports nothing of ours."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sd_tiny import LENGTH, WIDTH, scheduler, vae, write_tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from unet_tiny import unet, write

RANK, ALPHA = 3, 5.0
UNET = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def small(folder: Path) -> Path:
    """A Stable Diffusion of two levels and two layers of text."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes, **ends)
    torch.manual_seed(0)
    networks = {"unet": unet(), "vae": vae(), "text_encoder": CLIPTextModel(text)}
    networks["text_encoder"].get_input_embeddings().weight.data.normal_()
    return write(folder, "StableDiffusionPipeline", networks, scheduler(), {"safety_checker": [None, None]})


def trained(network: Any, targets: tuple[str, ...], seed: int) -> LoraConfig:
    """Put matrices beside a network that are not zero; the network learns them as `default`."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets))
    network.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if ".lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return config


def in_diffusers(pipe: StableDiffusionPipeline, folder: Path, *, metadata: bool) -> Path:
    """As diffusers writes it; `metadata`: with its alpha, which is the rank where there is none."""
    unet, text = (get_peft_model_state_dict(network) for network in (pipe.unet, pipe.text_encoder))
    given = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    configs = _collate_lora_metadata(given) if metadata else {}
    StableDiffusionPipeline.save_lora_weights(folder, unet, text, **configs)
    return folder / "pytorch_lora_weights.safetensors"


def by_its_scripts(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    """As diffusers' training scripts write it: `lora.down`, projections of attention alone."""
    attention = re.compile(r".+\.(to_q|to_k|to_v|to_out\.0|q_proj|v_proj)\.lora_[AB]\.weight")
    states = [get_peft_model_state_dict(network) for network in (pipe.unet, pipe.text_encoder)]
    kept = [{key: matrix for key, matrix in state.items() if attention.fullmatch(key)} for state in states]
    StableDiffusionPipeline.save_lora_weights(folder, *map(convert_state_dict_to_diffusers, kept))
    return folder / "pytorch_lora_weights.safetensors"


def as_before_peft(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """As diffusers wrote it first: matrices of attention processors alone."""
    attention = re.compile(r"(.+)\.(to_q|to_k|to_v|to_out)(?:\.0)?\.lora_([AB])\.weight")
    made = {}
    for key, matrix in get_peft_model_state_dict(pipe.unet).items():
        if found := attention.fullmatch(key):
            side = {"A": "down", "B": "up"}[found[3]]
            made[f"unet.{found[1]}.processor.{found[2]}_lora.{side}.weight"] = matrix.contiguous()
    save_file(made, path)
    return path


def in_kohya(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """As kohya's scripts write it: underscores, and an alpha for every module."""
    made: dict[str, Tensor] = {}
    for prefix, network in (("lora_unet_", pipe.unet), ("lora_te_text_model_", pipe.text_encoder)):
        for key, matrix in get_peft_model_state_dict(network).items():
            module, _, side = key.removesuffix(".weight").rpartition(".lora_")
            name = prefix + module.removeprefix("text_model.").replace(".", "_")
            made[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = matrix.contiguous()
            made[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(made, path)
    return path


def in_peft(network: Any, folder: Path, seed: int) -> tuple[Path, dict[str, Tensor]]:
    """As peft writes it, and the weights that peft itself merges."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(UNET), alpha_pattern={"attn2.to_k": 9.0})
    wrapped = get_peft_model(network, config)
    generator = torch.Generator().manual_seed(4)
    for name, weight in wrapped.named_parameters():
        if ".lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    wrapped.save_pretrained(folder)
    merged = PeftModel.from_pretrained(wrapped.unload(), folder).merge_and_unload()
    return folder, {key: weight.clone() for key, weight in merged.state_dict().items()}


def merged_by_diffusers(pipe: Any, files: list[tuple[Path, float]]) -> dict[str, dict[str, Tensor]]:
    """Part -> weights after `load_lora_weights`, `set_adapters` and `fuse_lora` of a pipeline."""
    names = [f"lora_{place}" for place in range(len(files))]
    for name, (path, _) in zip(names, files, strict=True):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name, local_files_only=True)
    pipe.set_adapters(names, [weight for _, weight in files])
    parts = [part for part in ("unet", "transformer", "text_encoder", "text_encoder_2") if hasattr(pipe, part)]
    pipe.fuse_lora(components=[part for part in parts if hasattr(getattr(pipe, part), "peft_config")])
    pipe.unload_lora_weights()
    return {part: dict(getattr(pipe, part).state_dict()) for part in parts}


def sgm_name(module: str, layers: int) -> str:
    """A U-Net's module as the original code of SDXL names it, with underscores."""
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", module)
    if found:
        side, block, layer = found[1], int(found[2]), int(found[3])
        number = block * (layers + 1) + layer + (1 if side == "down" else 0)
        module = f"{'input' if side == 'down' else 'output'}_blocks.{number}.1.{found[4]}"
    return module.replace("mid_block.attentions.0", "middle_block.1").replace(".", "_")


def kohya_of_sdxl(unet: Any, path: Path, layers: int) -> Path:
    """Attention of SDXL's U-Net under the names of its original code."""
    made = {}
    for key, matrix in get_peft_model_state_dict(unet).items():
        module, _, side = key.removesuffix(".weight").rpartition(".lora_")
        name = f"lora_unet_{sgm_name(module, layers)}"
        made[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = matrix.contiguous()
        made[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(made, path)
    return path


def damaged(path: Path, target: Path, change: Any) -> Path:
    """The file with its tensors changed."""
    save_file(change(load_file(path)), target)
    return target

"""Folders in diffusers format as one checkpoint in the layout of the original code; imports nothing of ours."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OF_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
OF_FLUX = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
OF_SINGLE = {
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
ENDS_OF_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}


OF_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
OF_JOINT = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
OF_FLUX2 = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
OF_DOUBLE2 = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
OF_SINGLE2 = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
OF_Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}
OF_SANA = {
    "patch_embed.proj": "x_embedder.proj",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_norm": "attention_y_norm",
    "proj_out": "final_layer.linear",
    "attn1.to_q": "attn.qkv",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_k": "cross_attn.kv_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.conv_inverted": "mlp.inverted_conv.conv",
    "ff.conv_depth": "mlp.depth_conv.conv",
    "ff.conv_point": "mlp.point_conv.conv",
}

FUSED = {"attn.to_q": "x_block.attn", "attn.add_q_proj": "context_block.attn", "attn2.to_q": "x_block.attn2"}


def weights(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part."""
    (path,) = (folder / part).glob("*.safetensors")
    return load_file(path)


def without_weights(folder: Path, target: Path, *parts: str) -> Path:
    """A copy without the weights of the parts, of all where none is named."""
    shutil.copytree(folder, target)
    for path in target.glob("*/*.safetensors"):
        if not parts or path.parent.name in parts:
            path.unlink()
    return target


def unet(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """CompVis' names; `layers`: of a block."""
    return {f"model.diffusion_model.{_unet_key(key, layers)}": tensor for key, tensor in tensors.items()}


def _unet_key(key: str, layers: int) -> str:
    module, _, end = key.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{end}"
    if middle := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
        return f"middle_block.{place}.{RESNET.get(middle[3], middle[3])}.{end}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", module)
    assert found is not None, key
    side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    number, name = block * (layers + 1) + (side == "down"), "input" if side == "down" else "output"
    if kind == "downsamplers":
        return f"input_blocks.{number + layers}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{number + layers}.2.conv.{end}"
    place = int(kind == "attentions")
    return f"{name}_blocks.{number + layer}.{place}.{rest if place else RESNET[rest]}.{end}"


def vae(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """CompVis' names; `levels`: of the decoder, which counts them from the other end."""
    made = {}
    for key, tensor in tensors.items():
        name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", key)
        name = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", name)
        name = re.sub(
            r"decoder\.up_blocks\.(\d)(\.resnets)?",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}{'.block' if m[2] else ''}",
            name,
        )
        for old, new in OF_VAE.items():
            name = name.replace(f".{old}.", f".{new}.")
        is_attention = ".attn_1." in name and name.endswith(".weight") and tensor.dim() == 2
        made[f"first_stage_model.{name}"] = tensor[:, :, None, None].contiguous() if is_attention else tensor
    return made


def clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """transformers' own names of before it flattened them."""
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in tensors.items()}


def open_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names, query, key and value in one."""
    plain = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    made = {
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
    }
    if "text_projection.weight" in plain:
        made["text_projection"] = plain["text_projection.weight"].T.contiguous()
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inner["self_attn.out_proj"] = "attn.out_proj"
    for key, tensor in plain.items():
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            layer, module, end = found[1], found[2], found[3]
            if module in inner:
                made[f"transformer.resblocks.{layer}.{inner[module]}.{end}"] = tensor
            elif module == "self_attn.q_proj":
                sides = [plain[f"encoder.layers.{layer}.self_attn.{side}_proj.{end}"] for side in "qkv"]
                made[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(sides)
    return {prefix + key: tensor for key, tensor in made.items()}


def flux(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Black Forest Labs' names; shift comes before scale in the last modulation."""
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, end = key.rpartition(".")
        if module in ENDS_OF_FLUX:
            halves = tensor.chunk(2)[::-1] if module == "norm_out.linear" else (tensor,)
            made[f"{ENDS_OF_FLUX[module]}.{end}"] = torch.cat(halves)
            continue
        found = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        assert found is not None, key
        blocks, rest = f"{'single' if found[1] else 'double'}_blocks.{found[2]}", found[3]
        plain = (OF_SINGLE if found[1] else OF_FLUX).get(rest)
        if plain is not None:
            made[f"{blocks}.{plain}.{'scale' if '_norm' in plain else end}"] = tensor
            continue
        block = key.removesuffix(f"{rest}.{end}")
        if found[1] and rest == "attn.to_q":
            sides = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            made[f"{blocks}.linear1.{end}"] = torch.cat([tensors[f"{block}{side}.{end}"] for side in sides])
        elif rest in ("attn.to_q", "attn.add_q_proj"):
            sides = tuple(rest.replace("q", side) if "add" in rest else f"attn.to_{side}" for side in "qkv")
            name = "txt_attn" if "add" in rest else "img_attn"
            made[f"{blocks}.{name}.qkv.{end}"] = torch.cat([tensors[f"{block}{side}.{end}"] for side in sides])
    return made


def stable_diffusion_3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stability AI's names; shift comes before scale in what leads out of the blocks."""
    last = max(int(key.split(".")[1]) for key in tensors if key.startswith("transformer_blocks."))
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, end = key.rpartition(".")
        found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        out = module in ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
        plain = torch.cat(tensor.chunk(2)[::-1]) if out else tensor
        if found is None:
            made["pos_embed" if key == "pos_embed.pos_embed" else f"{OF_SD3[module]}.{end}"] = plain
        elif found[2] in OF_JOINT:
            made[f"joint_blocks.{found[1]}.{OF_JOINT[found[2]]}.{end}"] = plain
        elif found[2] in FUSED:
            sides = [
                tensors[key.replace("q", side) if "add" in key else key.replace("to_q", f"to_{side}")] for side in "qkv"
            ]
            made[f"joint_blocks.{found[1]}.{FUSED[found[2]]}.qkv.{end}"] = torch.cat(sides)
    return {f"model.diffusion_model.{key}": tensor for key, tensor in made.items()}


def flux_2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Black Forest Labs' names of the second model, without an embedding of guidance."""
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, end = key.rpartition(".")
        found = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        if found is None:
            halves = tensor.chunk(2)[::-1] if module == "norm_out.linear" else (tensor,)
            made[f"{OF_FLUX2[module]}.{end}"] = torch.cat(halves)
            continue
        blocks, rest = f"{'single' if found[1] else 'double'}_blocks.{found[2]}", found[3]
        plain = (OF_SINGLE2 if found[1] else OF_DOUBLE2).get(rest)
        if plain is not None:
            made[f"{blocks}.{plain}.{'scale' if '_norm' in plain else end}"] = tensor
        elif rest in ("attn.to_q", "attn.add_q_proj"):
            name, sides = ("txt_attn", "add_{}_proj") if "add" in rest else ("img_attn", "to_{}")
            fused = [tensors[key.replace(sides.format("q"), sides.format(side))] for side in "qkv"]
            made[f"{blocks}.{name}.qkv.{end}"] = torch.cat(fused)
    return made


def z_image(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of Z-Image in one file: query, key and value in one, patches of one size."""
    made: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".attention.to_q." in key:
            fused = torch.cat([tensors[key.replace("to_q", f"to_{side}")] for side in "qkv"])
            made[key.replace("to_q", "qkv")] = fused
        elif not re.search(r"\.attention\.to_[kv]\.", key):
            name = key
            for old, new in OF_Z_IMAGE.items():
                name = name.replace(old, new)
            made[name] = tensor
    return made


def sana(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NVIDIA's names, with the two tables that diffusers makes anew or does without."""
    made = {"pos_embed": torch.zeros(1, 4, 4), "y_embedder.y_embedding": torch.zeros(3, 4)}
    for key, tensor in tensors.items():
        found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", key)
        block, rest = (f"blocks.{found[1]}.", found[2]) if found else ("", key)
        if rest == "scale_shift_table":
            made[f"{block or 'final_layer.'}{rest}"] = tensor
            continue
        module, _, end = rest.rpartition(".")
        others = {"attn1.to_q": ("to_k", "to_v"), "attn2.to_k": ("to_v",)}.get(module, ())
        if module in OF_SANA:
            parts = [tensor, *(tensors[key.replace(module[6:], other)] for other in others)]
            made[f"{block}{OF_SANA[module]}.{end}"] = torch.cat(parts)
    return made


def stable_diffusion(folder: Path, target: Path, *, is_open_clip: bool = False) -> Path:
    """Stable Diffusion 1.x, or 2.x with OpenCLIP's text encoder."""
    text = weights(folder, "text_encoder")
    named = open_clip(text, "cond_stage_model.model.") if is_open_clip else clip(text, "cond_stage_model.transformer.")
    return _saved(folder, named, target)


def stable_diffusion_xl(folder: Path, target: Path) -> Path:
    """Both text encoders of Stable Diffusion XL."""
    first = clip(weights(folder, "text_encoder"), "conditioner.embedders.0.transformer.")
    second = open_clip(weights(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    return _saved(folder, {**first, **second}, target)


def _saved(folder: Path, text: Mapping[str, Tensor], target: Path) -> Path:
    config = {part: json.loads((folder / part / "config.json").read_text("utf-8")) for part in ("unet", "vae")}
    made = unet(weights(folder, "unet"), config["unet"]["layers_per_block"])
    made |= vae(weights(folder, "vae"), len(config["vae"]["block_out_channels"]))
    save_file({key: tensor.contiguous() for key, tensor in (made | dict(text)).items()}, target)
    return target

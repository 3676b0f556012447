"""Names of a model's modules in the code that it was first published with, turned into those of diffusers.

LoRA files of kohya's scripts and single-file checkpoints use the first kind, folders in diffusers format the second.
What is fused there (one projection for query, key and value) is several modules here, side by side in its rows. Facts
of the layouts as they are published: CompVis latent-diffusion and Stability-AI generative-models (U-Net), OpenCLIP,
black-forest-labs flux. No torch is needed.
"""

import re
from collections.abc import Callable, Mapping

from diffaug_datasets.core.weight_headers import TensorInfo

Names = tuple[str, ...]
Renaming = Callable[[str], Names]
"""A module's original name -> its names in diffusers, in the order of rows; () where it is unknown. Dots may be
underscores, as kohya's scripts write them; the answer then has underscores where the original had them in the rest."""

SEPARATOR = r"[._]"
RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET = {
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn_out_proj": "self_attn.out_proj",
    "mlp_c_fc": "mlp.fc1",
    "mlp_c_proj": "mlp.fc2",
}
FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
}
FLUX_DOUBLE: Mapping[str, Names] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
FLUX_SINGLE: Mapping[str, Names] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}


def unet_names(layers: int) -> Renaming:
    """Of a `UNet2DConditionModel` with so many layers in a block (2 in all Stable Diffusion models)."""
    part = re.compile(rf"(input|output)_blocks{SEPARATOR}(\d+){SEPARATOR}(\d+)(?:{SEPARATOR}(.+))?")
    middle = re.compile(rf"middle_block{SEPARATOR}([012]){SEPARATOR}(.+)")

    def renamed(name: str) -> Names:
        if (plain := UNET.get(name.replace(".", "_"))) is not None:
            return (plain,)
        if found := middle.fullmatch(name):
            place, rest = int(found[1]), found[2]
            kind = "attentions.0" if place == 1 else f"resnets.{place // 2}"
            return (f"mid_block.{kind}.{rest if place == 1 else _of_resnet(rest)}",)
        if found := part.fullmatch(name):
            side, number, place, rest = found[1], int(found[2]), int(found[3]), found[4] or ""
            block, layer = divmod(number - (side == "input"), layers + 1)
            where = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
            if rest == "op":
                return (f"{where}.downsamplers.0.conv",)
            if rest == "conv" and place:
                return (f"{where}.upsamplers.0.conv",)
            return (f"{where}.{'attentions' if place else 'resnets'}.{layer}.{rest if place else _of_resnet(rest)}",)
        return ()

    return renamed


def flux_names(name: str) -> Names:
    """Of a `FluxTransformer2DModel`. What ends in a modulation whose halves change places is unknown here."""
    if (plain := FLUX.get(name.replace(".", "_"))) is not None:
        return (plain,)
    found = re.fullmatch(rf"(double|single)_blocks{SEPARATOR}(\d+){SEPARATOR}(.+)", name)
    if found is None:
        return ()
    is_double, rest = found[1] == "double", found[3].replace(".", "_")
    blocks = "transformer_blocks" if is_double else "single_transformer_blocks"
    inner = (FLUX_DOUBLE if is_double else FLUX_SINGLE).get(rest, ())
    return tuple(f"{blocks}.{found[2]}.{end}" for end in inner)


def renaming(kind: object, config: Mapping[str, object]) -> Renaming | None:
    """Of a network of that class with that configuration; None where its original names are not known here."""
    if kind == "UNet2DConditionModel":
        layers = config.get("layers_per_block", 2)
        return unet_names(layers) if type(layers) is int else None
    return flux_names if kind == "FluxTransformer2DModel" else None


def row_counts(names: Names, rows: int, columns: int) -> tuple[int, ...]:
    """How many of the rows of a fused projection each module has: as many as it has columns, the last one the rest."""
    if len(names) == 1:
        return (rows,)
    first = (columns,) * (len(names) - 1)
    return (*first, rows - sum(first))


def renamed_header(header: Mapping[str, TensorInfo], names: Renaming) -> dict[str, TensorInfo]:
    """The tensors of a part in the original layout, under the names and with the shapes that diffusers gives them."""
    made: dict[str, TensorInfo] = {}
    for key, entry in header.items():
        module, _, kind = key.rpartition(".")
        found = names(module)
        weight = header.get(f"{module}.weight", entry).shape
        columns = weight[1] if len(weight) > 1 else 0
        if not found or not entry.shape or (len(found) > 1 and not columns):
            continue
        for name, rows in zip(found, row_counts(found, entry.shape[0], columns), strict=True):
            made[f"{name}.{kind}"] = TensorInfo(entry.dtype, (max(0, rows), *entry.shape[1:]))
    return made


def open_clip_header(header: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of an OpenCLIP text encoder as transformers' CLIPTextModel has them."""
    fixed = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
        "text_projection": "text_projection.weight",
    }
    made: dict[str, TensorInfo] = {}
    for key, entry in header.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)\.?(weight|bias|in_proj_weight|in_proj_bias)", key)
        if key in fixed:
            made[fixed[key]] = entry
        elif found and found[3].startswith("in_proj") and entry.shape:
            third = TensorInfo(entry.dtype, (entry.shape[0] // 3, *entry.shape[1:]))
            for side in "qkv":
                made[f"encoder.layers.{found[1]}.self_attn.{side}_proj.{found[3].removeprefix('in_proj_')}"] = third
        elif found and (inner := OPEN_CLIP.get(found[2].replace(".", "_"))):
            made[f"encoder.layers.{found[1]}.{inner}.{found[3]}"] = entry
    return made


def _of_resnet(rest: str) -> str:
    return RESNET.get(rest.replace(".", "_"), rest)

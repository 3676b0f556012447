"""Qwen-Image: a transformer of 20 billion weights and Qwen2.5-VL as its text encoder, 1024 px and more.

A rectified flow whose shift grows with the number of tokens and whose schedule is stretched to end at 0.02. Texts are
read within a template that diffusers' pipeline holds, at their own length, so rows are told theirs one by one. Guidance
by two branches keeps the norm that every token has with the prompt alone. The VAE is one of videos, of which one frame
is used.

Diff-II inverts it. Concepts are LoRA of the transformer under a rare word and the class's name; methods that learn
tokens alone, a condition per image, or through a U-Net are refused at plan. Licence: Apache 2.0. The largest of all
here: 41 GB in bfloat16 for the transformer alone, 17 GB for the text encoder. Usual: 50 steps of euler at guidance 4,
bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import FLOW_SAMPLERS, Defaults, ModelFacts, Size
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, size_in_pixels
from diffaug_datasets.families.parts.transformer_folders import (
    QWEN_TOKENIZERS,
    check_channels,
    check_language_model,
    check_other_vae,
    check_transformer,
    check_widths,
    files_of,
    flow_facts,
    levels_in,
    numbers_of,
    read_flow_of,
    read_parts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.packed_models import QwenImageModel

NAME = "qwen_image"
TITLE = "Qwen-Image"
CLASSES = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")
LICENCE = "Apache-2.0"
DEFAULTS = Defaults(
    sampler="euler", steps=50, guidance=4.0, spacing="shift by size", dtype="bfloat16", side=1024, multiple_of=16
)
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = files_of("tokenizer")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
RARE_WORDS = True
SIZES = (Size("Qwen/Qwen-Image", 20.4, 8.4),)
PURPOSE = "the largest model here, of free licence, on a card of 80 GB"

_DRIVEN = {
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "tokenizer": QWEN_TOKENIZERS,
}
_SIDE = 128  # latents, as diffusers' pipeline has it
_LENGTH = 512


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    off = dict.fromkeys(("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"), (False,))
    transformer = check_transformer(parts, "QwenImageTransformer2DModel", {"patch_size": (2,), **off})
    vae = check_other_vae(parts, "AutoencoderKLQwenImage")
    check_channels(transformer, vae, "z_dim", 4, 16)
    width = check_language_model(folder, parts, "text_encoder", "tokenizer", "hidden_size", is_whole)
    check_widths(transformer, "joint_attention_dim", width, "a text encoder")
    channels, factor, size = 16, 8, None
    if vae is not None:
        channels = whole_number(vae, "z_dim", "vae/config.json", 16)
        for key in ("latents_mean", "latents_std"):
            if key in vae:
                numbers_of(vae, key, "vae/config.json", channels)
        factor = 2 ** levels_in(vae, "temperal_downsample", 3)
        size = size_in_pixels(spec, (_SIDE, _SIDE), factor, 2 * factor)
    return flow_facts(
        NAME,
        str(index["_class_name"]),
        read_flow_of(folder, is_whole, grid="even"),
        size=size,
        latents=(channels, factor),
        tokens=2 * factor,
        samplers=FLOW_SAMPLERS,
        parts=("text", "mask"),
    )


def load(folder: Path, spec: BackboneSpec, device: device) -> QwenImageModel:
    """All networks get the spec's dtype."""
    from diffusers import QwenImagePipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.packed_models import QwenImageModel
    from diffaug_datasets.families.parts.transformer_models import PipelineText, padded, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = QwenImagePipeline(scheduler=None, **read)

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        states, _none = pipeline.encode_prompt(text, device=device, max_sequence_length=_LENGTH)
        return padded(states[0], _LENGTH)

    factor = pipeline.vae_scale_factor
    model = QwenImageModel(
        facts,
        read["transformer"],
        read["vae"],
        PipelineText(encode),
        device,
        levels=transformer_loading.levels_of(folder, tokens=2 * factor, grid="even"),
        side=_SIDE * factor,
    )
    try_once(model)
    return model

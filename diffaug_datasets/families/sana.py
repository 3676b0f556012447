"""Sana: a linear transformer of 0.6 or 1.6 billion weights, Gemma 2 as its text encoder, 512 to 4096 px.

A rectified flow with a shift of 3 and an autoencoder that takes 32 pixels a side into one latent, so that 1024 px are
as many latents as 256 px elsewhere: the fastest of the large ones. Its own sampler is DPM-Solver++ along the flow
(`dpm`), which begins just below pure noise and tells the network whole times; `euler` follows the same sigmas. A prompt
is read behind an instruction that diffusers' pipeline holds, a negative one without it, and 300 tokens of it are seen.

Diff-II inverts it. Concepts are LoRA of the transformer under a rare word and the class's name; methods that learn
tokens alone, a condition per image, or through a U-Net are refused at plan. Licence: of NVIDIA, for non-commercial use;
Gemma's terms hold for the text encoder. Usual: 20 steps of dpm at guidance 4.5, bfloat16, sides that are multiples of
32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import Defaults, ModelFacts, Size
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, size_in_pixels
from diffaug_datasets.families.parts.transformer_folders import (
    GEMMA_TOKENIZERS,
    check_channels,
    check_language_model,
    check_other_vae,
    check_transformer,
    check_widths,
    files_of,
    flow_facts,
    levels_in,
    read_flow_of,
    read_parts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.transformer_models import SanaModel

NAME = "sana"
TITLE = "Sana"
CLASSES = ("SanaPipeline",)
LICENCE = "NVIDIA, non-commercial; Gemma's terms for the text encoder"
DEFAULTS = Defaults(
    sampler="dpm", steps=20, guidance=4.5, spacing="shift 3", dtype="bfloat16", side=1024, multiple_of=32
)
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = files_of("tokenizer")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RARE_WORDS = True
SIZES = (
    Size("Efficient-Large-Model/Sana_600M_512px_diffusers", 0.6, 2.9),
    Size("Efficient-Large-Model/Sana_1600M_1024px_diffusers", 1.6, 2.9),
)
PURPOSE = "1024 px and more at little cost, for research"

_DRIVEN = {
    "transformer": ("SanaTransformer2DModel",),
    "vae": ("AutoencoderDC",),
    "text_encoder": ("Gemma2Model",),
    "tokenizer": GEMMA_TOKENIZERS,
}
_LENGTH = 300


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    switches = {"patch_size": (1,), "guidance_embeds": (False, None)}
    transformer = check_transformer(parts, "SanaTransformer2DModel", switches)
    vae = check_other_vae(parts, "AutoencoderDC")
    check_channels(transformer, vae, "latent_channels", 1, 32)
    width = check_language_model(folder, parts, "text_encoder", "tokenizer", "hidden_size", is_whole)
    check_widths(transformer, "caption_channels", width, "a text encoder")
    channels, factor, size = 32, 32, None
    if vae is not None and transformer is not None:
        channels = whole_number(vae, "latent_channels", "vae/config.json", 32)
        factor = 2 ** (levels_in(vae, "encoder_block_out_channels", 6) - 1)
        native = whole_number(transformer, "sample_size", "transformer/config.json", 32)
        size = size_in_pixels(spec, (native, native), factor, factor)
    return flow_facts(
        NAME,
        str(index["_class_name"]),
        read_flow_of(folder, is_whole),
        size=size,
        latents=(channels, factor),
        tokens=factor,
        samplers=("dpm", "euler", "ddim"),
        parts=("text", "mask"),
    )


def load(folder: Path, spec: BackboneSpec, device: device) -> SanaModel:
    """All networks get the spec's dtype."""
    import inspect

    from diffusers import SanaPipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.transformer_models import PipelineText, SanaModel, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = SanaPipeline(scheduler=None, **read)
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default

    def encode(text: str, is_negative: bool) -> Mapping[str, Tensor]:
        states, mask, _none, _none = pipeline.encode_prompt(
            text,
            False,
            device=device,
            max_sequence_length=_LENGTH,
            complex_human_instruction=None if is_negative else instruction,
        )
        return {"text": states, "mask": mask}

    levels = transformer_loading.levels_of(folder, tokens=pipeline.vae_scale_factor)
    side = int(read["transformer"].config.sample_size) * pipeline.vae_scale_factor
    model = SanaModel(facts, read["transformer"], read["vae"], PipelineText(encode), device, levels=levels, side=side)
    model.has_whole_times = levels(side, side).grid == "solver"
    try_once(model)
    return model

"""FLUX.1: a transformer of 12 billion weights, CLIP and T5, 1024 px.

A rectified flow whose sigmas are asked for evenly; FLUX.1-dev shifts them with the number of tokens. FLUX.1-dev was
distilled from guidance by two branches: it is told the scale (3.5 as published) and takes no negative prompt. Its way
up from an image under a scale of 1 is none that it was trained for, so Diff-II, which inverts, is refused on it.
FLUX.1-schnell was distilled to one to four steps without guidance; it reads 256 tokens of a text instead of 512, and is
not inverted either.

Concepts are LoRA of the transformer under a rare word and the class's name; methods that learn tokens alone, a
condition per image, or through a U-Net are refused at plan. Licence: FLUX.1-dev Non-Commercial (images may be used, but
not to train a model that competes with it), FLUX.1-schnell Apache 2.0. Usual: dev 28 steps of euler at guidance 3.5,
schnell 4 steps at guidance 1, bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import FLOW_SAMPLERS, Defaults, ModelFacts, Size, named
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, check_vae, size_in_pixels
from diffaug_datasets.families.parts.transformer_folders import (
    CLIP_TOKENIZERS,
    T5_TOKENIZERS,
    check_channels,
    check_language_model,
    check_transformer,
    check_widths,
    files_of,
    flow_facts,
    kl_measures,
    read_flow_of,
    read_parts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.packed_models import FluxModel

NAME = "flux"
TITLE = "FLUX.1"
CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline")
LICENCE = "FLUX.1 [dev] Non-Commercial; FLUX.1-schnell Apache-2.0"
DEFAULTS = Defaults(
    sampler="euler", steps=28, guidance=3.5, spacing="shift by size", dtype="bfloat16", side=1024, multiple_of=16
)
PARTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
OTHER_FILES = files_of("tokenizer", "tokenizer_2")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
RARE_WORDS = True
SIZES = (
    Size("black-forest-labs/FLUX.1-dev", 11.9, 5.0),
    Size("black-forest-labs/FLUX.1-schnell", 11.9, 5.0),
)
PURPOSE = "a large model without Diff-II, unless asked for"

_DRIVEN = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": CLIP_TOKENIZERS,
    "tokenizer_2": T5_TOKENIZERS,
}
_SIDE = 128  # latents, as diffusers' pipeline has it
_DISTILLED = "guidance by a scale that it is told, as FLUX.1-dev is (guidance_embeds)"
_FEW = "a few steps without guidance, as FLUX.1-schnell is (guidance_embeds false)"
_MOST_STEPS = 8


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    transformer = check_transformer(parts, "FluxTransformer2DModel", {"patch_size": (1,)})
    vae = parts.config("vae")
    if vae is not None:
        check_vae(vae, parts.headers["vae"])
    check_channels(transformer, vae, "latent_channels", 4, 4)
    pooled = check_language_model(folder, parts, "text_encoder", "tokenizer", "hidden_size", is_whole)
    check_widths(transformer, "pooled_projection_dim", pooled, "a CLIP")
    width = check_language_model(folder, parts, "text_encoder_2", "tokenizer_2", "d_model", is_whole)
    check_widths(transformer, "joint_attention_dim", width, "a T5")
    channels, factor = kl_measures(vae)
    facts = flow_facts(
        NAME,
        str(index["_class_name"]),
        read_flow_of(folder, is_whole, grid="even"),
        size=None if vae is None else size_in_pixels(spec, (_SIDE, _SIDE), factor, 2 * factor),
        latents=(channels, factor),
        tokens=2 * factor,
        samplers=FLOW_SAMPLERS,
        parts=("text", "pooled"),
    )
    return facts if transformer is None else _told(facts, is_dev=transformer.get("guidance_embeds") is True)


def _told(facts: ModelFacts, *, is_dev: bool) -> ModelFacts:
    from dataclasses import replace

    if is_dev:
        return replace(facts, guidance="embedded", made_for=_DISTILLED, inverts=False)
    return replace(facts, guidance="none", made_for=_FEW, inverts=False, most_steps=_MOST_STEPS)


def guess(hub_id: str) -> ModelFacts | None:
    """FLUX.1-schnell and -dev are known by their names."""
    for name in ("dev", "schnell"):
        if named(rf"flux\.1-{name}", hub_id):
            return _told(flow_facts(NAME, CLASSES[0], None, samplers=FLOW_SAMPLERS), is_dev=name == "dev")
    return None


def load(folder: Path, spec: BackboneSpec, device: device) -> FluxModel:
    """All networks get the spec's dtype."""
    from diffusers import FluxPipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.packed_models import FluxModel
    from diffaug_datasets.families.parts.transformer_models import PipelineText, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = FluxPipeline(scheduler=None, **read)
    length = 512 if facts.guidance == "embedded" else 256

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        states, pooled, _places = pipeline.encode_prompt(text, text, device=device, max_sequence_length=length)
        return {"text": states, "pooled": pooled}

    factor = pipeline.vae_scale_factor
    model = FluxModel(
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

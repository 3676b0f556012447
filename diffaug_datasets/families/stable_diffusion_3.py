"""Stable Diffusion 3 and 3.5: a transformer of 2 to 8 billion weights, two CLIPs and T5, 1024 px.

A rectified flow with a fixed shift of 3, guided by two branches. The text is 77 states of both CLIPs side by side, then
256 of T5, and a pooled text. Without T5 (`text_encoder_3` left out, which saves 9 GB) its states are zeros, as
diffusers has it; prompts are followed less closely then.

Diff-II inverts it (guidance 1, from the clean image up to the first label). Concepts are LoRA of the transformer under
a rare word and the class's name; methods that learn tokens alone, a condition per image, or through a U-Net are refused
at plan. Licence: Stability AI Community, free below one million dollars of yearly revenue. Usual: 3.5 Large 28 steps of
euler at guidance 3.5, 3.5 Medium 40 steps at 4.5, bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import FLOW_SAMPLERS, Defaults, ModelFacts, Size
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, check_vae, size_in_pixels
from diffaug_datasets.families.parts.transformer_folders import (
    CLIP_TOKENIZERS,
    T5_TOKENIZERS,
    Config,
    Parts,
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
from diffaug_datasets.numerics.timesteps import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.transformer_models import StableDiffusion3Model

NAME = "stable_diffusion_3"
TITLE = "Stable Diffusion 3 and 3.5"
CLASSES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
LICENCE = "Stability AI Community (free below 1 M$ of yearly revenue)"
DEFAULTS = Defaults(
    sampler="euler", steps=28, guidance=3.5, spacing="shift 3", dtype="bfloat16", side=1024, multiple_of=16
)
PARTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
OTHER_FILES = files_of("tokenizer", "tokenizer_2", "tokenizer_3")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
RARE_WORDS = True
SIZES = (
    Size("stabilityai/stable-diffusion-3.5-medium", 2.2, 5.7),
    Size("stabilityai/stable-diffusion-3.5-large", 8.1, 5.7),
)
PURPOSE = "a large model that still inverts, where its licence fits"

_DRIVEN = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel", None),
    "tokenizer": CLIP_TOKENIZERS,
    "tokenizer_2": CLIP_TOKENIZERS,
    "tokenizer_3": (*T5_TOKENIZERS, None),
}
_LENGTH = 256


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, _present(index), is_whole)
    transformer = check_transformer(parts, "SD3Transformer2DModel", {"patch_size": (2,)})
    vae = parts.config("vae")
    if vae is not None:
        check_vae(vae, parts.headers["vae"])
    check_channels(transformer, vae, "latent_channels", 1, 4)
    _check_texts(folder, parts, transformer, is_whole)
    channels, factor = kl_measures(vae)
    return flow_facts(
        NAME,
        str(index["_class_name"]),
        read_flow_of(folder, is_whole),
        size=None if vae is None or transformer is None else _size(spec, transformer, factor),
        latents=(channels, factor),
        tokens=2 * factor,
        samplers=FLOW_SAMPLERS,
        parts=("text", "pooled"),
    )


def _size(spec: BackboneSpec, transformer: Config, factor: int) -> tuple[int, int] | None:
    """(height, width) in pixels; the transformer has learned places for so many tokens a side, no more."""
    name = "transformer/config.json"
    native = whole_number(transformer, "sample_size", name, 128)
    size = size_in_pixels(spec, (native, native), factor, 2 * factor)
    most = whole_number(transformer, "pos_embed_max_size", name, 96) * 2 * factor
    if size and max(size) > most:
        raise Unfit(f"knows places up to {most} px, and {max(size)} px are asked for", "a smaller height and width")
    return size


def _present(index: Config) -> Mapping[str, str]:
    third = index.get("text_encoder_3")
    is_left_out = third is None or (isinstance(third, list) and not any(third))
    return {part: stem for part, stem in PARTS.items() if not (is_left_out and part == "text_encoder_3")}


def _check_texts(folder: Path, parts: Parts, transformer: Config | None, is_whole: bool) -> None:
    widths = []
    for part, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        check_language_model(folder, parts, part, tokenizer, "hidden_size", is_whole)
        config = parts.config(part)
        widths.append(None if config is None else whole_number(config, "projection_dim", f"{part}/config.json", 512))
    known = [width for width in widths if width is not None]
    check_widths(transformer, "pooled_projection_dim", sum(known) if len(known) == 2 else None, "pooled texts")
    if "text_encoder_3" in parts.configs:
        width = check_language_model(folder, parts, "text_encoder_3", "tokenizer_3", "d_model", is_whole)
        check_widths(transformer, "joint_attention_dim", width, "a T5")


def load(folder: Path, spec: BackboneSpec, device: device) -> StableDiffusion3Model:
    """All networks get the spec's dtype."""
    from diffusers import StableDiffusion3Pipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.transformer_models import PipelineText, StableDiffusion3Model, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    missing = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    pipeline = StableDiffusion3Pipeline(scheduler=None, **{**missing, **read})

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        states, _none, pooled, _none = pipeline.encode_prompt(
            text, text, text, device=device, do_classifier_free_guidance=False, max_sequence_length=_LENGTH
        )
        return {"text": states, "pooled": pooled}

    side = int(pipeline.transformer.config.sample_size) * pipeline.vae_scale_factor
    model = StableDiffusion3Model(
        facts,
        pipeline.transformer,
        pipeline.vae,
        PipelineText(encode),
        device,
        levels=transformer_loading.levels_of(folder, tokens=2 * pipeline.vae_scale_factor),
        side=side,
    )
    try_once(model)
    return model

"""Z-Image: a transformer of 6 billion weights and a Qwen3 as its text encoder, 1024 px.

A rectified flow with a fixed shift, whose network says the velocity with the other sign and counts time the other way;
both are turned here. Texts are read through Qwen3's chat template at their own length, up to 512 tokens, so rows are
told theirs one by one. Guidance as everywhere here: 1 is none. diffusers counts from 0, so its 4 is 5 here and its 0,
for Z-Image-Turbo, is 1.

Z-Image-Turbo, known by its name, was distilled to eight evaluations without guidance; Diff-II, which inverts, is
refused on it, unless asked for (`config.on_distilled`). Concepts are LoRA of the transformer under a rare word and the
class's name; methods that learn tokens alone, a condition per image, or through a U-Net are refused at plan. Licence:
Apache 2.0. Usual: 50 steps of euler at guidance 5, Turbo 9 steps at 1, bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import FLOW_SAMPLERS, Defaults, ModelFacts, Size, named
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, check_vae, size_in_pixels
from diffaug_datasets.families.parts.transformer_folders import (
    QWEN_TOKENIZERS,
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

    from diffaug_datasets.families.parts.packed_models import ZImageModel

NAME = "z_image"
TITLE = "Z-Image"
CLASSES = ("ZImagePipeline", "ZImageImg2ImgPipeline")
LICENCE = "Apache-2.0"
DEFAULTS = Defaults(
    sampler="euler", steps=50, guidance=5.0, spacing="fixed shift", dtype="bfloat16", side=1024, multiple_of=16
)
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = files_of("tokenizer")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RARE_WORDS = True
SIZES = (
    Size("Tongyi-MAI/Z-Image", 6.2, 4.1),
    Size("Tongyi-MAI/Z-Image-Turbo", 6.2, 4.1),
)
PURPOSE = "a large model of free licence; Turbo: few steps"

_DRIVEN = {
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("Qwen3ForCausalLM", "Qwen3Model"),
    "tokenizer": QWEN_TOKENIZERS,
}
_PIXELS = 1024  # as diffusers' pipeline has it
_LENGTH = 512
_FEW = "a few steps without guidance, as Z-Image-Turbo is (its name says so)"
_MOST_STEPS = 12


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    switches = {"all_patch_size": ([2],), "all_f_patch_size": ([1],), "siglip_feat_dim": (None,)}
    transformer = check_transformer(parts, "ZImageTransformer2DModel", switches)
    vae = parts.config("vae")
    if vae is not None:
        check_vae(vae, parts.headers["vae"])
    check_channels(transformer, vae, "latent_channels", 1, 4)
    width = check_language_model(folder, parts, "text_encoder", "tokenizer", "hidden_size", is_whole)
    check_widths(transformer, "cap_feat_dim", width, "a text encoder")
    channels, factor = kl_measures(vae)
    side = _PIXELS // factor
    facts = flow_facts(
        NAME,
        str(index["_class_name"]),
        read_flow_of(folder, is_whole, grid="even"),
        size=None if vae is None else size_in_pixels(spec, (side, side), factor, 2 * factor),
        latents=(channels, factor),
        tokens=2 * factor,
        samplers=FLOW_SAMPLERS,
        parts=("text", "mask"),
    )
    return _turbo(facts) if _is_turbo(spec.id) or _is_turbo(folder.name) else facts


def _is_turbo(name: str) -> bool:
    return named("z[-_]image[-_]turbo", name)


def _turbo(facts: ModelFacts) -> ModelFacts:
    return replace(facts, guidance="none", made_for=_FEW, inverts=False, most_steps=_MOST_STEPS)


def guess(hub_id: str) -> ModelFacts | None:
    """Z-Image-Turbo is known by its name."""
    return _turbo(flow_facts(NAME, CLASSES[0], None, samplers=FLOW_SAMPLERS)) if _is_turbo(hub_id) else None


def load(folder: Path, spec: BackboneSpec, device: device) -> ZImageModel:
    """All networks get the spec's dtype."""
    from diffusers import ZImagePipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.packed_models import ZImageModel
    from diffaug_datasets.families.parts.transformer_models import PipelineText, padded, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = ZImagePipeline(scheduler=None, **read)

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        (states,), _none = pipeline.encode_prompt(
            text, device=device, do_classifier_free_guidance=False, max_sequence_length=_LENGTH
        )
        return padded(states, _LENGTH)

    model = ZImageModel(
        facts,
        read["transformer"],
        read["vae"],
        PipelineText(encode),
        device,
        levels=transformer_loading.levels_of(folder, tokens=2 * pipeline.vae_scale_factor, grid="even"),
        side=_PIXELS,
    )
    try_once(model)
    return model

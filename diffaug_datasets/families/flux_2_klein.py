"""FLUX.2-klein: a transformer of 4 or 9 billion weights and a Qwen3 as its text encoder, 1024 px.

A rectified flow whose shift grows with the number of tokens and falls with the number of steps. Texts are read through
Qwen3's chat template, 512 tokens of three of its layers. Latents are normalised by the running statistics of the VAE's
batch norm. FLUX.2-klein-base is guided by two branches, the one without a prompt reading an empty text unless a
negative prompt is given; FLUX.2-klein was distilled to four steps without guidance, and Diff-II, which inverts, is
refused on it.

Concepts are LoRA of the transformer under a rare word and the class's name; methods that learn tokens alone, a
condition per image, or through a U-Net are refused at plan. Licence: Apache 2.0 (4B), FLUX Non-Commercial (9B). Usual:
base 50 steps of euler at guidance 4, klein 4 steps at guidance 1, bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import FLOW_SAMPLERS, Defaults, ModelFacts, Size, named
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import check_index, size_in_pixels, widths_of
from diffaug_datasets.families.parts.transformer_folders import (
    QWEN_TOKENIZERS,
    check_channels,
    check_language_model,
    check_other_vae,
    check_transformer,
    check_widths,
    files_of,
    flow_facts,
    read_flow_of,
    read_parts,
)
from diffaug_datasets.numerics.flow import DynamicShift, FittedShift, FlowSchedule
from diffaug_datasets.numerics.timesteps import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.packed_models import Flux2Model

NAME = "flux_2_klein"
TITLE = "FLUX.2-klein"
CLASSES = ("Flux2KleinPipeline",)
LICENCE = "Apache-2.0 (4B); FLUX Non-Commercial (9B)"
DEFAULTS = Defaults(
    sampler="euler",
    steps=50,
    guidance=4.0,
    spacing="shift by size and steps",
    dtype="bfloat16",
    side=1024,
    multiple_of=16,
)
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = files_of("tokenizer")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
RARE_WORDS = True
SIZES = (
    Size("black-forest-labs/FLUX.2-klein-4B", 3.9, 4.1),
    Size("black-forest-labs/FLUX.2-klein-base-4B", 3.9, 4.1),
    Size("black-forest-labs/FLUX.2-klein-9B", 9.1, 8.3),
    Size("black-forest-labs/FLUX.2-klein-base-9B", 9.1, 8.3),
)
PURPOSE = "a large model of free licence (4B) that fits one card; base: Diff-II too"

_DRIVEN = {
    "transformer": ("Flux2Transformer2DModel",),
    "vae": ("AutoencoderKLFlux2",),
    "text_encoder": ("Qwen3ForCausalLM", "Qwen3Model"),
    "tokenizer": QWEN_TOKENIZERS,
}
_SIDE = 128  # latents, as diffusers' pipeline has it
_LAYERS = (9, 18, 27)
_LENGTH = 512
_FEW = "a few steps without guidance, as FLUX.2-klein is (is_distilled)"
_MOST_STEPS = 8


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    switches = {"patch_size": (1,), "guidance_embeds": (False,)}
    transformer = check_transformer(parts, "Flux2Transformer2DModel", switches)
    vae = check_other_vae(parts, "AutoencoderKLFlux2")
    if vae is not None and vae.get("patch_size", [2, 2]) != [2, 2]:
        raise Unfit(f"has a VAE with patch_size {vae['patch_size']!r}", "[2, 2]")
    check_channels(transformer, vae, "latent_channels", 4, 32)
    width = check_language_model(folder, parts, "text_encoder", "tokenizer", "hidden_size", is_whole)
    check_widths(transformer, "joint_attention_dim", None if width is None else len(_LAYERS) * width, "texts")
    _check_layers(parts.config("text_encoder"))
    channels, factor, size = 32, 8, None
    if vae is not None:
        channels = whole_number(vae, "latent_channels", "vae/config.json", 32)
        factor = 2 ** (len(widths_of(vae, "vae/config.json", [128, 256, 512, 512])) - 1)
        size = size_in_pixels(spec, (_SIDE, _SIDE), factor, 2 * factor)
    facts = flow_facts(
        NAME,
        str(index["_class_name"]),
        _fitted(read_flow_of(folder, is_whole, grid="even")),
        size=size,
        latents=(4 * channels, 2 * factor),
        tokens=2 * factor,
        samplers=FLOW_SAMPLERS,
    )
    return _distilled(facts) if index.get("is_distilled") is True else facts


def _check_layers(text: Mapping[str, object] | None) -> None:
    if text is None:
        return
    layers = whole_number(text, "num_hidden_layers", "text_encoder/config.json", 32)
    if layers < max(_LAYERS):
        raise Unfit(f"has a text encoder of {layers} layers", f"{max(_LAYERS)} or more, of which {_LAYERS} are read")


def _fitted(schedule: FlowSchedule | None) -> FlowSchedule | None:
    return schedule and replace(schedule, dynamic=schedule.dynamic and _shift(schedule.dynamic))


def _shift(stated: DynamicShift) -> FittedShift:
    """Its pipeline fits mu and leaves the line that the scheduler states alone."""
    return FittedShift(kind=stated.kind, terminal=stated.terminal)


def _distilled(facts: ModelFacts) -> ModelFacts:
    return replace(facts, guidance="none", made_for=_FEW, inverts=False, most_steps=_MOST_STEPS)


def guess(hub_id: str) -> ModelFacts | None:
    """FLUX.2-klein is known by its name, and its base too."""
    if not named(r"flux\.2-klein", hub_id):
        return None
    facts = flow_facts(NAME, CLASSES[0], None, samplers=FLOW_SAMPLERS)
    return facts if named("base", hub_id) else _distilled(facts)


def load(folder: Path, spec: BackboneSpec, device: device) -> Flux2Model:
    """All networks get the spec's dtype."""
    from diffusers import Flux2KleinPipeline

    from diffaug_datasets.families.parts import transformer_loading
    from diffaug_datasets.families.parts.packed_models import Flux2Model
    from diffaug_datasets.families.parts.transformer_models import PipelineText, try_once

    facts = check(folder, spec, True)
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = Flux2KleinPipeline(scheduler=None, **read)

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        states, _places = pipeline.encode_prompt(
            text, device=device, max_sequence_length=_LENGTH, text_encoder_out_layers=_LAYERS
        )
        return {"text": states}

    factor = pipeline.vae_scale_factor
    model = Flux2Model(
        facts,
        read["transformer"],
        read["vae"],
        PipelineText(encode),
        device,
        levels=transformer_loading.levels_of(folder, tokens=2 * factor, grid="even", shift=_shift),
        side=_SIDE * factor,
    )
    try_once(model)
    return model

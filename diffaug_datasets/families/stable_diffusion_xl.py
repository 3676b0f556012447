"""Stable Diffusion XL: a U-Net of 2.6 billion weights, two CLIP text encoders, 1024 px.

Podell et al. 2023, arXiv 2307.01952. Its network is told the states of both encoders, a pooled text, and the size that
a picture is said to have had and the crop that was taken, here always the size asked for and no crop, as diffusers has
it. With it: SDXL-Turbo (`ancestral` as its own scheduler, or `ddim` without later noise; 1 to 8 steps, guidance_scale
1) and consistency models of the same shape (`lcm`).

Licence: CreativeML Open RAIL++-M; SDXL-Turbo: Stability AI Community. Usual: 50 steps of dpm or ddim at guidance 5,
float16 on a GPU, sides that are multiples of 8 near 1024 (Turbo: 512). In float16 its VAE overflows, so a VAE that says
`force_upcast` stays float32. Methods mean what they mean on Stable Diffusion 1.x, but for what learns a condition per
image (Diffusion Inversion) or LoRA of one text encoder (DataDream), which are refused. Learned tokens are rows in both
text encoders, LoRA lies beside all attention projections of the U-Net. The refiner, which is told an aesthetic score,
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import Defaults, ModelFacts, Size, named
from diffaug_datasets.core.model_files import Damage, whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import (
    CLIP_TOKENIZERS,
    SCHEDULER,
    check_clip_text,
    check_index,
    check_vae,
    read_header_of,
    read_part,
    read_scheduler_settings,
)
from diffaug_datasets.families.parts.unet_folders import UNET, check_together, check_unet, facts_of, turbo
from diffaug_datasets.numerics.timesteps import SchedulerSettings, Unfit

if TYPE_CHECKING:
    from torch import device

    from diffaug_datasets.families.parts.unets import UNetModel

NAME = "stable_diffusion_xl"
TITLE = "Stable Diffusion XL"
CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
LICENCE = "CreativeML Open RAIL++-M; SDXL-Turbo: Stability AI Community"
DEFAULTS = Defaults(sampler="dpm", steps=50, guidance=5.0, spacing="leading", dtype="float16", side=1024)
SIZES = (
    Size("stabilityai/stable-diffusion-xl-base-1.0", 2.57, 0.9),
    Size("stabilityai/sdxl-turbo", 2.57, 0.9),
)
PURPOSE = "1024 px with learned tokens; Turbo: few steps"
PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
OTHER_FILES = ("tokenizer/*.json", "tokenizer/*.txt", "tokenizer_2/*.json", "tokenizer_2/*.txt")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TOKENS = ("text_encoder", "text_encoder_2")

_DRIVEN = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": CLIP_TOKENIZERS,
    "tokenizer_2": CLIP_TOKENIZERS,
}
_SWITCHES = {"requires_aesthetics_score": (False, None), "force_zeros_for_empty_prompt": (True, False)}
_USUAL_SIDE = 128
_NUMBERS = 6  # of a picture that the U-Net is told: its size, its crop, the size asked for


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    kind = str(check_index(folder, _DRIVEN, _SWITCHES)["_class_name"])
    configs = {part: read_part(folder, part, is_whole) for part in PARTS}
    headers = {part: read_header_of(folder, part, stem, spec, is_whole) for part, stem in PARTS.items()}
    unet, vae, first, second = (configs[part] for part in PARTS)
    if unet is not None:
        check_unet(unet, headers["unet"], {"addition_embed_type": "text_time"})
    if vae is not None:
        check_vae(vae, headers["vae"])
    for part, config, tokenizer in (("text_encoder", first, "tokenizer"), ("text_encoder_2", second, "tokenizer_2")):
        if config is not None:
            kinds = ("CLIPTextModelWithProjection",) if part == "text_encoder_2" else ("CLIPTextModel", "CLIPModel")
            check_clip_text(folder, part, tokenizer, config, headers[part], is_whole, kinds)
    if unet is not None and vae is not None and first is not None and second is not None:
        _check_told(unet, vae, first, second)
    is_here = is_whole or (folder / SCHEDULER).is_file()
    settings = _settings(folder, spec) if is_here else SchedulerSettings(steps_offset=1)
    facts = facts_of(NAME, kind, settings, spec, unet, vae, _USUAL_SIDE)
    return replace(facts, parts=("text", "pooled"))


def guess(hub_id: str) -> ModelFacts | None:
    """SDXL-Turbo is known by its name."""
    facts = ModelFacts(NAME, CLASSES[0], is_unet=True, parts=("text", "pooled"))
    return turbo(facts, is_ancestral=True) if named("sdxl[-_]?turbo", hub_id) else None


def load(folder: Path, spec: BackboneSpec, device: device) -> UNetModel:
    """The U-Net gets the spec's dtype, and the VAE unless it overflows there; the text encoders are float32."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from diffaug_datasets.families.parts import loaders
    from diffaug_datasets.families.parts.clip_pair import PairEncoder, Penultimate
    from diffaug_datasets.families.parts.unets import SizedUNetModel, try_once

    facts = check(folder, spec, True)
    index = check_index(folder, _DRIVEN, _SWITCHES)
    schedule = loaders.build_schedule(_settings(folder, spec))
    dtype = getattr(torch, spec.dtype)
    overflows = spec.dtype == "float16" and (read_part(folder, "vae", True) or {}).get("force_upcast", True)
    sides = []
    with loaders.quiet():
        unet = loaders.read_network(UNet2DConditionModel, folder, "unet", spec, torch_dtype=dtype)
        vae_dtype = torch.float32 if overflows else dtype
        vae = loaders.read_network(AutoencoderKL, folder, "vae", spec, torch_dtype=vae_dtype)
        for kind, number in ((CLIPTextModel, ""), (CLIPTextModelWithProjection, "_2")):
            encoder = loaders.read_network(kind, folder, f"text_encoder{number}", spec).float()
            rows = encoder.get_input_embeddings().num_embeddings
            tokenizer = loaders.read_tokenizer(CLIPTokenizer, folder / f"tokenizer{number}", rows)
            loaders.check_ends(tokenizer, folder / f"tokenizer{number}")
            sides.append(Penultimate(tokenizer, encoder))
    for network in (unet, vae, *(side.text_encoder for side in sides)):
        loaders.freeze(network, device)
    text = PairEncoder(*sides, zeros_when_empty=bool(index.get("force_zeros_for_empty_prompt", True)))
    model = SizedUNetModel(facts, unet, vae, text, schedule, device)
    try_once(model)
    return model


def _settings(folder: Path, spec: BackboneSpec) -> SchedulerSettings:
    """What its scheduler says; one that works on sigmas ends without noise, whatever else its file holds."""
    settings = read_scheduler_settings(folder, spec.id)
    return replace(settings, set_alpha_to_one=True) if settings.ends_clean else settings


def _check_told(
    unet: Mapping[str, object], vae: Mapping[str, object], first: Mapping[str, object], second: Mapping[str, object]
) -> None:
    """Whether what the text encoders say is as wide as what the U-Net takes."""
    names = ("text_encoder/config.json", "text_encoder_2/config.json")
    both = list(zip((first, second), names, strict=True))
    widths = [whole_number(config, "hidden_size", name, 512) for config, name in both]
    check_together(unet, vae, sum(widths), is_editor=False)
    lengths = [whole_number(config, "max_position_embeddings", name, 77) for config, name in both]
    if lengths[0] != lengths[1]:
        raise Damage(f"its text encoders read {lengths[0]} and {lengths[1]} tokens, expected as many")
    pooled = whole_number(second, "projection_dim", names[1], 512)
    told = _NUMBERS * whole_number(unet, "addition_time_embed_dim", UNET) + pooled
    if (wanted := unet.get("projection_class_embeddings_input_dim")) != told:
        raise Unfit(f"has a U-Net that takes {wanted} numbers of text and size", f"the {told} of its text encoder")

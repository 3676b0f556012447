"""Stable Diffusion 1.x and 2.x: a U-Net of 0.86 billion weights, one CLIP text encoder, 512 or 768 px.

What the papers of the shipped methods were made with, so every method means on it what its page says. With it: models
of the same shape that predict v or x0, end without signal (zero terminal SNR), or were distilled to a few steps
without guidance (SD-Turbo: `ddim`, 1 to 8 steps, guidance_scale 1), and InstructPix2Pix, whose U-Net sees an image
beside the state, for methods that edit by instruction.

Licence: CreativeML Open RAIL-M (1.x), OpenRAIL++-M (2.x); SD-Turbo: Stability AI Community. Usual: 50 steps of dpm,
ddim or plms at guidance 7.5, float16 on a GPU, sides that are multiples of 8. Learned tokens go into its text encoder,
LoRA beside all attention projections of its U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import VP_SAMPLERS, Defaults, ModelFacts, named
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.folders import (
    CLIP_TOKENIZERS,
    SCHEDULER,
    Header,
    check_clip_text,
    check_index,
    check_network,
    check_shape,
    check_vae,
    read_header_of,
    read_part,
    read_scheduler_settings,
    sides_of,
    size_in_pixels,
    widths_of,
)
from diffaug_datasets.numerics.timesteps import FEW_STEPS, SchedulerSettings, Unfit

if TYPE_CHECKING:
    from torch import device

    from diffaug_datasets.families.parts.unets import UNetModel

EDITOR = "StableDiffusionInstructPix2PixPipeline"

NAME = "stable_diffusion"
TITLE = "Stable Diffusion 1.x and 2.x"
CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", EDITOR)
LICENCE = "CreativeML Open RAIL-M (1.x), OpenRAIL++-M (2.x)"
DEFAULTS = Defaults(sampler="dpm", steps=50, guidance=7.5, spacing="leading", dtype="float16", side=512)
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TOKENS = ("text_encoder",)

_DRIVEN = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": CLIP_TOKENIZERS,
}
_EXTRA_INPUTS: tuple[str, ...] = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim")
_EXTRA_INPUTS += ("encoder_hid_dim_type",)


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    kind = str(check_index(folder, _DRIVEN)["_class_name"])
    configs = {part: read_part(folder, part, is_whole) for part in PARTS}
    headers = {part: read_header_of(folder, part, stem, spec, is_whole) for part, stem in PARTS.items()}
    unet, vae, text = (configs[part] for part in ("unet", "vae", "text_encoder"))
    if unet is not None:
        _check_unet(unet, headers["unet"])
    if vae is not None:
        check_vae(vae, headers["vae"])
    if text is not None:
        check_clip_text(folder, "text_encoder", "tokenizer", text, headers["text_encoder"], is_whole)
    if unet is not None and vae is not None and text is not None:
        _check_together(unet, vae, text, kind == EDITOR)
    is_here = is_whole or (folder / SCHEDULER).is_file()
    settings = read_scheduler_settings(folder, spec.id) if is_here else SchedulerSettings(steps_offset=1)
    return facts_of(NAME, kind, settings, spec, unet, vae)


def facts_of(
    family: str,
    kind: str,
    settings: SchedulerSettings,
    spec: BackboneSpec,
    unet: Mapping[str, object] | None,
    vae: Mapping[str, object] | None,
) -> ModelFacts:
    """The facts of a pipeline of one U-Net that is sampled as its scheduler's settings say."""
    samplers = tuple(name for name in VP_SAMPLERS if not (settings.is_zero_snr and name == "plms"))
    facts = ModelFacts(
        family,
        kind,
        prediction=settings.prediction_type,  # type: ignore[arg-type]
        timeline=settings.timeline,
        samplers=samplers,
        edits=kind == EDITOR,
        is_unet=True,
        is_zero_snr=settings.is_zero_snr,
    )
    if unet is not None and vae is not None:
        factor = 2 ** (len(widths_of(vae, "vae/config.json", [64])) - 1)
        own = sides_of(unet, "unet/config.json") or (64, 64)
        size = size_in_pixels(spec, own, factor, factor)
        if size:
            channels = whole_number(vae, "latent_channels", "vae/config.json", 4)
            shape = (channels, size[0] // factor, size[1] // factor)
            facts = replace(facts, latent_shape=shape, height=size[0], width=size[1], multiple_of=factor)
    return turbo(facts) if settings.is_few_step else facts


def turbo(facts: ModelFacts) -> ModelFacts:
    """The same of a model that was distilled to a few steps without guidance and is sampled without later noise."""
    return replace(
        facts,
        guidance="none",
        samplers=("ddim",),
        most_steps=FEW_STEPS,
        made_for="a few steps without guidance, as Turbo models are (an EulerDiscreteScheduler with timestep_spacing "
        "'trailing')",
        otherwise="of an ordinary model, write 'linspace' in its scheduler/scheduler_config.json",
    )


def guess(hub_id: str) -> ModelFacts | None:
    """SD-Turbo is known by its name."""
    return turbo(ModelFacts(NAME, CLASSES[0], is_unet=True)) if named("sd[-_]?turbo", hub_id) else None


def load(folder: Path, spec: BackboneSpec, device: device) -> UNetModel:
    """U-Net and VAE get the spec's dtype; the text encoder, run once per prompt, is float32."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from diffaug_datasets.families.parts import loaders
    from diffaug_datasets.families.parts.clip_text import PromptEncoder
    from diffaug_datasets.families.parts.unets import UNetModel, try_once

    facts, settings = check(folder, spec, True), read_scheduler_settings(folder, spec.id)
    schedule = loaders.build_schedule(settings)
    dtype = getattr(torch, spec.dtype)
    with loaders.quiet():
        unet = loaders.read_network(UNet2DConditionModel, folder, "unet", spec, torch_dtype=dtype)
        vae = loaders.read_network(AutoencoderKL, folder, "vae", spec, torch_dtype=dtype)
        text_encoder = loaders.read_network(CLIPTextModel, folder, "text_encoder", spec).float()
        rows = text_encoder.get_input_embeddings().num_embeddings
        tokenizer = loaders.read_tokenizer(CLIPTokenizer, folder / "tokenizer", rows)
        loaders.check_ends(tokenizer, folder / "tokenizer")
    for network in (text_encoder, unet, vae):
        loaders.freeze(network, device)
    model = UNetModel(facts, unet, vae, PromptEncoder(tokenizer, text_encoder), schedule, device)
    try_once(model)
    return model


def _check_unet(unet: Mapping[str, object], header: Header) -> None:
    name = "unet/config.json"
    check_network(unet, name, "UNet2DConditionModel")
    if unet.get("time_cond_proj_dim") is not None:
        raise Unfit(
            "has a U-Net that takes the guidance scale (time_cond_proj_dim), as few-step models do", "an ordinary one"
        )
    for key in _EXTRA_INPUTS:
        if unet.get(key) is not None:
            raise Unfit(f"has a U-Net with an extra input ({key})", "one that takes time and text alone")
    if unet.get("attention_type", "default") != "default":
        raise Unfit(f"has a U-Net with {unet['attention_type']!r} attention", "one that takes time and text alone")
    taken, given = (whole_number(unet, key, name, 4) for key in ("in_channels", "out_channels"))
    if given == 2 * taken:
        raise Unfit("has a U-Net that predicts a variance too", "one that predicts noise alone")
    sides_of(unet, name)
    widths = widths_of(unet, name, [320, 640, 1280, 1280])
    width = whole_number(unet, "cross_attention_dim", name)
    if header is None:
        return
    check_shape(header, "conv_in.weight", {0: widths[0], 1: taken}, "unet")
    check_shape(header, "conv_out.weight", {0: given, 1: widths[0]}, "unet")
    for key in header:
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            check_shape(header, key, {1: width}, "unet")


def _check_together(
    unet: Mapping[str, object], vae: Mapping[str, object], text: Mapping[str, object], is_editor: bool
) -> None:
    channels, latents = unet.get("in_channels", 4), whole_number(vae, "latent_channels", "vae/config.json", 4)
    if is_editor and channels != 2 * latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"{2 * latents}: latents, and those of the image")
    if not is_editor and channels != latents:
        raise Unfit(f"has a U-Net that takes {channels} channels", f"the {latents} of its VAE's latents")
    if (given := unet.get("out_channels", 4)) != latents:
        raise Unfit(f"has a U-Net that gives {given} channels", f"the {latents} of its VAE's latents")
    width, wanted = text.get("hidden_size", 512), unet["cross_attention_dim"]
    if width != wanted:
        raise Unfit(f"has a text encoder of width {width}", f"the {wanted} that its U-Net attends to")

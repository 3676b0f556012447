"""PixArt-alpha and PixArt-Sigma: a transformer of 0.6 billion weights and T5, 256 to 2048 px.

No flow but DDPM's linear betas, with eps and a variance in one prediction, of which eps is used. 120 (alpha) or 300
(Sigma) tokens of a text are read, in lower letters. Among the models with a transformer the cheapest to run beside its
T5 of 4.7 billion weights, which is asked once per prompt.

Methods mean on it what they mean on Stable Diffusion 1.5, but its levels of noise follow linear betas; Diff-II inverts
it. Concepts are LoRA of the transformer under a rare word and the class's name; methods that learn tokens alone, a
condition per image, or through a U-Net are refused at plan. Licence: CreativeML Open RAIL++-M. Usual: 20 steps of dpm
at guidance 4.5, float16 or bfloat16, sides that are multiples of 16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import VP_SAMPLERS, Defaults, ModelFacts, Size
from diffaug_datasets.core.model_files import whole_number
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.diffusers_folders import (
    SCHEDULER,
    check_index,
    check_vae,
    read_scheduler_settings,
    size_in_pixels,
)
from diffaug_datasets.families.parts.transformer_folders import (
    T5_TOKENIZERS,
    check_channels,
    check_language_model,
    check_transformer,
    check_widths,
    files_of,
    kl_measures,
    read_parts,
)
from diffaug_datasets.numerics.timesteps import SchedulerSettings, Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, device

    from diffaug_datasets.families.parts.transformer_models import PixArtModel

NAME = "pixart"
TITLE = "PixArt-alpha and PixArt-Sigma"
CLASSES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
LICENCE = "CreativeML Open RAIL++-M"
DEFAULTS = Defaults(
    sampler="dpm", steps=20, guidance=4.5, spacing="linspace", dtype="float16", side=1024, multiple_of=16
)
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
OTHER_FILES = files_of("tokenizer")
LORA_PREFIX = "transformer"
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RARE_WORDS = True
SIZES = (
    Size("PixArt-alpha/PixArt-XL-2-1024-MS", 0.6, 4.8),
    Size("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 0.6, 4.8),
)
PURPOSE = "a small transformer that predicts eps, as Stable Diffusion does"

_DRIVEN = {
    "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": T5_TOKENIZERS,
}
_LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    index = check_index(folder, _DRIVEN)
    parts = read_parts(folder, spec, index, PARTS, is_whole)
    transformer = check_transformer(parts, "PixArtTransformer2DModel", {"patch_size": (2,)})
    vae = parts.config("vae")
    if vae is not None:
        check_vae(vae, parts.headers["vae"])
    check_channels(transformer, vae, "latent_channels", 1, 4)
    width = check_language_model(folder, parts, "text_encoder", "tokenizer", "d_model", is_whole)
    check_widths(transformer, "caption_channels", width, "a T5")
    is_here = is_whole or (folder / SCHEDULER).is_file()
    settings = read_scheduler_settings(folder, spec.id) if is_here else SchedulerSettings()
    if settings.prediction_type != "epsilon" or settings.is_zero_snr:
        raise Unfit(f"has a scheduler for {settings.prediction_type}", "one for eps, as PixArt was trained")
    size = shape = None
    channels, factor = kl_measures(vae)
    if vae is not None and transformer is not None:
        native = whole_number(transformer, "sample_size", "transformer/config.json", 128)
        size = size_in_pixels(spec, (native, native), factor, 2 * factor)
        shape = size and (channels, size[0] // factor, size[1] // factor)
    return ModelFacts(
        NAME,
        str(index["_class_name"]),
        timeline=settings.timeline,
        samplers=VP_SAMPLERS,
        latent_shape=shape or None,
        height=size[0] if size else None,
        width=size[1] if size else None,
        multiple_of=2 * factor,
        parts=("text", "mask"),
    )


def load(folder: Path, spec: BackboneSpec, device: device) -> PixArtModel:
    """All networks get the spec's dtype."""
    import diffusers

    from diffaug_datasets.families.parts import loaders, transformer_loading
    from diffaug_datasets.families.parts.transformer_models import PipelineText, PixArtModel, try_once

    facts = check(folder, spec, True)
    schedule = loaders.build_schedule(read_scheduler_settings(folder, spec.id))
    read = transformer_loading.read_pipeline(folder, spec, device)
    pipeline = getattr(diffusers, facts.kind)(scheduler=None, **read)

    def encode(text: str, _: bool) -> Mapping[str, Tensor]:
        states, mask, _none, _none = pipeline.encode_prompt(
            text, False, device=device, clean_caption=False, max_sequence_length=_LENGTHS[facts.kind]
        )
        return {"text": states, "mask": mask}

    model = PixArtModel(
        facts,
        read["transformer"],
        read["vae"],
        PipelineText(encode),
        device,
        levels=lambda _height, _width: schedule,
        side=int(read["transformer"].config.sample_size) * pipeline.vae_scale_factor,
    )
    try_once(model)
    return model

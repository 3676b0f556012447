"""The published transformers by configuration alone: parameter counts and latent shapes, nothing loaded or downloaded.

Configurations are those of diffusers' conversion scripts (Stable Diffusion 3 at 3ab805a, Sana at 065628f, PixArt at
1732580) and, of FLUX.1 and Qwen-Image, of its classes' defaults; counts are what cards and papers say ("12B", "1.6B"),
with the learned places that a checkpoint of Stable Diffusion 3 holds as a buffer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from diffaug_datasets.core.family import discover_families
from diffaug_datasets.core.models import BackboneSpec

KL = ("AutoencoderKL", {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32})
KL_16 = (KL[0], {**KL[1], "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159})
KL_SD3 = (KL[0], {**KL[1], "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609})
KL_4 = (KL[0], {**KL[1], "latent_channels": 4, "scaling_factor": 0.13025})
FLUX_2 = ("AutoencoderKLFlux2", {"latent_channels": 32, "block_out_channels": [128, 256, 512, 512]})
DC = ("AutoencoderDC", {"latent_channels": 32, "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]})
QWEN = ("AutoencoderKLQwenImage", {"z_dim": 16, "temperal_downsample": [False, True, True]})


@dataclass(frozen=True)
class Published:
    """`billions`: as its card or paper rounds them; `latent`: of an image of `side` px."""

    family: str
    pipeline: str
    kind: str
    config: Mapping[str, Any]
    vae: tuple[str, Mapping[str, Any]]
    billions: str
    side: int
    latent: tuple[int, int, int]
    exactly: int | None = None


SD3 = {"sample_size": 128, "attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
PIXART = {"sample_size": 128, "caption_channels": 4096}
PUBLISHED = {
    "SD 3 Medium": Published(
        *("stable_diffusion_3", "StableDiffusion3Pipeline", "SD3Transformer2DModel"),
        {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
        *(KL_SD3, "2", 1024, (16, 128, 128), 2_028_328_000),
    ),
    "SD 3.5 Medium": Published(
        *("stable_diffusion_3", "StableDiffusion3Pipeline", "SD3Transformer2DModel"),
        {
            **SD3,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
        *(KL_SD3, "2.5", 1024, (16, 128, 128)),
    ),
    "SD 3.5 Large": Published(
        *("stable_diffusion_3", "StableDiffusion3Pipeline", "SD3Transformer2DModel"),
        {
            **SD3,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        *(KL_SD3, "8.1", 1024, (16, 128, 128)),
    ),
    "FLUX.1-dev": Published(
        *("flux", "FluxPipeline", "FluxTransformer2DModel"),
        {"guidance_embeds": True},
        *(KL_16, "12", 1024, (16, 128, 128), 11_901_408_320),
    ),
    "FLUX.1-schnell": Published(
        *("flux", "FluxPipeline", "FluxTransformer2DModel"), {}, *(KL_16, "12", 1024, (16, 128, 128))
    ),
    "FLUX.2-klein-4B": Published(
        *("flux_2_klein", "Flux2KleinPipeline", "Flux2Transformer2DModel"),
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        *(FLUX_2, "4", 1024, (128, 64, 64)),
    ),
    "FLUX.2-klein-9B": Published(
        *("flux_2_klein", "Flux2KleinPipeline", "Flux2Transformer2DModel"),
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
        *(FLUX_2, "9", 1024, (128, 64, 64)),
    ),
    "Z-Image": Published(
        *("z_image", "ZImagePipeline", "ZImageTransformer2DModel"),
        {"axes_lens": [1536, 512, 512]},
        *(KL_16, "6", 1024, (16, 128, 128), 6_154_908_736),
    ),
    "Sana 1.6B": Published(
        *("sana", "SanaPipeline", "SanaTransformer2DModel"), {}, *(DC, "1.6", 1024, (32, 32, 32), 1_604_462_752)
    ),
    "Sana 0.6B": Published(
        *("sana", "SanaPipeline", "SanaTransformer2DModel"),
        {
            "num_attention_heads": 36,
            "num_layers": 28,
            "num_cross_attention_heads": 16,
            "cross_attention_head_dim": 72,
            "cross_attention_dim": 1152,
            "sample_size": 16,
        },
        *(DC, "0.6", 512, (32, 16, 16)),
    ),
    "PixArt-Sigma": Published(
        *("pixart", "PixArtSigmaPipeline", "PixArtTransformer2DModel"),
        {**PIXART, "use_additional_conditions": False},
        *(KL_4, "0.6", 1024, (4, 128, 128)),
    ),
    "PixArt-alpha": Published(
        *("pixart", "PixArtAlphaPipeline", "PixArtTransformer2DModel"), PIXART, *(KL_4, "0.6", 1024, (4, 128, 128))
    ),
    "Qwen-Image": Published(
        *("qwen_image", "QwenImagePipeline", "QwenImageTransformer2DModel"),
        {},
        *(QWEN, "20", 1024, (16, 128, 128), 20_430_401_088),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "Sana 0.6B" else [pytest.mark.full]) for name in PUBLISHED]
)
def test_a_published_transformer_has_its_parameters(name: str) -> None:
    it = PUBLISHED[name]
    with torch.device("meta"):
        network = getattr(diffusers, it.kind)(**it.config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert it.exactly in (None, parameters)
    whole = parameters + (sum(b.numel() for b in network.buffers()) if it.family == "stable_diffusion_3" else 0)
    digits = len(it.billions.partition(".")[2])
    assert f"{whole / 1e9:.{digits}f}" == it.billions


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_pipeline_has_its_latents_before_any_weight_is_here(name: str, tmp_path: Path) -> None:
    it = PUBLISHED[name]
    family = discover_families()[it.family]
    written = {"transformer": (it.kind, it.config), "vae": it.vae}
    for part, (kind, config) in written.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": kind, **config}), encoding="utf-8")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": it.pipeline}), encoding="utf-8")
    facts = family.check(tmp_path, BackboneSpec(id="someone/model"), False)
    assert (facts.height, facts.width, facts.latent_shape) == (it.side, it.side, it.latent)
    with pytest.raises(ValueError, match=f"expected multiples of {facts.multiple_of}"):
        family.check(tmp_path, BackboneSpec(id="someone/model", height=it.side + 8), False)

"""What is known of models of one U-Net at plan: sizes, and what is refused in one sentence."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch
import unet_tiny
from damaged_folders import fuzzed
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import discover_families, family_of
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.models.model_folder import check_backbone
from diffaug_datasets.planning.prepare import check_models

# config.json of stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-xl-base-1.0 and
# SimianLuo/LCM_Dreamshaper_v7 on the Hub, as far as they differ from the defaults of diffusers' classes.
SD_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
XL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": sd_tiny.build,
    "lcm": unet_tiny.lcm,
    "sdxl": unet_tiny.sdxl,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("facts") / name) for name, build in FAMILIES.items()}


def count(kind: Any, config: dict[str, Any]) -> int:
    with torch.device("meta"):
        network = kind.from_config(config) if hasattr(kind, "from_config") else kind(CLIPTextConfig(**config))
    return sum(parameter.numel() for parameter in network.parameters())


def test_real_sizes_are_the_published_ones() -> None:
    """The U-Nets as in the model cards: 860 million, 2.6 billion; the VAE 84, the text encoders 123 and 695 million."""
    assert count(UNet2DConditionModel, SD_UNET) == 859_520_964
    assert count(UNet2DConditionModel, XL_UNET) == 2_567_463_684
    assert count(UNet2DConditionModel, {**SD_UNET, "time_cond_proj_dim": 256}) == 859_520_964 + 256 * 320
    assert count(AutoencoderKL, VAE) == 83_653_863
    assert count(CLIPTextModel, CLIP_L) == 123_060_480
    assert count(CLIPTextModelWithProjection, CLIP_G) == 694_659_840


@pytest.mark.parametrize(
    ("build", "side", "shape"), [("sd", None, (4, 64, 64)), ("sdxl", None, (4, 128, 128)), ("sdxl", 768, (4, 96, 96))]
)
def test_latents_have_the_published_shapes(
    folders: dict[str, Path], tmp_path: Path, build: str, side: int | None, shape: tuple[int, int, int]
) -> None:
    """By the real configurations alone, as where weights are still to come from the Hub."""
    index = json.loads((folders[build] / "model_index.json").read_text())
    family = family_of(index["_class_name"])
    assert family is not None
    parts = {
        "unet": XL_UNET if build == "sdxl" else SD_UNET,
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in family.PARTS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(parts[part]))
    facts = family.check(tmp_path, BackboneSpec(id="org/model", height=side, width=side), False)
    assert facts.latent_shape == shape
    assert (facts.height, facts.width) == (shape[1] * 8, shape[2] * 8)


def test_every_family_says_what_it_is() -> None:
    for family in discover_families().values():
        assert "Licence:" in family.page and "Usual:" in family.page, family.module
        assert family.DEFAULTS.side % family.DEFAULTS.multiple_of == 0


def recipe(folder: Path, method: str, **config: Any) -> Recipe:
    return Recipe.from_dict(
        {"builder": "fashion", "protocol": "2shot", "method": method, "backbone": str(folder), "config": config}
    )


LCM = {"sampler": "lcm", "num_inference_steps": 4}
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "LCM in many steps": (
        "lcm",
        "txt2img",
        {},
        r"few steps of a consistency model .* got config.num_inference_steps: 50",
    ),
    "LCM by dpm": ("lcm", "txt2img", {"num_inference_steps": 4}, r"got config.sampler: dpm: set .* sampler to lcm\."),
    "LCM, negative": ("lcm", "txt2img", {**LCM, "negative_prompt": "blurred"}, "got config.negative_prompt: 'blurred'"),
    "LCM inverted": ("lcm", "diff_ii", {}, "cannot be used with diff_ii, which inverts images"),
    "LCM cycled": ("lcm", "dream_da", {}, "is sampled by lcm alone, but dream_da by ddim"),
    "SD by lcm": ("sd", "txt2img", {**LCM}, r"is sampled by dpm or ddim or plms, got config.sampler: lcm"),
    "SD by euler": ("sd", "genie", {"sampler": "euler"}, "got config.sampler: euler: set sampler to dpm or ddim or"),
    "SDXL per image": ("sdxl", "diffusion_inversion", {}, "which learns a condition per image, "),
    "SDXL's LoRA": ("sdxl", "datadream", {}, "which learns LoRA of a text encoder and a U-Net"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_cannot_do_is_refused_at_plan(folders: dict[str, Path], case: str) -> None:
    name, method, config, sentence = REFUSED[case]
    with pytest.raises(BackboneError, match=sentence) as caught:
        check_models(recipe(folders[name], method, **config))
    assert "\n" not in str(caught.value) and str(folders[name]) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "method", "config"),
    [
        ("lcm", "txt2img", LCM),
        ("lcm", "genie", {**LCM, "ratio": 0.7}),
        ("lcm", "diff_mix", {**LCM, "concepts": {"steps": 1}}),
        ("sdxl", "txt2img", {}),
        ("sdxl", "diff_ii", {"suffixes": ["at night."]}),
        ("sdxl", "diff_mix", {}),
        ("sdxl", "dream_da", {}),
    ],
)
def test_what_it_can_do_is_planned(folders: dict[str, Path], name: str, method: str, config: dict[str, Any]) -> None:
    check_models(recipe(folders[name], method, **config))


@contextmanager
def edited(folder: Path, name: str, **changes: Any) -> Iterator[None]:
    path = folder / name
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        yield
    finally:
        path.write_bytes(before)


DAMAGE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "refiner": ("sdxl", "model_index.json", {"requires_aesthetics_score": True}, "has requires_aesthetics_score True"),
    "other sizes": ("sdxl", "unet/config.json", {"addition_time_embed_dim": 4}, "takes 72 numbers of text and size"),
    "no sizes": (
        "sdxl",
        "unet/config.json",
        {"addition_embed_type": None},
        "has a U-Net with addition_embed_type None",
    ),
    "one encoder": ("sdxl", "unet/config.json", {"cross_attention_dim": 32}, "attn2.to_k.weight of shape"),
    "lengths": ("sdxl", "text_encoder_2/config.json", {"max_position_embeddings": 20}, "position_embedding.weight of"),
    "no LCM": (
        "lcm",
        "scheduler/scheduler_config.json",
        {"_class_name": "DDIMScheduler"},
        "was distilled to a few|orig",
    ),
    "TCD": ("lcm", "scheduler/scheduler_config.json", {"_class_name": "TCDScheduler"}, r"few steps \(TCDScheduler\)"),
    "many": (
        "lcm",
        "scheduler/scheduler_config.json",
        {"original_inference_steps": 2000},
        "inference_steps 2000 for 1000",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_be_driven_is_refused(folders: dict[str, Path], case: str) -> None:
    name, file, changes, sentence = DAMAGE[case]
    with edited(folders[name], file, **changes), pytest.raises(BackboneError, match=sentence) as caught:
        check_backbone(BackboneSpec(id=str(folders[name])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_configurations_are_sentences(folders: dict[str, Path], name: str) -> None:
    assert 0 < fuzzed(BackboneSpec(id=str(folders[name])), 1, 40, load=False) < 40


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_many_damaged_configurations_are_sentences_or_work(folders: dict[str, Path], name: str) -> None:
    spec = BackboneSpec(id=str(folders[name]))
    assert fuzzed(spec, 2, 1000, load=False) and fuzzed(spec, 3, 100, load=True)

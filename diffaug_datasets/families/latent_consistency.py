"""Latent consistency models (LCM): Stable Diffusion 1.x, distilled to a few steps by consistency.

Luo et al. 2023, arXiv 2310.04378: a U-Net that is told the guidance scale as a number and says the image at once; every
step but the last noises that again. So one call per step whatever the scale, no negative prompt, and fresh noise after
each step, drawn from the row's own seed.

Licence: of SimianLuo/LCM_Dreamshaper_v7, MIT. Usual: sampler `lcm`, 4 steps (1 to 8), guidance 8.5, float16 on a GPU,
sides that are multiples of 8. Methods that noise an image and denoise it (GeNIe, Diff-Mix, DA-Fusion, img2img) mean
what they mean on Stable Diffusion, in coarse steps: a strength of 0.7 in 4 steps runs 2. What inverts images (Diff-II)
is refused, for a consistency function does not run backwards. Learned tokens and LoRA train as on Stable Diffusion, by
the error in eps, which is not what an LCM was distilled by.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.family import Defaults, ModelFacts, Size, named
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families import stable_diffusion
from diffaug_datasets.families.parts.diffusers_folders import SCHEDULER, check_index
from diffaug_datasets.families.parts.unet_folders import consistent
from diffaug_datasets.numerics.timesteps import Timeline, Unfit

if TYPE_CHECKING:
    from torch import device

    from diffaug_datasets.families.parts.unets import UNetModel

NAME = "latent_consistency"
TITLE = "Latent consistency models (LCM)"
CLASSES = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
LICENCE = "MIT (SimianLuo/LCM_Dreamshaper_v7)"
DEFAULTS = Defaults(sampler="lcm", steps=4, guidance=8.5, spacing="leading", dtype="float16", side=768)
SIZES = (Size("SimianLuo/LCM_Dreamshaper_v7", 0.86, 0.21),)
PURPOSE = "four steps, where time is short"
PARTS = stable_diffusion.PARTS
LORA_TARGETS = stable_diffusion.LORA_TARGETS
TOKENS = ("text_encoder",)


def check(folder: Path, spec: BackboneSpec, is_whole: bool) -> ModelFacts:
    """What can be planned on a folder."""
    kind = str(check_index(folder, stable_diffusion.DRIVEN)["_class_name"])
    facts = stable_diffusion.look(folder, spec, is_whole, NAME, kind)
    if facts.samplers == ("lcm",):
        return facts
    if is_whole or (folder / SCHEDULER).is_file():
        raise Unfit(f"is a {kind} without an LCMScheduler", "the scheduler that it was distilled for")
    return guess("lcm") or facts


def guess(hub_id: str) -> ModelFacts | None:
    """An LCM is known by its name."""
    if not named("lcm", hub_id):
        return None
    facts = ModelFacts(NAME, CLASSES[0], timeline=Timeline(original_steps=50), is_unet=True)
    return consistent(facts, embeds_guidance=True)


def load(folder: Path, spec: BackboneSpec, device: device) -> UNetModel:
    """As Stable Diffusion; the U-Net is told the scale too."""
    return stable_diffusion.loaded(folder, spec, device, check(folder, spec, True))

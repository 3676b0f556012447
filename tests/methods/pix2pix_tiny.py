"""An InstructPix2Pix pipeline with random weights in its U-Net, beside the packaged text encoder and VAE.

Imports nothing of ours, so that it can stand on the reference side of a comparison.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(folder: Path, packaged: Path, prediction_type: str = "epsilon") -> Path:
    """Write it in diffusers format and return the folder; `packaged`: a whole Stable Diffusion pipeline."""
    shutil.copytree(packaged, folder, ignore=shutil.ignore_patterns("unet", "scheduler"))
    config = UNet2DConditionModel.load_config(packaged / "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel.from_config({**config, "in_channels": 8}).save_pretrained(folder / "unet")
    EulerAncestralDiscreteScheduler(**BETAS, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
    index["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def pipeline(folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    """The folder as diffusers sees it."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe

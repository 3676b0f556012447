"""A random ControlNet for the packaged model, out of diffusers' own class; imports no code of ours."""

import json
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path


@cache
def small_controlnet() -> str:
    """The folder of a random ControlNet for the packaged model, out of diffusers' own class."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    assets = Path(str(files("diffaug_datasets"))) / "assets" / "tiny" / "pipeline"
    unet = UNet2DConditionModel.from_pretrained(assets / "unet", local_files_only=True)
    levels = len(json.loads((assets / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8,) * levels)
        silent = [network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding]
        for part in silent:
            for weight in part.parameters():  # what ControlNet starts at zero
                torch.nn.init.normal_(weight, std=0.2)
    folder = tempfile.mkdtemp(prefix="diffaug-controlnet-")
    network.save_pretrained(folder)
    return folder

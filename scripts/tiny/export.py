"""Stage "export": bring the trained parts into the layout of diffaug_datasets/assets/tiny."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tiny import data, denoiser, tokens, work
from tiny.properties import DEFINITIONS, SUFFIXES


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into target, one by one, when the block ends well."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        work.publish(Path(name), target)


def pipeline_of(folder: Path) -> StableDiffusionPipeline:
    """The averaged U-Net and text encoder with the autoencoder, as one pipeline in float32."""
    model = denoiser.averaged(folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, trust_remote_code=False)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=tokens.build(),
        unet=model.unet, scheduler=denoiser.scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def halve(path: Path) -> None:
    """Store the weights of a safetensors file as float16; a float32 model reads them back as float32."""
    weights = {name: value.half() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _neutral(folder: Path) -> None:
    """Drop what names the machine or the moment of training from the JSON files."""
    for path in folder.rglob("*.json"):
        content = work.read_json(path)
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            work.write_json(path, content)


def pipeline(folder: Path, target: Path) -> None:
    """Write the pipeline, U-Net and autoencoder in float16."""
    with fresh_folder(target) as fresh, torch.no_grad():
        pipeline_of(folder).save_pretrained(fresh)
        for part in ("unet", "vae"):
            halve(fresh / part / "diffusion_pytorch_model.safetensors")
        _neutral(fresh)


def suffixes(target: Path) -> None:
    """Write suffixes.json: the context phrases and how their properties are measured."""
    work.write_json(target, {"schema": 1, "suffixes": [asdict(s) for s in SUFFIXES], "properties": DEFINITIONS})


def everything(folder: Path, fashion: Path, target: Path) -> None:
    """Export all that the work folder holds so far."""
    pipeline(folder, target / "pipeline")
    for part in ("encoder", "judge"):
        if (folder / part / "config.json").exists():
            work.publish(folder / part, target / part)
    data.export(fashion, target / "fashion")
    suffixes(target / "suffixes.json")

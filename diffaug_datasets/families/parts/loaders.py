"""From files to networks and tokenizers: safetensors only, no remote code, nothing left at random values.

Tokenizers are read here for all models: transformers takes a folder without a vocabulary for one to which all texts are
alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.families.parts.weight_overrides import add_loras, from_single_file
from diffaug_datasets.numerics.levels import Prediction
from diffaug_datasets.numerics.schedule import Schedule, without_terminal_signal
from diffaug_datasets.numerics.timesteps import SchedulerSettings, Unfit

PROBE_TEXTS = ("a photo of a bird", "the red house on a hill, 1984")


def read_tokenizer(kind: Any, folder: Path, rows: int | None = None) -> Any:
    """The tokenizer of a folder, once two texts differ in it; no code that lies in the folder is run.

    `kind`: transformers' class for it, or `AutoTokenizer`; `rows`: embeddings of the text encoder behind it, if known.

    Raises:
        ValueError: its vocabulary is missing or does not fit.
        Exception: of whichever kind this release of transformers reads a tokenizer with.
    """
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    first, second = (tokenizer(text, verbose=False).input_ids for text in PROBE_TEXTS)
    words = {*first, *second} - set(tokenizer.all_special_ids)  # among these is the one that unknown words get
    if first == second or len(words) < 2:
        raise ValueError(f"{folder.name}/ has no vocabulary: all texts are alike to its tokenizer")
    used = [*first, *second, *(i for i in tokenizer.all_special_ids if i is not None)]
    if rows is not None and max(used) >= rows:
        raise ValueError(f"{folder.name}/ gives number {max(used):,} for {rows:,} embeddings of its text encoder")
    return tokenizer


def check_ends(tokenizer: Any, folder: Path) -> None:
    """Raises ValueError where texts do not get CLIP's two different tokens around them."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer(PROBE_TEXTS[0], verbose=False).input_ids
    if begin == end or (ids[0], ids[-1]) != (begin, end):
        raise ValueError(f"{folder.name}/ puts {ids[0]} and {ids[-1]} around a text, expected two tokens of its own")


def read_network(kind: Any, folder: Path, part: str, spec: BackboneSpec, **dtype: torch.dtype) -> Any:
    """A network of a part of a folder in diffusers format, as it is in its weights, or those of the spec's overrides.

    `dtype`: at most one, `torch_dtype`; without, it is that of the weights.

    Raises:
        ValueError: weights are missing, or not finite.
        Exception: of whichever kind diffusers and transformers fail with.
    """
    network = from_single_file(kind, folder, part, spec, *dtype.values())
    network = _from_folder(kind, folder, part, spec, **dtype) if network is None else network
    if spec.lora:
        add_loras(network if dtype else network.float(), folder, part, spec)
    check_finite(network, part)
    return network


def _from_folder(kind: Any, folder: Path, part: str, spec: BackboneSpec, **dtype: torch.dtype) -> Any:
    network, info = kind.from_pretrained(
        folder / part,
        variant=spec.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **dtype,
    )
    if info["missing_keys"]:
        # from_pretrained would leave them at random values and only log it.
        raise ValueError(f"{part} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    return network


def check_finite(network: torch.nn.Module, part: str) -> None:
    """Raises ValueError where a weight is not finite: a NaN would spread to every image."""
    for name, weight in network.named_parameters():
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ValueError(f"{part} holds values in {name} that are not finite")


def freeze(network: Any, device: torch.device) -> None:
    """In eval mode, without gradients, on the device: all of which change the network in place."""
    network.eval().requires_grad_(False).to(device)
    if device.type == "cuda" and isinstance(network, UNet2DConditionModel):
        # Tensor cores want NHWC convolutions; on the CPU the layout makes no difference (measured).
        network.to(memory_format=torch.channels_last)


def build_schedule(settings: SchedulerSettings) -> Schedule:
    """The noise schedule that a scheduler's settings describe.

    Raises:
        Unfit: its levels do not fall inside (0, 1).
    """
    try:
        if settings.trained_betas:
            alphas = 1.0 - torch.tensor(settings.trained_betas, dtype=torch.float32)
            alphas = without_terminal_signal(alphas) if settings.is_zero_snr else alphas
            levels = torch.cumprod(alphas.double(), dim=0)
        else:
            levels = Schedule.from_betas(
                settings.beta_schedule,
                settings.beta_start,
                settings.beta_end,
                settings.num_train_timesteps,
                prediction=_spoken(settings),
                is_zero_snr=settings.is_zero_snr,
            ).alpha_bar
        return Schedule(
            levels,
            settings.steps_offset,
            settings.set_alpha_to_one,
            settings.spacing,
            _spoken(settings),
            is_noise_scaled=settings.is_few_step,
            original_steps=settings.original_steps,
            timestep_scaling=settings.timestep_scaling,
        )
    except ValueError as error:
        raise Unfit(f"has a schedule that cannot be built ({error})", "DDPM betas") from error


def _spoken(settings: SchedulerSettings) -> Prediction:
    """What samplers hear: eps, into which v and x0 are turned, but for a schedule that ends without signal."""
    if not settings.is_zero_snr:
        return "epsilon"
    return "v_prediction" if settings.prediction_type == "v_prediction" else "sample"


@contextmanager
def quiet() -> Iterator[None]:
    """No weight-loading bars from diffusers and transformers inside; their settings come back afterwards."""
    libraries = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()

"""From a `BackboneSpec` to the pieces of a Stable Diffusion pipeline: safetensors only, no remote code, no guesses.

Tokenizers are read here for all models: transformers takes a folder without a vocabulary for one to which all texts are
alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.models import BackboneSpec, ModelRef, find_backbone
from diffaug_datasets.models.model_folder import (
    STEMS,
    brief,
    check_folder,
    read_scheduler,
    unfit,
    unloadable,
    unreachable,
)
from diffaug_datasets.numerics.levels import Prediction
from diffaug_datasets.numerics.schedule import Schedule, without_terminal_signal
from diffaug_datasets.numerics.timesteps import SchedulerSettings

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


@dataclass(frozen=True)
class Pieces:
    """A loaded pipeline, frozen and in eval mode; `prediction_type` is epsilon, v_prediction or sample."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    schedule: Schedule
    prediction_type: str


def load_pieces(spec: BackboneSpec, device: torch.device) -> Pieces:
    """The pieces of a spec. U-Net and VAE get the spec's dtype; the text encoder, run once per prompt, is float32.

    Raises:
        BackboneError: the model cannot be reached, is of another family, or its files do not fit together.
    """
    folder = fetch(spec)
    check_folder(folder, spec)
    settings = read_scheduler(folder, spec.id)
    schedule = build_schedule(settings, spec.id)
    dtype = getattr(torch, spec.dtype)
    with one_sentence(spec), quiet():
        unet = _network(UNet2DConditionModel, folder, "unet", spec, torch_dtype=dtype)
        vae = _network(AutoencoderKL, folder, "vae", spec, torch_dtype=dtype)
        text_encoder = _network(CLIPTextModel, folder, "text_encoder", spec).float()
        rows = text_encoder.get_input_embeddings().num_embeddings
        tokenizer = read_tokenizer(CLIPTokenizer, folder / "tokenizer", rows)
        check_ends(tokenizer, folder / "tokenizer")
    for network in (text_encoder, unet, vae):
        _freeze(network, device)
    pieces = Pieces(tokenizer, text_encoder, unet, vae, schedule, settings.prediction_type)
    with one_sentence(spec):
        _try(pieces, dtype, device)
    return pieces


@torch.no_grad()
def _try(pieces: Pieces, dtype: torch.dtype, device: torch.device) -> None:
    """One step on the smallest latent: parts may load and still not fit together.

    Raises:
        ValueError: what comes out is not what went in.
        Exception: of whichever kind a network fails with.
    """
    unet, vae = pieces.unet, pieces.vae
    side = 2 ** (len(unet.config.block_out_channels) - 1)
    latent = torch.zeros(1, vae.config.latent_channels, side, side, device=device, dtype=dtype)
    ids = torch.tensor([pieces.tokenizer("a photo").input_ids], device=device)
    states = pieces.text_encoder(input_ids=ids).last_hidden_state.to(dtype)
    shown = torch.cat([latent] * (unet.config.in_channels // latent.shape[1] or 1), dim=1)
    eps = unet(shown, torch.tensor([0], device=device), encoder_hidden_states=states, return_dict=False)[0]
    image = vae.decode(latent).sample
    again = vae.encode(image).latent_dist.mode()
    if not latent.shape == eps.shape == again.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (latent, eps, again))
        raise ValueError(f"latent, noise and encoded image have the shapes {shapes}")


def fetch(spec: BackboneSpec) -> Path:
    """The folder with the spec's files; a Hub id comes from the cache, and only what it lacks from the network.

    Raises:
        BackboneError: names every way out.
    """
    model = find_backbone(spec)
    if model.folder is not None and model.is_local:
        if not (model.folder / "model_index.json").is_file():
            raise unreachable(model, f"{str(model.folder)!r} has no model_index.json")
        return model.folder
    commit = model.revision
    wanted = list(_wanted(spec))
    try:
        cached = Path(snapshot_download(model.id, revision=commit, allow_patterns=wanted, local_files_only=True))
        if _complete(cached, spec):
            return cached
    except (OSError, ValueError):
        cached = None
    return _download(model, spec, wanted)


def _download(model: ModelRef, spec: BackboneSpec, wanted: list[str]) -> Path:
    try:
        folder = Path(snapshot_download(model.id, revision=model.revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise unreachable(model, str(error).strip().split("\n")[0].rstrip(".")) from error
    if not _complete(folder, spec):
        missing = ", ".join(name for name in _needed(spec) if not _present(folder, name))
        raise unreachable(model, f"{missing} is missing; only safetensors weights are read")
    return folder


def _weights(spec: BackboneSpec, part: str) -> str:
    variant = f".{spec.variant}" if spec.variant else ""
    return f"{part}/{STEMS[part]}{variant}.safetensors"


def _needed(spec: BackboneSpec) -> list[str]:
    weights = [_weights(spec, part) for part in STEMS]
    return ["model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in STEMS), *weights]


def _wanted(spec: BackboneSpec) -> Iterator[str]:
    """The patterns to download: what is needed, the tokenizer, and the shards of weights that come in several files."""
    yield from _needed(spec)
    yield from ("tokenizer/*.json", "tokenizer/*.txt")
    for part in STEMS:
        stem = _weights(spec, part).removesuffix(".safetensors")
        yield from (f"{stem}-*-of-*.safetensors", f"{part}/{STEMS[part]}.safetensors.index*.json")


def _present(folder: Path, name: str) -> bool:
    path = folder / name
    return path.is_file() or any(path.parent.glob(f"{path.name.removesuffix('.safetensors')}-*-of-*.safetensors"))


def _complete(folder: Path, spec: BackboneSpec) -> bool:
    return all(_present(folder, name) for name in _needed(spec)) and (folder / "tokenizer").is_dir()


def build_schedule(settings: SchedulerSettings, name: str) -> Schedule:
    """The noise schedule that a scheduler's settings describe.

    Raises:
        BackboneError: its levels do not fall inside (0, 1).
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
        )
    except ValueError as error:
        raise unfit(name, f"has a schedule that cannot be built ({error})", "DDPM betas") from error


def _spoken(settings: SchedulerSettings) -> Prediction:
    """What samplers hear: eps, into which v and x0 are turned, but for a schedule that ends without signal."""
    if not settings.is_zero_snr:
        return "epsilon"
    return "v_prediction" if settings.prediction_type == "v_prediction" else "sample"


def _network(kind: Any, folder: Path, part: str, spec: BackboneSpec, **dtype: torch.dtype) -> Any:
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
    check_finite(network, part)
    return network


def check_finite(network: torch.nn.Module, part: str) -> None:
    """Raises ValueError where a weight is not finite: a NaN would spread to every image."""
    for name, weight in network.named_parameters():
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ValueError(f"{part} holds values in {name} that are not finite")


def _freeze(network: Any, device: torch.device) -> None:
    """In eval mode, without gradients, on the device: all of which change the network in place."""
    network.eval().requires_grad_(False).to(device)
    if device.type == "cuda" and isinstance(network, UNet2DConditionModel):
        # Tensor cores want NHWC convolutions; on the CPU the layout makes no difference (measured).
        network.to(memory_format=torch.channels_last)


@contextmanager
def one_sentence(spec: BackboneSpec) -> Iterator[None]:
    """Turn what the libraries raise about a model's files into a `BackboneError` of one sentence."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # of whichever kind diffusers, transformers and tokenizers fail with on odd files
        raise unloadable(spec.id, brief(error)) from error


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

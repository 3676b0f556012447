"""From a `BackboneSpec` to the pieces of a Stable Diffusion pipeline: safetensors only, no remote code, no guesses."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diffaug_datasets.core.backbone_spec import BackboneSpec, backbone_revision, local_folder, resolve
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.numerics.schedule import Schedule

DRIVEN = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


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
    """The pieces of a spec. U-Net and VAE get the spec's dtype; the text encoder is float32, for it runs once a prompt.

    Raises:
        BackboneError: the model cannot be reached, is of another family, or its files do not fit together.
    """
    folder = fetch(spec)
    schedule, prediction_type = read_schedule(folder, check_family(folder, spec.id))
    dtype = getattr(torch, spec.dtype)
    with one_sentence(spec), quiet():
        unet = _network(UNet2DConditionModel, folder, "unet", spec, torch_dtype=dtype)
        vae = _network(AutoencoderKL, folder, "vae", spec, torch_dtype=dtype)
        text_encoder = _network(CLIPTextModel, folder, "text_encoder", spec).float()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    _check_shapes(unet, vae, text_encoder, spec)
    for network in (text_encoder, unet, vae):
        _freeze(network, device)
    return Pieces(tokenizer, text_encoder, unet, vae, schedule, prediction_type)


def fetch(spec: BackboneSpec) -> Path:
    """The folder with the spec's files; a Hub id comes from the cache, and only what it lacks from the network.

    Raises:
        BackboneError: names every way out.
    """
    spec = resolve(spec)
    if folder := local_folder(spec):
        if not (folder / "model_index.json").is_file():
            raise _unreachable(spec, f"{str(folder)!r} has no model_index.json")
        return folder
    commit = backbone_revision(spec)
    wanted = list(_wanted(spec))
    try:
        cached = Path(snapshot_download(spec.id, revision=commit, allow_patterns=wanted, local_files_only=True))
        if _complete(cached, spec):
            return cached
    except (OSError, ValueError):
        cached = None
    return _download(spec, commit, wanted)


def _download(spec: BackboneSpec, commit: str, wanted: list[str]) -> Path:
    try:
        folder = Path(snapshot_download(spec.id, revision=commit, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise _unreachable(spec, str(error).strip().split("\n")[0].rstrip(".")) from error
    if not _complete(folder, spec):
        missing = ", ".join(name for name in _needed(spec) if not _present(folder, name))
        raise _unreachable(spec, f"{missing} is missing; only safetensors weights are read")
    return folder


def _unreachable(spec: BackboneSpec, reason: str) -> BackboneError:
    revision = f" --revision {spec.revision}" if spec.revision else ""
    download = "" if local_folder(spec) else f"run `hf download {spec.id}{revision}` where there is a network, "
    return BackboneError(
        f"backbone {spec.id!r} cannot be reached ({reason}): {download}"
        "give the path of a local folder in diffusers format, or set `backbone: tiny`."
    )


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


def check_family(folder: Path, name: str) -> str:
    """The name itself, once its model_index.json says that this is a Stable Diffusion 1.x or 2.x pipeline.

    Raises:
        BackboneError: it is another one (SDXL, a flow-matching transformer, ...).
    """
    family = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    if family not in DRIVEN:
        raise BackboneError(
            f"backbone {name!r} is a {family}, but only Stable Diffusion 1.x and 2.x (StableDiffusionPipeline: one "
            "U-Net, one text encoder) can be driven: choose such a model, or set `backbone: tiny`."
        )
    return name


def read_schedule(folder: Path, name: str) -> tuple[Schedule, str]:
    """The noise schedule and prediction type of a scheduler folder, defaults as diffusers' `DDIMScheduler` has them.

    Raises:
        BackboneError: the schedule cannot be represented (zero terminal SNR, unknown beta rule or prediction type).
    """
    config: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    prediction_type = str(config.get("prediction_type", "epsilon"))
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise _unfit(name, f"predicts {prediction_type!r}", "epsilon, v_prediction or sample")
    if config.get("rescale_betas_zero_snr"):
        raise _unfit(name, "rescales its betas to zero terminal SNR", "a schedule that keeps some signal to the end")
    if "beta_start" not in config and not config.get("trained_betas"):
        raise _unfit(name, f"has a {config.get('_class_name')} without betas", "a variance-preserving schedule")
    try:
        return _schedule(config), prediction_type
    except ValueError as error:
        raise _unfit(name, f"has a schedule that cannot be built ({error})", "DDPM betas") from error


def _unfit(name: str, got: str, expected: str) -> BackboneError:
    ways = "choose another model, or set `backbone: tiny`"
    return BackboneError(f"backbone {name!r} {got}, expected {expected}: {ways}.")


def _schedule(config: dict[str, Any]) -> Schedule:
    offset, is_one_at_end = int(config.get("steps_offset", 0)), bool(config.get("set_alpha_to_one", True))
    if config.get("trained_betas"):
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        return Schedule(torch.cumprod((1.0 - betas).double(), dim=0), offset, is_one_at_end)
    return Schedule.from_betas(
        str(config.get("beta_schedule", "linear")),
        float(config["beta_start"]),
        float(config["beta_end"]),
        int(config.get("num_train_timesteps", 1000)),
        steps_offset=offset,
        set_alpha_to_one=is_one_at_end,
    )


def _network(kind: Any, folder: Path, part: str, spec: BackboneSpec, **dtype: torch.dtype) -> Any:
    network, info = kind.from_pretrained(
        folder / part,
        variant=spec.variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **dtype,
    )
    if info["missing_keys"]:
        # from_pretrained would leave them at random values and only log it.
        raise ValueError(f"{part} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    return network


def _check_shapes(unet: Any, vae: Any, text_encoder: Any, spec: BackboneSpec) -> None:
    channels, latents = unet.config.in_channels, vae.config.latent_channels
    if channels != latents:
        raise _unfit(spec.id, f"has a U-Net that takes {channels} channels", f"the {latents} of its VAE's latents")
    for key in ("class_embed_type", "addition_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if unet.config.get(key) is not None:
            raise _unfit(spec.id, f"has a U-Net with an extra input ({key})", "one that takes time and text alone")
    if vae.config.get("latents_mean") is not None:
        raise _unfit(spec.id, "has a VAE with latents_mean", "one with a plain scaling_factor")
    width, wanted = text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if width != wanted:
        raise _unfit(spec.id, f"has a text encoder of width {width}", f"the {wanted} that its U-Net attends to")


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
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise BackboneError(
            f"backbone {spec.id!r} cannot be loaded ({first}): check that the folder is complete and holds safetensors "
            "weights of the stated variant, download it again, or set `backbone: tiny`."
        ) from error


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

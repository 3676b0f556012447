"""Looking at the parts of a folder in diffusers format, without torch: what families ask in their `check`.

Every function raises `Damage` for files that are missing, garbled or do not fit each other, and `Unfit` for a part that
is whole but cannot be driven. `is_whole`: what is missing is not still to come from the Hub.
"""

from collections.abc import Mapping
from pathlib import Path

from diffaug_datasets.core.model_files import Damage, check_vocabulary, read_object, read_weights, whole_number
from diffaug_datasets.core.models import TINY, BackboneSpec
from diffaug_datasets.core.weight_headers import TensorInfo
from diffaug_datasets.families.parts.single_files import header_in, is_awaited
from diffaug_datasets.numerics.timesteps import SchedulerSettings, Unfit, read_settings

SCHEDULER = "scheduler/scheduler_config.json"
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
UNUSED: tuple[str, ...] = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
BLIP = "BlipDiffusion"  # begins the names of pipelines with the parts below, read where a recipe names their folders
OF_BLIP = ("qformer", "controlnet", "image_processor")
Header = Mapping[str, TensorInfo] | None


def read_part(folder: Path, part: str, is_whole: bool) -> Mapping[str, object] | None:
    """The config.json of a part; None where it is still to come."""
    name = f"{part}/config.json"
    return None if not is_whole and not (folder / name).is_file() else read_object(folder, name)


def read_header_of(folder: Path, part: str, stem: str, spec: BackboneSpec, is_whole: bool) -> Header:
    """Dtypes and shapes of a part's weights, of the stated variant or in the spec's single file; None where they are
    still to come.
    """
    if spec.single_file is not None and (inside := header_in(spec, folder, part)) is not None:
        return inside
    variant = f".{spec.variant}" if spec.variant else ""
    whole_stem = f"{part}/{stem}{variant}"
    header = read_weights(folder, whole_stem)
    if header is None and is_whole and not is_awaited(spec):
        others = sorted(path.name for path in (folder / part).glob("*.safetensors"))
        held = f"; there is {others[0]}, so check backbone.variant" if others else ""
        raise Damage(f"{whole_stem}.safetensors is missing{held}")
    return header


def check_index(
    folder: Path, driven: Mapping[str, tuple[str | None, ...]], neutral: Mapping[str, object] | None = None
) -> Mapping[str, object]:
    """The `model_index.json`, once every part that it lists is of a class that is driven, or not used.

    `driven`: part -> its classes. `neutral`: switches of the pipeline -> the values that are honoured.
    """
    index = read_object(folder, "model_index.json")
    unused = (*UNUSED, *OF_BLIP) if str(index.get("_class_name")).startswith(BLIP) else UNUSED
    for part, declared in index.items():
        if part in driven or (part in unused and isinstance(declared, list)):
            _check_part(part, declared, driven)
        elif isinstance(declared, list) and any(declared) and part not in unused:
            got = f"has a part {part!r} ({declared[-1]}) that nothing here uses"
            raise Unfit(got, "U-Net, VAE and text encoder alone" if len(driven) <= 4 else f"{', '.join(driven)} alone")
    for key, allowed in (neutral or {}).items():
        if key in index and index[key] not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise Unfit(f"has {key} {index[key]!r} in model_index.json", f"{allowed!r}")
    return index


def _check_part(part: str, declared: object, driven: Mapping[str, tuple[str | None, ...]]) -> None:
    if not isinstance(declared, list) or len(declared) != 2:
        raise Damage(f"model_index.json has {part} {declared!r}, expected its library and class")
    library, kind = declared
    if part in driven and kind not in driven[part]:
        raise Unfit(f"has a {part} of the class {kind}", f"a {driven[part][0]}")
    if library not in ("diffusers", "transformers", "stable_diffusion", "blip_diffusion", None):
        code = "one of diffusers or transformers: code of a model folder is never run"
        raise Unfit(f"has a {part} of its own ({library})", code)


def read_scheduler_settings(folder: Path, name: str) -> SchedulerSettings:
    """What decides the variance-preserving schedule of a folder; `name`: what the recipe calls the model."""
    config = dict(read_object(folder, SCHEDULER))
    if name == TINY:  # whose file states its class's defaults, and whose images are older than the rule for that
        config.pop("timestep_spacing", None)
    return read_settings(config)


def check_network(config: Mapping[str, object], name: str, kind: str) -> None:
    """Whether a config.json is of that class and of plain floats."""
    if config.get("_class_name", kind) != kind:
        raise Unfit(f"has a {config['_class_name']} in {name}", f"a {kind}")
    if config.get("quantization_config"):
        raise Unfit(f"has quantised weights ({name})", "plain floats")


def check_vae(vae: Mapping[str, object], header: Header) -> None:
    """Whether an `AutoencoderKL` of RGB images has one factor for all its latents."""
    name = "vae/config.json"
    check_network(vae, name, "AutoencoderKL")
    if vae.get("latents_mean") is not None:
        raise Unfit("has a VAE with latents_mean", "one with a plain scaling_factor")
    for key in ("in_channels", "out_channels"):
        if (channels := whole_number(vae, key, name, 3)) != 3:
            raise Unfit(f"has a VAE of {channels} channels", "the 3 of RGB images")
    scale, shift = vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0
    for key, value in (("scaling_factor", scale), ("shift_factor", shift)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise Damage(f"{name} has {key} {value!r}, expected a number")
    if scale == 0:
        raise Damage(f"{name} has scaling_factor 0, expected a number that is not 0")
    latents, widths = whole_number(vae, "latent_channels", name, 4), widths_of(vae, name, [64])
    if header is not None:
        check_shape(header, "encoder.conv_in.weight", {0: widths[0], 1: 3}, "vae")
        check_shape(header, "decoder.conv_in.weight", {0: widths[-1], 1: latents}, "vae")


def check_clip_text(
    folder: Path,
    part: str,
    tokenizer: str,
    config: Mapping[str, object],
    header: Header,
    is_whole: bool,
    kinds: tuple[str, ...] = ("CLIPTextModel", "CLIPModel", "ContextCLIPTextModel"),
) -> None:
    """Whether a CLIP text encoder and its tokenizer fit together."""
    name = f"{part}/config.json"
    stated = config.get("architectures") or [kinds[0]]
    if stated not in [[kind] for kind in kinds]:
        raise Unfit(f"has a text encoder of the class {stated}", f"a {kinds[0]}")
    if "quantization_config" in config:
        raise Unfit("has a quantised text encoder", "one of plain floats")
    usual = {"vocab_size": 49408, "hidden_size": 512}
    rows, width = (whole_number(config, key, name, least) for key, least in usual.items())
    places = whole_number(config, "max_position_embeddings", name, 77)
    if header is not None:
        check_shape(header, "embeddings.token_embedding.weight", {0: rows, 1: width}, part)
        check_shape(header, "embeddings.position_embedding.weight", {0: places, 1: width}, part)
    if (folder / tokenizer).is_dir() or is_whole:
        check_vocabulary(folder / tokenizer, rows)


def widths_of(config: Mapping[str, object], name: str, default: list[int]) -> list[int]:
    """The channels of a network's levels."""
    widths = config.get("block_out_channels", default)
    if not isinstance(widths, list) or not widths or not all(type(w) is int and 0 < w < 2**20 for w in widths):
        raise Damage(f"{name} has block_out_channels {widths!r}, expected a list of whole numbers")
    return widths


def sides_of(config: Mapping[str, object], name: str) -> tuple[int, int] | None:
    """`sample_size` as (rows, columns) of latents; None where it is not stated."""
    stated = config.get("sample_size")
    sides = stated if isinstance(stated, list) and len(stated) == 2 else [stated, stated]
    if sides == [None, None]:
        return None
    rows, columns = (whole_number({"sample_size": side}, "sample_size", name) for side in sides)
    return rows, columns


def check_shape(header: Mapping[str, TensorInfo], ending: str, wanted: Mapping[int, int], part: str) -> None:
    """The tensor's sides at these places; what is not there is found when it is loaded."""
    for key, entry in header.items():
        is_it = key == ending or key.endswith(f".{ending}")
        if is_it and any(axis >= len(entry.shape) or entry.shape[axis] != size for axis, size in wanted.items()):
            sides = " and ".join(f"{size} at side {axis}" for axis, size in wanted.items())
            raise Damage(f"{part} has {key} of shape {list(entry.shape)}, but its config.json says {sides}")


def size_in_pixels(spec: BackboneSpec, own: tuple[int, int], factor: int, multiple_of: int) -> tuple[int, int]:
    """(height, width) that a spec asks for, the model's own (in latents) where it leaves them open.

    Raises:
        WrongSize: a side is no multiple.
    """
    height, width = spec.height or own[0] * factor, spec.width or own[1] * factor
    check_multiple(height, width, multiple_of)
    return height, width


def check_multiple(height: int, width: int, multiple_of: int) -> None:
    """Raises WrongSize of a size that the model's latents cannot have."""
    if height % multiple_of or width % multiple_of:
        raise WrongSize(f"got {height} x {width} pixels, expected multiples of {multiple_of}")


class WrongSize(ValueError):
    """A size in pixels, asked for by the recipe, that a model cannot make."""

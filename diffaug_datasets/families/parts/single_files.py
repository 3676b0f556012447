"""One checkpoint in the original layout in the place of a model's own weights: which parts it has, by its header.

Which prefix a part has in it are facts of the published checkpoints; from its tensors to a network goes diffusers' own
`from_single_file`. Configurations and tokenizers are those of the folder. No torch is needed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.model_files import FLOATS, Damage, read_object
from diffaug_datasets.core.models import BackboneSpec, WeightFile, find_single_file
from diffaug_datasets.core.weight_headers import TensorInfo, read_header
from diffaug_datasets.families.parts.original_names import open_clip_header, renamed_header, renaming

DIFFUSION = "model.diffusion_model."
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")


class Place(NamedTuple):
    """How keys of a part begin in a checkpoint, and what of that is taken away."""

    begin: str
    prefix: str


# Class of a part -> where its weights may stand. Text encoders of transformers are those of the folder.
PLACES: Mapping[str, tuple[Place, ...]] = {
    "UNet2DConditionModel": (Place(f"{DIFFUSION}input_blocks.", DIFFUSION),),
    "SD3Transformer2DModel": (Place(f"{DIFFUSION}joint_blocks.", DIFFUSION), Place("joint_blocks.", "")),
    "FluxTransformer2DModel": (Place(f"{DIFFUSION}double_blocks.", DIFFUSION), Place("double_blocks.", "")),
    "Flux2Transformer2DModel": (Place("double_stream_modulation_img.", ""),),
    "ZImageTransformer2DModel": (
        Place(f"{DIFFUSION}noise_refiner.0.attention.qkv.", DIFFUSION),
        Place("noise_refiner.0.attention.qkv.", ""),
    ),
    "SanaTransformer2DModel": (Place("attention_y_norm.", ""),),
    "QwenImageTransformer2DModel": (Place("transformer_blocks.0.attn.add_q_proj.", ""),),
    "AutoencoderKL": (Place("first_stage_model.", "first_stage_model."), Place("vae.", "vae.")),
    "CLIPTextModel": (
        Place("cond_stage_model.transformer.", "cond_stage_model.transformer."),
        Place(OPEN_CLIP[0], OPEN_CLIP[0]),
        Place("conditioner.embedders.0.transformer.", "conditioner.embedders.0.transformer."),
    ),
    "CLIPTextModelWithProjection": (Place(OPEN_CLIP[1], OPEN_CLIP[1]),),
}
DENOISERS = ("unet", "transformer")


def part_in(spec: BackboneSpec, folder: Path, part: str) -> tuple[WeightFile, Place] | None:
    """Where the single file of a spec has a part of the model in a folder; None where the folder's own counts, or as
    long as the file is still to come.

    Raises:
        BackboneError: the file is damaged, or lacks the network that denoises.
        Damage: the folder's index is.
    """
    if spec.single_file is None or (part == "vae" and spec.vae is not None):
        return None
    file = find_single_file(spec)
    if file is None or file.path is None:
        return None
    kind, keys = class_of(folder, part), _header(file.path)
    places = PLACES.get(kind, ())
    found = next((place for place in places if any(key.startswith(place.begin) for key in keys)), None)
    if found is not None:
        return file, found
    if part in DENOISERS and not places:
        raise BackboneError(
            f"backbone.single_file: backbone {spec.id!r} has a {kind}, which is not read from one file: give a folder "
            "in diffusers format, or a model with one of "
            f"{', '.join(name for name in PLACES if 'CLIP' not in name and 'KL' not in name)}."
        )
    if part in DENOISERS:
        raise BackboneError(
            f"backbone.single_file: {str(file.path)!r} has no weights that begin with "
            f"{' or '.join(place.begin for place in places)}, as those of a {kind} do (it has {min(keys)}): it is of "
            f"another family than backbone {spec.id!r}, or of a layout that is not read."
        )
    return None


def is_awaited(spec: BackboneSpec) -> bool:
    """Whether the single file of a spec is still to come from the Hub. Raises BackboneError where it is no file."""
    file = find_single_file(spec)
    return file is not None and file.path is None


def header_in(spec: BackboneSpec, folder: Path, part: str) -> Mapping[str, TensorInfo] | None:
    """Dtypes and shapes of a part in the single file, as diffusers names its tensors where that is known here, else of
    none; None where the folder's own weights count. Raises as `part_in`.
    """
    found = part_in(spec, folder, part)
    if found is None:
        return None
    file, place = found
    path = file.path or Path()
    inside = {key.removeprefix(place.prefix): v for key, v in _header(path).items() if key.startswith(place.prefix)}
    odd = next((key for key, entry in inside.items() if key.endswith(".weight") and entry.dtype not in FLOATS), None)
    if odd is not None:
        raise BackboneError(
            f"backbone.single_file: {str(path)!r} has {inside[odd].dtype} numbers in {odd}, expected floats of 16 bits "
            "or more: quantised weights are not read."
        )
    kind = class_of(folder, part)
    if kind.startswith("CLIP"):
        plain = {key.removeprefix("text_model."): entry for key, entry in inside.items()}
        return open_clip_header(inside) if place.prefix in OPEN_CLIP else plain
    if kind == "AutoencoderKL" or kind.startswith("Qwen"):  # whose names are those, or end so where it matters
        return inside
    config = f"{part}/config.json"
    names = renaming(kind, read_object(folder, config)) if (folder / config).is_file() else None
    return renamed_header(inside, names) if names else {}


def class_of(folder: Path, part: str) -> str:
    """The class of a part, as the folder's index names it."""
    declared = read_object(folder, "model_index.json").get(part)
    if not isinstance(declared, list) or len(declared) != 2:
        raise Damage(f"model_index.json has {part} {declared!r}, expected its library and class")
    return str(declared[1])


def _header(path: Path) -> Mapping[str, TensorInfo]:
    try:
        header = read_header(path)
    except ValueError as error:
        raise BackboneError(f"backbone.single_file: {str(path)!r} {error}: download it again.") from None
    except OSError as error:
        raise BackboneError(f"backbone.single_file: {str(path)!r} cannot be read: {error.strerror}.") from None
    if not header:
        raise BackboneError(f"backbone.single_file: {str(path)!r} holds no weights, expected a checkpoint.")
    return header

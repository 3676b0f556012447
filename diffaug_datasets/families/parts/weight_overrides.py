"""Networks whose weights are not those of the model's folder: out of one checkpoint, and with LoRA added."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diffaug_datasets.core.family import family_of
from diffaug_datasets.core.model_files import read_object
from diffaug_datasets.core.models import BackboneSpec, find_loras
from diffaug_datasets.families.parts.lora_layouts import Matrices, matrices, read_lora
from diffaug_datasets.families.parts.original_names import renaming
from diffaug_datasets.families.parts.single_files import class_of, part_in


def from_single_file(
    kind: Any, folder: Path, part: str, spec: BackboneSpec, dtype: torch.dtype = torch.float32
) -> Any | None:
    """The network of a part out of the spec's checkpoint, by diffusers' own reading; None where the folder's counts.

    Raises:
        ValueError: weights are missing.
        Exception: of whichever kind diffusers fails with.
    """
    found = part_in(spec, folder, part)
    if found is None:
        return None
    file, place = found
    with safe_open(file.path, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(place.prefix)}  # noqa: SIM118
    given = {"config": str(folder), "subfolder": part, "torch_dtype": dtype, "local_files_only": True}
    try:
        if hasattr(kind, "from_single_file"):
            network = kind.from_single_file(tensors, **given)
        else:
            from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

            network = create_diffusers_clip_model_from_ldm(kind, tensors, **given)
    except (KeyError, NotImplementedError) as error:  # a tensor that is converted, or one that stays on no device
        raise ValueError(f"{file.name} lacks weights of {part}") from error
    missing = sorted(name for name, weight in network.named_parameters() if weight.is_meta)
    if missing:
        raise ValueError(f"{file.name} lacks {len(missing)} weights of {part}, such as {missing[0]}")
    return network


def add_loras(network: Any, folder: Path, part: str, spec: BackboneSpec) -> None:
    """Add the spec's LoRA into the weights of a part, in float32: W + sum of weight * alpha / rank * B A.

    Raises:
        BackboneError: a file does not fit.
    """
    loras = find_loras(spec)
    if not loras:
        return
    family = family_of(read_object(folder, "model_index.json").get("_class_name"))
    parts = tuple(family.PARTS) if family else (part,)
    named = {name.removesuffix(".weight"): w for name, w in network.named_parameters() if name.endswith(".weight")}
    shapes = {name: tuple(weight.shape) for name, weight in named.items()}
    original = renaming(class_of(folder, part), read_object(folder, f"{part}/config.json"))
    changes: dict[str, Tensor] = {}
    for file in loras:
        found = matrices(read_lora(file, parts), part, shapes, original)
        with safe_open(file.path, framework="pt") as opened:
            for made in found:
                change = file.weight * _change(made, opened, shapes[made.module])
                changes[made.module] = changes[made.module] + change if made.module in changes else change
    for module, change in changes.items():
        weight = named[module].data
        named[module].data = (weight.float() + change).to(weight.dtype)


def _change(made: Matrices, opened: Any, shape: tuple[int, ...]) -> Tensor:
    a, b = (opened.get_tensor(key).float() for key in (made.a, made.b))
    begin, end = made.rows
    scale = float(opened.get_tensor(made.alpha)) / made.rank if made.alpha else made.scale
    change: Tensor = scale * (b.flatten(1)[begin:end] @ a.flatten(1))
    return change.reshape(shape)

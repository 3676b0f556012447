"""LoRA on the U-Net's attention projections (Hu et al., arXiv 2106.09685): attach to train, fuse to use."""

import math
import re
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.seeds import uint63

# All attention processors, self and cross, as in the code of Diff-Mix and Diff-II.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
KEY = re.compile(r"unet\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def attach(unet: UNet2DConditionModel, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Put trainable float32 LoRA matrices (alpha = rank, no bias, no dropout) beside the frozen projections.

    Returns them by the key they are stored under. A starts uniform as in peft, drawn from `seed` and its own key
    alone; B starts at zero, so nothing changes yet.
    """
    from peft import LoraConfig  # it takes a second to import, and only training needs it

    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    matrices: dict[str, nn.Parameter] = {}
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            key = f"unet.{name.replace('.default.', '.').replace('.base_layer', '')}"
            parameter.data = _initial(parameter, key, seed).to(parameter.device)
            matrices[key] = parameter
    return matrices


def _initial(matrix: Tensor, key: str, seed: int) -> Float[Tensor, "rows columns"]:
    if ".lora_B." in key:
        return torch.zeros(matrix.shape)
    bound = 1 / math.sqrt(matrix.shape[1])
    generator = torch.Generator().manual_seed(uint63(f"{seed}|concepts|lora|{key}"))
    return torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator)


def detach(unet: UNet2DConditionModel) -> None:
    """Take the matrices away; the projections are the modules that they were before."""
    unet.unload_lora()


def fuse(unet: UNet2DConditionModel, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set every projection to W + B A, added in float32 on the CPU; returns the original weights by module name.

    Raises:
        BackboneError: a matrix belongs to no projection of this U-Net, or has another shape. Nothing is changed then.
    """
    fused = {module: _fused(unet, module, a, b) for module, (a, b) in _pairs(lora).items()}
    originals = {module: unet.get_submodule(module).weight.data for module in fused}
    for module, weight in fused.items():
        unet.get_submodule(module).weight.data = weight
    return originals


def unfuse(unet: UNet2DConditionModel, originals: Mapping[str, Tensor]) -> None:
    """Put back the weights that `fuse` returned: the same tensors, so the same bits."""
    for module, weight in originals.items():
        unet.get_submodule(module).weight.data = weight


def _pairs(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, matrix in lora.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise BackboneError(f"LoRA key {key!r} is unknown, expected `unet.<module>.lora_A.weight` or lora_B.")
        sides.setdefault(match["module"], {})[match["side"]] = matrix
    if alone := [module for module, pair in sides.items() if len(pair) < 2]:
        raise BackboneError(f"LoRA of {alone[0]!r} lacks its A or its B: the file is damaged; learn it again.")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _fused(unet: UNet2DConditionModel, module: str, a: Tensor, b: Tensor) -> Tensor:
    try:
        weight: Tensor = unet.get_submodule(module).weight.data
    except AttributeError:
        sentence = f"LoRA is for {module!r}, which this U-Net has not: use the backbone it was learned on."
        raise BackboneError(sentence) from None
    if weight.shape != (b.shape[0], a.shape[1]):
        got, expected = (b.shape[0], a.shape[1]), tuple(weight.shape)
        sentence = f"LoRA of {module!r} has shape {got}, expected {expected}: use the backbone it was learned on."
        raise BackboneError(sentence)
    change = b.float().cpu() @ a.float().cpu()
    return (weight.float().cpu() + change).to(weight.device, weight.dtype)

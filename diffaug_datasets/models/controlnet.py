"""ControlNet: a network beside the U-Net that sees a picture of edges and adds to the U-Net's features.

Nothing of the backbone is replaced: a hook before the U-Net asks the ControlNet about the same rows and hands its
residuals on, as diffusers' `StableDiffusionControlNetPipeline` does; it goes when the block ends. A network row of the
U-Net is one of the ControlNet too; only the U-Net's are counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.core.model_files import brief
from diffaug_datasets.families.parts.loaders import check_finite, quiet
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.controlnet_folder import unfit_controlnet
from diffaug_datasets.numerics.edges import canny


def load_controlnet(folder: str, backbone: Backbone) -> ControlNetModel:
    """The ControlNet of a folder, frozen, on the backbone's device and in its dtype; safetensors alone, no remote code.

    Raises:
        BackboneError: it cannot be read, lacks weights, or does not fit the U-Net.
    """
    try:
        with quiet():
            network, info = ControlNetModel.from_pretrained(
                Path(folder),
                torch_dtype=backbone.dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        if info["missing_keys"]:
            raise ValueError(f"{len(info['missing_keys'])} weights are missing, such as {min(info['missing_keys'])}")
        check_finite(network, "it")
        network.eval().requires_grad_(False).to(backbone.device)
        _try(network, backbone)
    except Exception as error:  # of whichever kind diffusers fails with on odd files
        raise unfit_controlnet(folder, brief(error)) from error
    found: ControlNetModel = network
    return found


@torch.no_grad()
def _try(network: ControlNetModel, backbone: Backbone) -> None:
    """One call on the smallest latent: parts may load and still not fit together. Leaves the counts as they are."""
    side = 2 ** (len(backbone.unet.config.block_out_channels) - 1)
    channels, factor = backbone.latent_shape[0], backbone.height // backbone.latent_shape[1]
    latent = torch.zeros(1, channels, side, side, device=backbone.device)
    picture = torch.zeros(1, 3, side * factor, side * factor)
    with backbone.uncounted(), steered(backbone, network, picture, 1.0):
        backbone.eps(latent, 0, backbone.prompts(["a photo"]))


@contextmanager
def steered(
    backbone: DiffusionModel, controlnet: ControlNetModel, pictures: Float[Tensor, "b 3 H W"], scale: float
) -> Iterator[None]:
    """Network calls inside are steered by pictures in [0, 1], one per row, with that weight.

    A call of 2b rows, both branches of guidance, is steered in both. Row j sees picture j alone.

    Raises:
        BackboneError: the backbone is no U-Net that a ControlNet can steer.
    """
    if not isinstance(backbone, Backbone) or not backbone.model.facts.is_unet:
        raise BackboneError("the backbone has no U-Net that a ControlNet can steer: use a Stable Diffusion 1.x model.")
    seen = pictures.to(backbone.device, backbone.dtype)

    def ask(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        state, time = given
        rows = seen.repeat(len(state) // len(seen), 1, 1, 1)
        text = named["encoder_hidden_states"]
        down, middle = controlnet(
            state,
            time,
            encoder_hidden_states=text,
            controlnet_cond=rows,
            conditioning_scale=scale,
            return_dict=False,
            **{key: named[key] for key in ("timestep_cond", "added_cond_kwargs") if key in named},
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return given, named | residuals

    handle = backbone.unet.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def edge_picture(image: Float[Tensor, "3 H W"], low: float, high: float) -> Float[Tensor, "3 H W"]:
    """The Canny edges of a picture in [-1, 1], white on black in [0, 1], of its 8-bit levels."""
    levels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    edges = torch.from_numpy(canny(levels.numpy(), low, high))
    return (edges.float() / 255).expand(3, -1, -1).contiguous()


def shown(edges: Float[Tensor, "3 H W"]) -> Image.Image:
    """Edges as a picture, for a person to look at."""
    return Image.fromarray((edges[0] * 255).to(torch.uint8).numpy())

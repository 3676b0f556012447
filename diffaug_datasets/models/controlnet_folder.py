"""Whether a folder holds a ControlNet that fits a backbone, by its files alone: asked at plan, without torch."""

from collections.abc import Mapping

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.model_files import Damage, read_object, read_weights
from diffaug_datasets.core.models import BackboneSpec, find_backbone, local_path

FITTING = ("in_channels", "cross_attention_dim", "block_out_channels")
"""What a ControlNet's config must say as the U-Net's does."""


def check_controlnet(place: str | None, spec: BackboneSpec) -> None:
    """Look at the ControlNet of a recipe, and at the backbone's U-Net where that lies on this machine.

    Raises:
        RecipeError: none is named.
        BackboneError: there is no such folder, it holds something else, or it fits another backbone.
    """
    if not place:
        raise RecipeError(
            "config.controlnet: this method is steered by the edges of its sources; give the folder of a Canny "
            "ControlNet in diffusers format (lllyasviel/control_v11p_sd15_canny, fetched by `hf download`)."
        )
    folder = local_path(place)
    if folder is None or not folder.is_dir():
        raise unfit_controlnet(place, "there is no such folder")
    try:
        config = read_object(folder, "config.json")
        if config.get("_class_name") != "ControlNetModel":
            raise Damage(f"config.json says {config.get('_class_name')!r}, expected ControlNetModel")
        if read_weights(folder, "diffusion_pytorch_model") is None:
            raise Damage("diffusion_pytorch_model.safetensors is missing")
        _check_fit(config, spec)
    except Damage as error:
        raise unfit_controlnet(place, str(error)) from None


def _check_fit(config: Mapping[str, object], spec: BackboneSpec) -> None:
    backbone = find_backbone(spec).folder
    if backbone is None or not (backbone / "unet" / "config.json").is_file():
        return
    unet = read_object(backbone, "unet/config.json")
    for key in FITTING:
        if config.get(key) != unet.get(key):
            raise Damage(f"its {key} is {config.get(key)}, that of the backbone's U-Net {unet.get(key)}")


def unfit_controlnet(place: str, reason: str) -> BackboneError:
    """A ControlNet that cannot be used."""
    return BackboneError(
        f"controlnet {place!r} cannot be used ({reason}): expected a folder in diffusers format, config.json and "
        "diffusion_pytorch_model.safetensors, of a ControlNet for the backbone's version of Stable Diffusion."
    )

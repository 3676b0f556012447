"""Between PIL pictures and the tensors that a VAE sees.

The device that models run on.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError


def checked_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        BackboneError: it has not, or there is no such kind.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(
            f"device {device!r} was asked for, but torch {torch.__version__} cannot use it here: "
            "say `cpu`, or install a torch build for your GPU."
        ) from error
    return place


Resize = Literal["lanczos", "bilinear", "bicubic", "crop"]

MOST_PIXELS = 1 << 26  # of a picture on its way to a crop: 256 MiB

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def preprocess(image: Image.Image, resize: Resize, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """A picture as float32 in [-1, 1]. An alpha channel is dropped; EXIF rotation is the data layer's affair.

    `crop` keeps the aspect ratio: the picture is made to cover H x W (bilinear) and the middle is kept (GeNIe). The
    others stretch it: Diff-II uses lanczos, Diff-Mix bilinear, DA-Fusion and Diffusion Inversion bicubic.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    fitted = _covering(image, height, width) if resize == "crop" else image.resize((width, height), FILTERS[resize])
    levels = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
    return (2 * levels - 1).permute(2, 0, 1).contiguous()


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Follows torchvision's Resize(size) and CenterCrop(size), bilinear, for a square size.

    A picture so thin that it would be enlarged beyond `MOST_PIXELS` is cropped first: at most one grey level off.
    """
    scale = max(height / image.height, width / image.width)
    size = max(width, int(image.width * scale)), max(height, int(image.height * scale))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    if size[0] * size[1] > MOST_PIXELS:
        return _cropped_first(image, size, (left, top, left + width, top + height))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + width, top + height))


def _cropped_first(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """The box of an image that was resized, made from the part of the image that it shows and its neighbours."""
    steps = [length / resized for length, resized in zip(image.size, size, strict=True)] * 2
    shown = [edge * step for edge, step in zip(box, steps, strict=True)]
    margins = [math.ceil(max(step, 1)) + 1 for step in steps[:2]]  # what a bilinear filter sees beside the box
    corner = [max(0, math.floor(shown[axis]) - margins[axis]) for axis in (0, 1)]
    end = [min(image.size[axis], math.ceil(shown[axis + 2]) + margins[axis]) for axis in (0, 1)]
    x0, y0, x1, y1 = (edge - start for edge, start in zip(shown, corner * 2, strict=True))
    part = image.crop((corner[0], corner[1], end[0], end[1]))
    return part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))


def to_uint8(images: Float[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b H W 3"]:
    """Images in [0, 1] as bytes on the CPU, rounded to the nearest grey level.

    Raises:
        ValueError: a value is not finite; callers that expect failed rows look before they convert.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("got an image with values that are not finite; check rows before turning them into bytes")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

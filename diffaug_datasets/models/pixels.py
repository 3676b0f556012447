"""Between PIL pictures and the tensors that a VAE sees."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

Resize = Literal["lanczos", "bilinear", "bicubic", "crop"]

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
    image = image.convert("RGB")
    fitted = _covering(image, height, width) if resize == "crop" else image.resize((width, height), FILTERS[resize])
    levels = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
    return (2 * levels - 1).permute(2, 0, 1).contiguous()


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Follows torchvision's Resize(size) and CenterCrop(size), bilinear, for a square size."""
    scale = max(height / image.height, width / image.width)
    size = max(width, int(image.width * scale)), max(height, int(image.height * scale))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def to_uint8(images: Float[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b H W 3"]:
    """Images in [0, 1] as bytes on the CPU, rounded to the nearest grey level.

    Raises:
        ValueError: a value is not finite; callers that expect failed rows look before they convert.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("got an image with values that are not finite; check rows before turning them into bytes")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

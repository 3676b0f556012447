"""A batch's finished images as the host sees them: why one cannot stay, and its bytes.

One by one, as the profile exact has it, or all at once: then every image is judged and turned into bytes on its device,
and the host waits for it once a batch.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from diffaug_datasets.core.method import Generated
from diffaug_datasets.run.context import to_uint8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class OneByOne:
    """Every image is looked at when it is asked for."""

    def __init__(self, images: Sequence[Generated]) -> None:
        self._images = images

    def flaw(self, at: int) -> str:
        """Why image `at` cannot stay; empty where it can."""
        return flaw(self._images[at])

    def pixels(self, at: int) -> "NDArray[np.uint8]":
        """Image `at` as uint8 [h w 3]."""
        return to_uint8(self._images[at].pixels)


class AtOnce:
    """The same of a whole batch, in two transfers: what was found, and the bytes of images of one size."""

    def __init__(self, images: Sequence[Generated]) -> None:
        self._images = images
        self._there = [at for at, image in enumerate(images) if not image.lacking]

    def flaw(self, at: int) -> str:
        """Why image `at` cannot stay; empty where it can."""
        if self._images[at].lacking:
            return self._images[at].lacking
        finite, spread = self._found[at]
        return "not finite" if not finite else "constant image" if spread < 1 / 255 else ""

    def pixels(self, at: int) -> "NDArray[np.uint8]":
        """Image `at` as uint8 [h w 3]."""
        return self._bytes[at]

    @cached_property
    def _found(self) -> dict[int, tuple[bool, float]]:
        import torch

        pixels = [self._images[at].pixels for at in self._there]
        if not pixels:
            return {}
        numbers = [torch.stack([p.isfinite().all().float(), (p.amax() - p.amin()).float()]) for p in pixels]
        rows = torch.stack(numbers).cpu().tolist()
        return {at: (bool(finite), spread) for at, (finite, spread) in zip(self._there, rows, strict=True)}

    @cached_property
    def _bytes(self) -> "dict[int, NDArray[np.uint8]]":
        import torch

        levels = {at: _levels(self._images[at].pixels) for at in self._there}
        if len({tensor.shape for tensor in levels.values()}) == 1:
            array = torch.stack(list(levels.values())).cpu().numpy()
            return dict(zip(levels, array, strict=True))
        return {at: tensor.cpu().numpy() for at, tensor in levels.items()}


def look(images: Sequence[Generated], *, at_once: bool) -> OneByOne | AtOnce:
    """One of the two; they find the same."""
    return AtOnce(images) if at_once else OneByOne(images)


def flaw(image: Generated) -> str:
    """Why an image cannot stay: there is none, it is not finite, or of one flat colour; empty where it can."""
    import torch

    if image.lacking:
        return image.lacking
    if not bool(torch.isfinite(image.pixels).all()):
        return "not finite"
    low, high = image.pixels.amin(), image.pixels.amax()
    return "constant image" if float(high - low) < 1 / 255 else ""


def _levels(pixels: "Tensor") -> "Tensor":
    import torch

    if pixels.dtype == torch.uint8:
        return pixels
    return torch.nan_to_num(pixels.detach().float()).mul(255).round().clamp(0, 255).to(torch.uint8)

"""Real images as a fit sees them: latents, each encoded alone when a step shows it, so that memory does not grow with
the number of images. Sizes: b rows, latents [c h w].
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.core.method import Resize
from diffaug_datasets.models.backbone import Backbone

LATENT_BYTES = 1 << 30  # of latents that stay: 16,384 images of 512 x 512 one way


@dataclass(frozen=True)
class ConceptExample:
    """One real image of a class: a picture, a function that reads it, or a latent [c h w] that is never mirrored."""

    image: Image.Image | Tensor | Callable[[], Image.Image]
    class_id: int
    name: str = ""
    """What it is known by, such as the sha256 of its bytes; without one its pixels are looked at for that."""


ReadLatents = Callable[[Int[Tensor, " b"], Bool[Tensor, " b"]], Float[Tensor, "b c h w"]]
"""(which images, mirrored or not) -> their latents, on the CPU."""


class Latents:
    """Latents of images, each encoded alone when it is asked for; the last used ones stay, up to `LATENT_BYTES`.

    The backbone must be at the size at which they are seen whenever they are asked for.
    """

    def __init__(self, backbone: Backbone, examples: Sequence[ConceptExample], resize: Resize) -> None:
        self._backbone, self._examples, self._resize = backbone, examples, resize
        self._kept = ByteCache(self._encoded, lambda latent: latent.nbytes, LATENT_BYTES)

    def __call__(self, images: Int[Tensor, " b"], mirrored: Bool[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Latents of images by their numbers, mirrored or not."""
        return torch.stack([self._kept(key) for key in zip(images.tolist(), mirrored.tolist(), strict=True)])

    @property
    def identity(self) -> str:
        """Digest of what the images are, how they are seen, and of the first one's latents, as they are here."""
        size, first = (self._backbone.height, self._backbone.width), self._kept((0, False))
        seen = hashlib.sha256(first.contiguous().numpy().data).hexdigest()
        return digest([*map(_name, self._examples), self._resize, *size, seen])

    def _encoded(self, key: tuple[int, bool]) -> Float[Tensor, "c h w"]:
        number, is_mirrored = key
        image = self._examples[number].image
        if isinstance(image, Tensor):
            return image.float().cpu()
        pixels = self._backbone.preprocess(image if isinstance(image, Image.Image) else image(), self._resize)
        return self._backbone.encode((pixels.flip(-1) if is_mirrored else pixels)[None])[0].cpu()


def _name(example: ConceptExample) -> str:
    """What an image is known by."""
    if example.name:
        return example.name
    if isinstance(example.image, Tensor):
        return hashlib.sha256(example.image.float().cpu().contiguous().numpy().data).hexdigest()
    picture = example.image if isinstance(example.image, Image.Image) else example.image()
    return hashlib.sha256(repr((picture.mode, picture.size)).encode() + picture.tobytes()).hexdigest()

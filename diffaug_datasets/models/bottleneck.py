"""The U-Net's bottleneck (the output of its middle block), changed while it predicts: the h-space of DreamDA.

Nothing of the network's own code is replaced: a hook on the middle block adds noise, and goes when the block ends.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.models.backbone import Backbone


class BottleneckNoise:
    """Noise for the rows of a batch, one CPU generator per row: h + scale xi at a step's calls of the network.

    A step has two draws per row, [C h w] each: for the branch without the prompt, then for the one with it. A network
    call of 2b rows takes both, one of b rows the second, so that a row's draws never depend on which calls its
    neighbours need.
    """

    def __init__(self, generators: Sequence[torch.Generator], scale: float) -> None:
        self._generators, self._scale = generators, scale
        self._drawn: Tensor | None = None

    def added(self, h: Tensor) -> Tensor:
        """The bottleneck [b or 2b, C, h, w] with noise, in its own dtype."""
        if self._drawn is None:
            draws = [torch.randn((2, *h.shape[1:]), generator=generator) for generator in self._generators]
            self._drawn = torch.stack(draws, dim=1).to(h.device)
        rows = self._drawn.flatten(0, 1) if len(h) == 2 * len(self._generators) else self._drawn[1]
        return (h.float() + self._scale * rows).to(h.dtype)


@contextmanager
def perturbed(backbone: DiffusionModel, noise: BottleneckNoise) -> Iterator[None]:
    """Network calls inside get the noise at their bottleneck.

    Raises:
        BackboneError: it is no U-Net with a middle block.
    """
    block = None
    if isinstance(backbone, Backbone) and backbone.model.facts.is_unet:
        block = backbone.unet.mid_block
    if block is None:
        raise BackboneError(
            "the backbone has no U-Net with a middle block, so there is no bottleneck to perturb: use a Stable "
            "Diffusion 1.x or 2.x model."
        )
    handle = block.register_forward_hook(lambda _module, _given, h: noise.added(h))
    try:
        yield
    finally:
        handle.remove()

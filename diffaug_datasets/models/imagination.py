"""Latents moved so that an encoder sees the same class, less sure of it, and images that differ (GIF, 2211.13976).

`imagined` climbs S = s_con + s_ent + s_div over a scale z and a bias b per image and channel, by the sign of the
gradient, through the decoder and the encoder:
f' = P_eps((1 + z) f + b), P_eps the ball |f' - f| <= eps;
s_con = p'[j], j the class that the encoder sees in the real image; s_ent = H(p') - H(p); p = softmax(100 cos);
s_div = KL(softmax(mean of features) || softmax(features)), over the images that are imagined together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.kernels import as_written
from diffaug_datasets.models.training import HALF_LOSS_SCALE

TEMPERATURE = 100.0  # of CLIP's zero-shot classifier

See = Callable[[Tensor], Tensor]
"""Images [b 3 H W] in [0, 1] -> unit-norm features [b d], differentiable."""


@dataclass(frozen=True)
class Guide:
    """What judges images: features of images and of the classes' texts [C d], and those of the real image [d]."""

    see: See
    texts: Float[Tensor, "C d"]
    real: Float[Tensor, " d"]


@dataclass(frozen=True)
class Criteria:
    """The parts of S, means over the images that are imagined together."""

    consistency: Tensor
    entropy: Tensor
    diversity: Tensor

    @property
    def total(self) -> Tensor:
        """S."""
        return self.consistency + self.entropy + self.diversity

    def measured(self) -> dict[str, float]:
        """The parts as numbers."""
        return {name: float(value.detach()) for name, value in vars(self).items()}


def imagined(
    model: DiffusionModel,
    latents: Float[Tensor, "b c h w"],
    guide: Guide,
    scale: Float[Tensor, "b c"],
    bias: Float[Tensor, "b c"],
    *,
    radius: float,
    step: float,
    updates: int,
) -> tuple[Float[Tensor, "b c h w"], Criteria]:
    """The moved latents, and the criteria as the last update found them. All images are of one real image."""
    backbone = cast(Backbone, model)
    grow = HALF_LOSS_SCALE if backbone.dtype == torch.float16 else 1.0
    z, b = (part.to(latents)[:, :, None, None].clone() for part in (scale, bias))
    with as_written(backbone), torch.enable_grad():
        for _ in range(updates):
            z, b = z.requires_grad_(True), b.requires_grad_(True)
            pictures = backbone.decode_with_gradient(latents * (1 + z) + b)
            found = criteria(guide.see(pictures), guide.texts, guide.real)
            of_z, of_b = torch.autograd.grad(found.total * grow, (z, b))
            z, b = (z + step * of_z.sign()).detach(), (b + step * of_b.sign()).detach()
    moved = latents * (1 + z) + b
    if not updates:
        with torch.no_grad():
            found = criteria(guide.see(backbone.decode_with_gradient(moved)), guide.texts, guide.real)
    return torch.minimum(torch.maximum(moved, latents - radius), latents + radius), found


def criteria(features: Float[Tensor, "b d"], texts: Float[Tensor, "C d"], real: Float[Tensor, " d"]) -> Criteria:
    """Of unit-norm features."""
    before, after = (TEMPERATURE * x @ texts.T for x in (real[None], features))
    seen = int(before.argmax())
    logs = features.log_softmax(1)
    mean = features.mean(0, keepdim=True).log_softmax(1)
    diversity = (mean.exp() * (mean - logs)).sum() / len(features)
    entropy = (_entropy(after) - _entropy(before)).mean()
    return Criteria(after.softmax(1)[:, seen].mean(), entropy, diversity)


def _entropy(logits: Float[Tensor, "b C"]) -> Float[Tensor, " b"]:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)

"""A loaded model of any family, as the engine drives it: `DrivenModel`, and `TextSide`, which conditions its texts.

Sizes: b rows, latents [c h w] as noise is drawn for them, images [3 H W]. A family whose network takes tokens packs and
unpacks inside `predict`. Latents, conditions and predictions are float32 outside; the network has the spec's dtype.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.numerics.conditions import Condition, Conditioning
from diffaug_datasets.numerics.levels import Prediction
from diffaug_datasets.numerics.schedule import Process, guided

KEPT_PROMPTS = 1024
KEPT_BYTES = 1 << 29  # of conditions: those of a large language model have megabytes each


class TextSide(ABC):
    """From texts to conditions. Every text is encoded alone, once, so that none depends on the texts beside it.

    `encoders`: the text encoders that take rows of new words, each with its tokenizer. A family that has some
    overrides `ids`, `encode`, `install` and `uninstall`.
    """

    encoders: tuple[tuple[Any, Any], ...] = ()
    takes_words: bool = False
    """Whether a token stands for words instead, which `install` gets as bytes and nothing is learned of."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[str, bool], Any] = OrderedDict()

    @abstractmethod
    def condition(self, text: str) -> Any:
        """The condition of one text, without the axis of rows: float32; a tensor [s d], or a `Condition`."""

    def unconditional(self, text: str) -> Any:
        """The same of a negative prompt; a family that takes nothing at all for an empty one says so here."""
        return self.condition(text)

    def __call__(self, text: str, *, negative: bool = False) -> Any:
        """The condition of a text; the last few are remembered.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        key = (text, negative)
        if key not in self._cache:
            with torch.no_grad():
                self._cache[key] = self.unconditional(text) if negative else self.condition(text)
            while len(self._cache) > most_kept(self._cache[key]):
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def forget(self) -> None:
        """Encode every text anew: a text encoder has changed."""
        self._cache.clear()

    def ids(self, text: str) -> Int[Tensor, "..."]:  # noqa: ARG002
        """Token ids of a text, for `encode`. Raises as `install`."""
        raise self._no_tokens()

    def encode(self, ids: Int[Tensor, "b ..."]) -> Any:  # noqa: ARG002
        """The conditions [b ...] of token ids, differentiable in learned rows. Raises as `install`."""
        raise self._no_tokens()

    def install(self, tokens: Mapping[str, Float[Tensor, "n d"]]) -> tuple[nn.Parameter, ...]:
        """Put learned tokens beside the plain ones; the parameters that hold their rows, one per text encoder.

        Raises:
            BackboneError: this family takes none, or they are of another width.
        """
        if tokens:
            raise self._no_tokens()
        return ()

    def uninstall(self) -> None:
        """Bring the original tokenizers and embeddings back: the same objects, so the same bits. Forgets all texts."""
        self.forget()

    @staticmethod
    def _no_tokens() -> BackboneError:
        return BackboneError(
            "the text encoders of this model take no learned tokens: use a method without concepts, or a Stable "
            "Diffusion model."
        )


def most_kept(condition: Any) -> int:
    """How many conditions as large as this one are remembered: at least two, of a batch's both branches."""
    parts = condition.parts.values() if isinstance(condition, Condition) else (condition,)
    return max(2, min(KEPT_PROMPTS, KEPT_BYTES // max(1, sum(part.nbytes for part in parts))))


class DrivenModel(ABC):
    """A model that is loaded, frozen, in eval mode and on its device.

    `network`: what denoises, a U-Net or a transformer; `prediction`: what it says. `facts`: those of its folder.
    `factor`: pixels per latent on one side; `channels`: of a latent. `side`: (height, width) in pixels where the recipe
    says none.
    """

    facts: ModelFacts
    network: nn.Module
    vae: nn.Module
    text: TextSide
    prediction: Prediction
    device: torch.device
    dtype: torch.dtype
    channels: int
    factor: int
    side: tuple[int, int]
    lora_prefix: str = "unet"
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    @abstractmethod
    def process(self, height: int, width: int) -> Process:
        """The noise levels at a size in pixels, which some flows depend on; the same object for the same size."""

    @abstractmethod
    def predict(
        self,
        state: Float[Tensor, "b c h w"],
        time: Tensor,
        condition: Conditioning,
        guidance: Float[Tensor, " b"] | None = None,
        image: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """What the network says of states at labels `time` [b], float32: one network call.

        `guidance`: the scale per row, for a family that embeds it (1 = none). `image`: what an editor sees beside the
        state. Differentiable in `condition`.
        """

    def guided(
        self, low: Float[Tensor, "b c h w"], high: Float[Tensor, "b c h w"], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """What guidance makes of the predictions without (`low`) and with the prompt (`high`)."""
        return guided(low, high, scale)

    @abstractmethod
    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the unscaled latents of images in [-1, 1], float32; None = no deviation."""

    @abstractmethod
    def scaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Unscaled latents as the network knows them."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images of scaled latents in [-1, 1], not clamped, float32; differentiable."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(c, h, w) of a latent of an image of that size."""
        return self.channels, height // self.factor, width // self.factor

"""Loaded pipelines of one transformer, as the engine drives them: what their families share, and how texts are read.

Texts are conditioned by `encode_prompt` of diffusers' own pipeline, one at a time: templates, lengths and layers are as
it has them. Everything else, from packing to the scale of latents, is here and in `packed_models`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import ModelFacts, discover_families
from diffaug_datasets.families.parts.clip_text import PLACEHOLDER
from diffaug_datasets.families.parts.driven import DrivenModel, TextSide
from diffaug_datasets.numerics.conditions import Condition, Conditioning, stacked
from diffaug_datasets.numerics.schedule import Process

Encode = Callable[[str, bool], Mapping[str, Tensor]]
"""(text, whether it is negative) -> the tensors of its condition [1 ...]."""
Levels = Callable[[int, int], Process]
"""(height, width) in pixels -> the noise levels at that size."""


class PipelineText(TextSide):
    """Texts as a function of diffusers' pipeline reads them. A learned token stands for words, a rare one and a name,
    as in DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): the network learns them by LoRA, no text encoder does.
    """

    takes_words = True

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self._encode = encode
        self._words: dict[str, str] = {}
        self._texts: list[str] = []

    def condition(self, text: str) -> Condition:
        """The condition of a text, float32; masks and the like keep their dtype.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        return self._of(text, False)

    def unconditional(self, text: str) -> Condition:
        """The same of a negative prompt."""
        return self._of(text, True)

    def _of(self, text: str, is_negative: bool) -> Condition:
        with torch.no_grad():
            parts = self._encode(self._spelled(text), is_negative)
        return Condition(
            {name: part[0].float() if part.is_floating_point() else part[0] for name, part in parts.items()}
        )

    def _spelled(self, text: str) -> str:
        if unknown := set(PLACEHOLDER.findall(text)) - self._words.keys():
            sentence = f"prompt {text!r} names {min(unknown)}, which is not learned: install its concepts first."
            raise BackboneError(sentence)
        return PLACEHOLDER.sub(lambda match: self._words[match[0]], text)

    def ids(self, text: str) -> Int[Tensor, " 1"]:
        """The number of a text, by which `encode` knows it. Raises as `condition`."""
        self._spelled(text)
        if text not in self._texts:
            self._texts.append(text)
        return torch.tensor([self._texts.index(text)])

    def encode(self, ids: Int[Tensor, "b 1"]) -> Condition:
        """The conditions of texts that have numbers; nothing in them is learned."""
        made: Condition = stacked([self(self._texts[int(number)]) for number in ids[:, 0]])
        return made

    def install(self, tokens: Mapping[str, Shaped[Tensor, "..."]]) -> tuple[nn.Parameter, ...]:
        """Let tokens stand for the words that `word_row` wrote; there is no parameter to learn.

        Raises:
            BackboneError: a token holds numbers for a text encoder.
        """
        self.uninstall()
        for name, row in tokens.items():
            if row.dtype != torch.uint8:
                raise BackboneError(
                    f"concept {name} was learned for a text encoder, and this model reads words: use the backbone that "
                    "it was learned on, or learn the concepts again."
                )
            self._words[name] = bytes(row.tolist()).decode("utf-8")
        return ()

    def uninstall(self) -> None:
        """Let tokens stand for nothing again."""
        self.forget()
        self._words, self._texts = {}, []


class TransformerModel(DrivenModel):
    """A transformer and an `AutoencoderKL`; all networks have the spec's dtype.

    `levels`: the process at a size. `side`: pixels where the recipe says none.
    """

    network: Any
    vae: Any

    def __init__(
        self,
        facts: ModelFacts,
        network: Any,
        vae: Any,
        text: TextSide,
        device: torch.device,
        *,
        levels: Levels,
        side: int,
    ) -> None:
        self.facts, self.network, self.vae, self.text, self.device = facts, network, vae, text, device
        self.prediction, self.dtype, self.side = facts.prediction, network.dtype, (side, side)
        self.channels, self.factor = self.measures()
        self._levels, self._known = levels, dict[tuple[int, int], Process]()
        family = discover_families()[facts.family]
        self.lora_prefix, self.lora_targets = family.LORA_PREFIX, family.LORA_TARGETS

    def measures(self) -> tuple[int, int]:
        """Channels of a latent, and pixels per latent on one side."""
        return int(self.vae.config.latent_channels), 2 ** (len(self.vae.config.block_out_channels) - 1)

    def process(self, height: int, width: int) -> Process:
        """The noise levels at a size in pixels; the same object for the same size."""
        size = (height, width)
        if size not in self._known:
            self._known[size] = self._levels(*size)
        return self._known[size]

    def predict(
        self,
        state: Float[Tensor, "b c h w"],
        time: Tensor,
        condition: Conditioning,
        guidance: Float[Tensor, " b"] | None = None,
        image: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One call of the transformer."""
        if not isinstance(condition, Condition) or image is not None:
            raise TypeError(
                f"got a condition of {type(condition)} and an image {image is not None}; neither is known here"
            )
        told = condition if guidance is None else Condition({**condition.parts, "guidance": guidance})
        said = self.call(state.to(self.device, self.dtype), time.to(self.device), told.to(self.device, self.dtype))
        return said.float()

    @abstractmethod
    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """What the network says [b c h w] of states at labels; everything is on its device, in its dtype. `told`: the
        condition, and the scale of guidance by that name for a family that embeds it.
        """

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the VAE's posterior."""
        found = self.vae.encode(images.to(self.device, self.dtype)).latent_dist
        return found.mode().float(), found.std.float()

    def scaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(latents - shift) * factor of the VAE's configuration."""
        config = self.vae.config
        scaled: Tensor = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
        return scaled

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the VAE makes of them."""
        config = self.vae.config
        unscaled = latents.to(self.device, torch.float32) / config.scaling_factor + (config.shift_factor or 0.0)
        images: Tensor = self.vae.decode(unscaled.to(self.dtype), return_dict=False)[0]
        return images.float()


class StableDiffusion3Model(TransformerModel):
    """The transformer is told the text, a pooled text, and T sigma."""

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call."""
        said: Tensor = self.network(
            hidden_states=state,
            timestep=time,
            encoder_hidden_states=told["text"],
            pooled_projections=told["pooled"],
            return_dict=False,
        )[0]
        return said


class PixArtModel(TransformerModel):
    """eps is the first half of what the transformer says; the second is a variance, which no sampler here needs.

    The largest PixArt-alpha is told the size in pixels and height over width too.
    """

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call."""
        height, width = state.shape[-2] * self.factor, state.shape[-1] * self.factor
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            size = {
                "resolution": state.new_tensor([height, width]).repeat(len(state), 1),
                "aspect_ratio": state.new_tensor([height / width]).repeat(len(state), 1),
            }
        said: Tensor = self.network(
            state,
            encoder_hidden_states=told["text"],
            encoder_attention_mask=told["mask"],
            timestep=time,
            added_cond_kwargs=size,
            return_dict=False,
        )[0]
        return said[:, : self.channels]


class SanaModel(TransformerModel):
    """A deep-compression autoencoder without a posterior; times are whole where the model's own solver has them so."""

    has_whole_times: bool = False

    def measures(self) -> tuple[int, int]:
        """Channels of a latent, and pixels per latent on one side."""
        config = self.vae.config
        return int(config.latent_channels), 2 ** (len(config.encoder_block_out_channels) - 1)

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call."""
        seen = time.to(torch.int64) if self.has_whole_times else time
        said: Tensor = self.network(
            state,
            encoder_hidden_states=told["text"],
            encoder_attention_mask=told["mask"],
            timestep=seen * self.network.config.timestep_scale,
            return_dict=False,
        )[0]
        return said

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """The latents, which are not drawn."""
        latents: Tensor = self.vae.encode(images.to(self.device, self.dtype)).latent
        return latents.float(), None

    def scaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents times the factor of the VAE's configuration."""
        scaled: Tensor = latents * self.vae.config.scaling_factor
        return scaled

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the autoencoder makes of them."""
        unscaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(unscaled.to(self.dtype), return_dict=False)[0]
        return images.float()


def padded(states: Float[Tensor, "s d"], length: int) -> dict[str, Tensor]:
    """The states of one text [1 length d], filled up with zeros, and the mask of those that are there."""
    text = states.new_zeros(1, length, states.shape[1])
    text[0, : len(states)] = states
    mask = torch.zeros(1, length, dtype=torch.int64, device=states.device)
    mask[0, : len(states)] = 1
    return {"text": text, "mask": mask}


@torch.no_grad()
def try_once(model: DrivenModel) -> None:
    """One step on the smallest image: parts may load and still not fit together.

    Raises:
        ValueError: what comes out is not what went in.
        Exception: of whichever kind a network fails with.
    """
    side = 2 * model.facts.multiple_of
    latent = torch.zeros(1, *model.latent_shape(side, side), device=model.device)
    condition = model.text("a photo").map(lambda part: part[None])
    ones = torch.ones(1, device=model.device)
    said = model.predict(latent, ones, condition, ones)
    again = model.posterior(model.decode(latent))[0]
    if not latent.shape == said.shape == again.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (latent, said, again))
        raise ValueError(f"latent, prediction and encoded image have the shapes {shapes}")

"""Loaded pipelines whose transformer takes 2 x 2 latents as one token: FLUX.1, FLUX.2, Z-Image, Qwen-Image.

FLUX.1, Z-Image and Qwen-Image draw noise for latents, FLUX.2 for tokens laid out as a picture of 4c channels. A text
has its own length in Z-Image and Qwen-Image, so their rows are told it one by one: a row's bits then depend on nothing
beside it, whatever the batch.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.families.parts.transformer_models import TransformerModel
from diffaug_datasets.numerics.conditions import Condition, rows_of


def packed(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """Tokens of 2 x 2 latents, row by row; d = 4c, the channel first."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """The latents of `height` x `width` that `packed` made into tokens."""
    b, _, d = tokens.shape
    grid = tokens.reshape(b, height // 2, width // 2, d // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // 4, height, width)


def patched(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
    """The same 2 x 2 latents as channels of a picture of half the size; d = 4c, the channel first."""
    b, c, h, w = latents.shape
    grid = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return grid.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def unpatched(grid: Float[Tensor, "b d h2 w2"]) -> Float[Tensor, "b c h w"]:
    """The latents that `patched` put into channels."""
    b, d, h, w = grid.shape
    return grid.reshape(b, d // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, d // 4, 2 * h, 2 * w)


class FluxModel(TransformerModel):
    """Told the text, a pooled text, places, sigma and, where it was distilled so, the scale of guidance."""

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call."""
        h, w = state.shape[-2:]
        said: Tensor = self.network(
            hidden_states=packed(state),
            timestep=time / 1000,
            guidance=told["guidance"].float() if self.network.config.guidance_embeds else None,
            pooled_projections=told["pooled"],
            encoder_hidden_states=told["text"],
            txt_ids=state.new_zeros(told["text"].shape[1], 3),
            img_ids=self._places(h // 2, w // 2).to(state),
            return_dict=False,
        )[0]
        return unpacked(said, h, w)

    @staticmethod
    def _places(rows: int, columns: int) -> Float[Tensor, "n 3"]:
        places = torch.zeros(rows, columns, 3)
        places[..., 1] += torch.arange(rows)[:, None]
        places[..., 2] += torch.arange(columns)
        return places.reshape(-1, 3)


class Flux2Model(TransformerModel):
    """Latents are tokens laid out as a picture, normalised by the running statistics of the VAE's batch norm."""

    def measures(self) -> tuple[int, int]:
        """Channels of a token, and pixels per token on one side."""
        config = self.vae.config
        return 4 * int(config.latent_channels), 2 ** len(config.block_out_channels)

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call."""
        h, w = state.shape[-2:]
        said: Tensor = self.network(
            hidden_states=state.flatten(2).transpose(1, 2),
            timestep=time / 1000,
            guidance=None,
            encoder_hidden_states=told["text"],
            txt_ids=self._places(len(state), 1, 1, told["text"].shape[1]),
            img_ids=self._places(len(state), h, w, 1),
            return_dict=False,
        )[0]
        return said[:, : h * w].transpose(1, 2).reshape(state.shape)

    def _places(self, rows: int, height: int, width: int, length: int) -> Float[Tensor, "b n 4"]:
        """(picture, row, column, place in the text) of every token."""
        axes = [torch.arange(n, device=self.device) for n in (1, height, width, length)]
        return torch.cartesian_prod(*axes).expand(rows, -1, -1)

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the VAE's posterior, as tokens."""
        mode, deviation = super().posterior(images)
        return patched(mode), None if deviation is None else patched(deviation)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean = norm.running_mean.float().view(1, -1, 1, 1)
        deviation = (norm.running_var.float().view(1, -1, 1, 1) + self.vae.config.batch_norm_eps).sqrt()
        return mean, deviation

    def scaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents less the running mean, over the running deviation."""
        mean, deviation = self._statistics()
        return (latents.to(mean.device) - mean) / deviation

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the VAE makes of them."""
        mean, deviation = self._statistics()
        unscaled = latents.to(self.device, torch.float32) * deviation + mean
        images: Tensor = self.vae.decode(unpatched(unscaled).to(self.dtype), return_dict=False)[0]
        return images.float()


class RowByRowModel(TransformerModel):
    """A transformer whose texts have their own lengths: it is called once per row."""

    def call(self, state: Tensor, time: Tensor, told: Condition) -> Tensor:
        """One call per row."""
        rows = []
        for j in range(len(state)):
            one = rows_of(told, slice(j, j + 1))
            rows.append(self.call_row(state[j : j + 1], time[j : j + 1], one["text"][one["mask"].bool()][None]))
        return torch.cat(rows)

    @abstractmethod
    def call_row(
        self, state: Float[Tensor, "1 c h w"], time: Float[Tensor, " 1"], text: Float[Tensor, "1 s d"]
    ) -> Float[Tensor, "1 c h w"]:
        """What the network says of one row and its text."""


class ZImageModel(RowByRowModel):
    """Told 1 - sigma, it says x0 - eps; both signs are turned here."""

    def call_row(
        self, state: Float[Tensor, "1 c h w"], time: Float[Tensor, " 1"], text: Float[Tensor, "1 s d"]
    ) -> Float[Tensor, "1 c h w"]:
        """One call, with one frame."""
        said: Any = self.network([state[0, :, None]], (1000 - time) / 1000, [text[0]], return_dict=False)[0]
        found: Tensor = -said[0][None, :, 0].float()
        return found


class QwenImageModel(RowByRowModel):
    """A VAE of videos of which one frame is used, with a mean and a deviation per channel.

    Guidance keeps the norm that every token has with the prompt alone, as diffusers' pipeline has it.
    """

    def measures(self) -> tuple[int, int]:
        """Channels of a latent, and pixels per latent on one side."""
        return int(self.vae.config.z_dim), 2 ** len(self.vae.temperal_downsample)

    def call_row(
        self, state: Float[Tensor, "1 c h w"], time: Float[Tensor, " 1"], text: Float[Tensor, "1 s d"]
    ) -> Float[Tensor, "1 c h w"]:
        """One call."""
        h, w = state.shape[-2:]
        said: Tensor = self.network(
            hidden_states=packed(state),
            timestep=time / 1000,
            guidance=None,
            encoder_hidden_states_mask=None,
            encoder_hidden_states=text,
            img_shapes=[[(1, h // 2, w // 2)]],
            return_dict=False,
        )[0]
        return unpacked(said, h, w)

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the VAE's posterior, of the one frame."""
        found = self.vae.encode(images.to(self.device, self.dtype)[:, :, None]).latent_dist
        return found.mode()[:, :, 0].float(), found.std[:, :, 0].float()

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, deviation = (
            like.new_tensor(list(v)).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        return mean, deviation

    def scaled(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents less the mean, over the deviation, per channel."""
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the VAE makes of them."""
        wide = latents.to(self.device, torch.float32)
        mean, deviation = self._statistics(wide)
        unscaled = (wide * deviation + mean)[:, :, None]
        images: Tensor = self.vae.decode(unscaled.to(self.dtype), return_dict=False)[0]
        return images[:, :, 0].float()

    def guided(
        self, low: Float[Tensor, "b c h w"], high: Float[Tensor, "b c h w"], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """low + scale (high - low), every token brought to the norm that it has in `high`."""
        without, wanted = packed(low), packed(high)
        joint = without + scale.to(low).view(-1, 1, 1) * (wanted - without)
        norms = wanted.norm(dim=-1, keepdim=True) / joint.norm(dim=-1, keepdim=True)
        return unpacked(joint * norms, *low.shape[-2:])


def tokens_of(height: int, width: int, pixels: int) -> int:
    """Tokens of an image whose tokens have so many pixels on a side."""
    return math.prod(side // pixels for side in (height, width))

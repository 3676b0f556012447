"""A loaded pipeline of one `UNet2DConditionModel` and one `AutoencoderKL`: what Stable Diffusion's families share."""

from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.family import ModelFacts
from diffaug_datasets.families.parts.driven import DrivenModel, TextSide
from diffaug_datasets.numerics.conditions import Condition, Conditioning, stacked, text_of
from diffaug_datasets.numerics.schedule import Schedule

USUAL_SIDE = 64  # latents, as diffusers' pipelines take it where the U-Net does not state it


class UNetModel(DrivenModel):
    """U-Net and VAE have the spec's dtype; what the network is told is the text, and what `told` adds."""

    network: UNet2DConditionModel
    vae: AutoencoderKL

    def __init__(
        self, facts: ModelFacts, network: Any, vae: Any, text: TextSide, schedule: Schedule, device: torch.device
    ) -> None:
        self.facts, self.network, self.vae, self.text, self.device = facts, network, vae, text, device
        self.schedule, self.prediction, self.dtype = schedule, facts.prediction, network.dtype
        self.channels, self.factor = int(vae.config.latent_channels), 2 ** (len(vae.config.block_out_channels) - 1)
        native = network.config.sample_size or USUAL_SIDE
        rows, columns = (native, native) if isinstance(native, int) else native
        self.side = rows * self.factor, columns * self.factor

    def process(self, height: int, width: int) -> Schedule:  # noqa: ARG002
        """The same levels at every size."""
        return self.schedule

    def told(
        self,
        state: Tensor,  # noqa: ARG002
        condition: Conditioning,  # noqa: ARG002
        guidance: Tensor | None,
    ) -> dict[str, Any]:
        """What the network is told beside the state, the time and the text."""
        width = self.network.config.time_cond_proj_dim
        if width is None or guidance is None:
            return {}
        return {"timestep_cond": scale_embedding(guidance.to(self.device), width).to(self.dtype)}

    def predict(
        self,
        state: Float[Tensor, "b c h w"],
        time: Tensor,
        condition: Conditioning,
        guidance: Float[Tensor, " b"] | None = None,
        image: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One call of the U-Net; an editing one sees the image's latents beside the state, zeros where none are."""
        text = text_of(condition).to(self.device, self.dtype)
        shown = state
        if self.facts.edits:
            shown = torch.cat([state, torch.zeros_like(state) if image is None else image.to(state)], dim=1)
        more = self.told(state, condition, guidance)
        said: Tensor = self.network(shown.to(self.dtype), time, encoder_hidden_states=text, return_dict=False, **more)[
            0
        ]
        return said.float()

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Mode and standard deviation of the VAE's posterior."""
        found = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
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
        images: Tensor = self.vae.decode(unscaled.to(self.vae.dtype)).sample
        return images.float()


class SizedUNetModel(UNetModel):
    """The same, told a pooled text and the size of the picture too: Stable Diffusion XL."""

    def told(self, state: Tensor, condition: Conditioning, guidance: Tensor | None) -> dict[str, Any]:
        """`text_embeds`, and `time_ids`: the size asked for, no crop, the size again."""
        height, width = (side * self.factor for side in state.shape[-2:])
        numbers = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
        pooled = cast(Condition, condition)["pooled"].to(self.device, self.dtype)
        more = {"text_embeds": pooled, "time_ids": numbers.expand(len(state), -1)}
        return {**super().told(state, condition, guidance), "added_cond_kwargs": more}


def scale_embedding(scale: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """The guidance scale as a network is told it: sines and cosines of 1000 (scale - 1), float32.

    Follows `get_guidance_scale_embedding` of diffusers' pipelines, after Kingma et al.'s code of arXiv 2107.00630.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = ((scale.float() - 1) * 1000.0)[:, None] * rates.to(scale.device)[None]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(waves, (0, width % 2))


@torch.no_grad()
def try_once(model: UNetModel) -> None:
    """One step on the smallest latent: parts may load and still not fit together.

    Raises:
        ValueError: what comes out is not what went in.
        Exception: of whichever kind a network fails with.
    """
    side = 2 ** (len(model.network.config.block_out_channels) - 1)
    latent = torch.zeros(1, model.channels, side, side, device=model.device)
    condition = model.text.condition("a photo")
    batched = stacked([condition])
    said = model.predict(latent, torch.tensor([0], device=model.device), batched, torch.ones(1, device=model.device))
    again = model.posterior(model.decode(latent))[0]
    if not latent.shape == said.shape == again.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (latent, said, again))
        raise ValueError(f"latent, noise and encoded image have the shapes {shapes}")

"""DeepCache: at most steps only the outermost layers of the U-Net run, on deep features of an earlier step.

Implements Ma et al. 2023 (arXiv 2312.00858) at its shallowest branch, uniform: what enters the last layer of the last
up block is kept from a whole evaluation; until the next one `conv_in`, that layer and the output convolution run alone.
Right after a whole evaluation, at the same state and label, both give the same bits. Sizes: b rows, latents [c h w].
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError

PLAIN = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


class Reuse:
    """One batch's kept features of one U-Net."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Raises BackboneError as `check_reusable`."""
        check_reusable(unet)
        self._unet, self._block = unet, unet.up_blocks[-1]
        self._deep: Tensor | None = None

    def knows(self, rows: int) -> bool:
        """Whether features of so many rows can be had: those of a guided call hold the conditional rows last."""
        return self._deep is not None and len(self._deep) in (rows, 2 * rows)

    def whole(self, state: Float[Tensor, "b c h w"], time: Tensor, **named: Any) -> tuple[Tensor]:
        """The U-Net itself; what enters its last layer is kept."""
        handle = self._block.resnets[-1].register_forward_pre_hook(self._keep)
        try:
            said: tuple[Tensor] = self._unet(state, time, **named)
        finally:
            handle.remove()
        return said

    def shallow(self, state: Float[Tensor, "b c h w"], time: Tensor, text: Tensor) -> Float[Tensor, "b c h w"]:
        """The outermost layers alone, on the features that were kept."""
        unet, block = self._unet, self._block
        deep = self._deep
        assert deep is not None, "a whole evaluation comes first"
        emb = unet.time_embedding(unet.get_time_embed(sample=state, timestep=time))
        shown = unet.conv_in(state)
        hidden = block.resnets[-1](torch.cat([deep[-len(state) :], shown], dim=1), emb)
        if getattr(block, "has_cross_attention", False):
            hidden = block.attentions[-1](hidden, encoder_hidden_states=text, return_dict=False)[0]
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        said: Tensor = unet.conv_out(hidden)
        return said

    def _keep(self, _module: Any, given: tuple[Tensor, ...]) -> None:
        own = int(self._unet.conv_in.out_channels)
        self._deep = given[0][:, :-own]


def check_reusable(unet: UNet2DConditionModel) -> None:
    """Raises BackboneError where the outermost layers of a U-Net are not those of Stable Diffusion 1.x and 2.x."""
    odd = [key for key in PLAIN if unet.config.get(key)]
    odd += ["center_input_sample"] * bool(unet.config.get("center_input_sample"))
    odd += ["time_embedding_act_fn"] * bool(unet.time_embed_act)
    odd += ["upsamplers in the last block"] * bool(unet.up_blocks[-1].upsamplers)
    if odd:
        raise BackboneError(
            f"profile turbo keeps features of a plain Stable Diffusion U-Net, and this one has {odd[0]}: use fast, or "
            "set profile.interval to 1."
        )

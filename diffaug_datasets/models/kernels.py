"""A loaded model put to work under a profile: memory layout, compiled blocks, and what lets a small card hold it.

`put_to_work` changes a backbone in place and says what came of it; nothing is left out in silence. How batches are then
driven is `driving`'s.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffaug_datasets.core.model_files import brief
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.profiles import Profile
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.deep_features import check_reusable

log = logging.getLogger("diffaug_datasets")

LEAST_COMPILED = 50_000_000  # parameters; the packaged U-Net of 4 million is slower compiled, on a CPU (measured)
MOST_COMPILED = 64  # variants of one block: its widths times the batch shapes of guidance and of halves


def spec_on(spec: BackboneSpec, profile: Profile, device: str) -> BackboneSpec:
    """The spec that is loaded: in fast and turbo a GPU computes in bfloat16 where the recipe leaves float32."""
    is_narrowed = not profile.is_exact and device.startswith("cuda") and spec.dtype == "float32"
    return spec.model_copy(update={"dtype": "bfloat16"}) if is_narrowed else spec


def put_to_work(backbone: Backbone, profile: Profile, shape: int) -> None:
    """Prepare a backbone for batches of `shape` rows; `backbone.kernels` says how.

    Raises:
        BackboneError: turbo cannot leave steps out of this U-Net.
    """
    backbone.profile = profile
    if profile.is_turbo and profile.interval > 1:
        check_reusable(backbone.unet)
    kernels = [str(backbone.dtype).removeprefix("torch.")]
    network: Any = backbone.network  # each family's own classes
    vae: Any = backbone.vae
    if profile.vae_slicing:
        vae.enable_slicing()
    if profile.vae_tiling:
        vae.enable_tiling()
    if profile.checkpointing:
        network.enable_gradient_checkpointing()
    if not profile.is_exact:
        if backbone.model.facts.is_unet:
            for part in (network, vae):
                part.to(memory_format=torch.channels_last)
            kernels.append("channels_last")
        kernels.append(_compiled(backbone, profile, shape))
    if profile.offload:
        kernels.append(_offloaded(backbone))
    backbone.kernels = ", ".join(kernels)


def _compiled(backbone: Backbone, profile: Profile, shape: int) -> str:
    """Compile the repeated blocks where that is asked for and can be done; what came of it, in words."""
    unet, is_gpu = backbone.network, backbone.device.type == "cuda"
    parameters = sum(weight.numel() for weight in unet.parameters())
    if profile.compile == "never":
        return "eager"
    if profile.compile == "auto" and not is_gpu and parameters < LEAST_COMPILED:
        return f"eager ({parameters / 1e6:.0f} million parameters gain nothing by compiling on a CPU)"
    lacking = _lacking(is_gpu)
    if not lacking:
        lacking = _try_compiling(backbone, shape)
    if lacking:
        log.warning("profile %s: the U-Net is not compiled (%s), all else is done.", profile.name, lacking)
        return f"eager ({lacking})"
    return "compiled"


def _lacking(is_gpu: bool) -> str:
    """What a compiler needs and this machine has not."""
    if is_gpu:
        from torch.utils._triton import has_triton

        return "" if has_triton() else "no triton"
    compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
    return "" if any(name and shutil.which(name) for name in compilers) else "no C++ compiler"


def _try_compiling(backbone: Backbone, shape: int) -> str:
    """Compile the blocks and see a batch through them, guided and not; why it did not work, '' if it did."""
    import torch._dynamo

    unet = backbone.network
    kinds = set(getattr(unet, "_repeated_blocks", None) or ())
    blocks = [module for module in unet.modules() if type(module).__name__ in kinds]
    if not blocks:
        return "its blocks do not repeat"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILED)
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)
    try:
        with torch.inference_mode(), backbone.uncounted():
            cond = backbone.prompts([""] * shape)
            xt = torch.zeros(shape, *backbone.latent_shape, device=backbone.device)
            backbone.guided_eps(xt, 0, cond, cond, torch.full((shape,), 2.0))
    except Exception as error:  # of whichever kind a compiler fails with
        for block in blocks:
            block._compiled_call_impl = None
        return brief(error)
    return ""


@contextmanager
def eager() -> Iterator[None]:
    """Compiled blocks run as they were written inside: for training, which changes them."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _offloaded(backbone: Backbone) -> str:
    """Let the networks wait in the computer's memory; each goes to the GPU when it is asked, and another leaves."""
    if backbone.device.type != "cuda":
        return "not offloaded (the device is the computer's own)"
    offload(backbone, backbone.device)
    return "offloaded"


def offload(backbone: Backbone, device: torch.device) -> None:
    """Chain text encoder, U-Net and VAE, of which one at a time lies on the device."""
    from accelerate import cpu_offload_with_hook

    hook = None
    for network in (*(encoder for _, encoder in backbone.text.encoders), backbone.network, backbone.vae):
        network.to("cpu")
        _, hook = cpu_offload_with_hook(network, device, prev_module_hook=hook)

"""A loaded model put to work under a profile: memory layout, compiled blocks, and what lets a small card hold it.

`put_to_work` changes a backbone in place and says what came of it; nothing is left out in silence. How batches are then
driven is `driving`'s.
"""

import logging
import os
import shutil
from collections.abc import Collection, Iterator
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
MOST_COMPILED = 256  # variants of one block: its widths times the batch shapes of guidance and of halves
# On a GPU, of U-Net and decoder: the layers between which little is computed.
BLOCKS = frozenset({"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "Attention"})


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
        kernels += _laid_out(backbone, profile, shape)
    if profile.offload:
        kernels.append(_offloaded(backbone))
    backbone.kernels = ", ".join(kernels)


def _laid_out(backbone: Backbone, profile: Profile, shape: int) -> list[str]:
    """Lay weights out as NHWC and compile, in words; a GPU computes faster in NCHW where nothing is compiled."""
    if not backbone.model.facts.is_unet:
        return [_compiled(backbone, profile, shape)]
    _set_layout(backbone, torch.channels_last)
    how = _compiled(backbone, profile, shape)
    if how != "compiled" and backbone.device.type == "cuda":
        _set_layout(backbone, torch.contiguous_format)
        return [how]
    return ["channels_last", how]


def _set_layout(backbone: Backbone, layout: torch.memory_format) -> None:
    network: Any = backbone.network
    vae: Any = backbone.vae
    for part in (network, vae):
        part.to(memory_format=layout)


def _compiled(backbone: Backbone, profile: Profile, shape: int) -> str:
    """Compile the network where that is asked for and can be done; what came of it, in words."""
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
    """Compile the blocks and see a batch through them, guided; why it did not work, '' if it did."""
    import torch._dynamo

    blocks = _blocks(backbone)
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
            if any(module._compiled_call_impl for module in backbone.vae.modules()):
                backbone.decode_float(xt)
    except Exception as error:  # of whichever kind a compiler fails with
        for block in blocks:
            block._compiled_call_impl = None
        return brief(error)
    return ""


def _blocks(backbone: Backbone) -> list[torch.nn.Module]:
    """What is compiled of a network: the blocks that repeat; on a GPU all layers of a U-Net and of its decoder.

    Where turbo leaves steps out, the layer whose input is kept stays as it is: what listens to a compiled one hears
    nothing.
    """
    network, profile = backbone.network, backbone.profile
    kinds = set(getattr(network, "_repeated_blocks", None) or ())
    if not kinds or not backbone.model.facts.is_unet or backbone.device.type != "cuda":
        return _of_kinds(network, kinds)
    kept = backbone.unet.up_blocks[-1].resnets[-1] if profile.is_turbo and profile.interval > 1 else None
    layers = [layer for layer in _of_kinds(network, BLOCKS) if layer is not kept]
    decoder: Any = backbone.vae
    return layers + ([] if profile.vae_tiling else _of_kinds(decoder.decoder, BLOCKS))


def _of_kinds(network: torch.nn.Module, kinds: Collection[str]) -> list[torch.nn.Module]:
    """Its modules of these classes, without those inside another one."""
    if type(network).__name__ in kinds:
        return [network]
    return [found for part in network.children() for found in _of_kinds(part, kinds)]


@contextmanager
def as_written(backbone: Backbone) -> Iterator[None]:
    """Nothing compiled is used inside, and weights lie as that is quickest: for gradients, and blocks that change."""
    compiled = [m for part in (backbone.network, backbone.vae) for m in part.modules() if m._compiled_call_impl]
    calls = [block._compiled_call_impl for block in compiled]
    is_moved = bool(compiled) and "channels_last" in backbone.kernels and backbone.device.type == "cuda"
    try:
        for block in compiled:
            block._compiled_call_impl = None
        if is_moved:
            _set_layout(backbone, torch.contiguous_format)
        yield
    finally:
        for block, call in zip(compiled, calls, strict=True):
            block._compiled_call_impl = call
        if is_moved:
            _set_layout(backbone, torch.channels_last)


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

"""What the kernels of a machine make of a fixed input: digests by which a stack is known, whatever it is called.

Two machines of one name and the same versions may take other paths through their libraries and give other last bits;
what they compute tells them apart. The inputs are fixed and small, their number is the planned batch shape.
"""

import hashlib
from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor

from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.numerics.conditions import tensors_of
from diffaug_datasets.numerics.schedule import add_noise

TEXT, SCALE, SIDE = "a photo of a bird", 7.5, 64


@torch.no_grad()
def backbone_fingerprint(backbone: Backbone, shape: int) -> str:
    """16 hex digits of one guided U-Net call, the VAE both ways, the text encoder and the rows' noise, at `shape` rows.

    Installed concepts would change it: the caller takes them out before.
    """
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=_generator(j)) for j in range(shape)])
    pixels = torch.stack([_levels(j, 3, backbone.height, backbone.width) for j in range(shape)]).float() / 127.5 - 1
    cond, uncond = backbone.prompts([TEXT] * shape), backbone.prompts([""] * shape, negative=True)
    latents = backbone.encode(pixels)
    labels = [(j + 1) * backbone.schedule.num_train_timesteps // (shape + 1) for j in range(shape)]
    xt = add_noise(backbone.schedule, latents, noise.to(latents.device), labels)
    eps = backbone.guided_eps(xt, labels, cond, uncond, torch.full((shape,), SCALE))
    return _digest([noise, *tensors_of(cond), *tensors_of(uncond), latents, eps, backbone.decode_float(xt - eps)])


def features_fingerprint(models: Iterable[Encoder | Judge], shape: int) -> str:
    """16 hex digits of what encoders and judges make of `shape` fixed pictures, and encoders of a text if they read."""
    pictures = [Image.fromarray(_levels(j, SIDE, SIDE, 3).numpy()) for j in range(shape)]
    seen: list[Tensor] = []
    for model in models:
        if isinstance(model, Judge):
            seen.append(model.probabilities(pictures, batch_shape=shape))
        else:
            seen.append(model.image_features(pictures, batch_shape=shape))
            seen += [model.text_features([TEXT])] if model.has_text else []
    return _digest(seen)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _levels(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator(seed))


def _digest(tensors: Iterable[Tensor]) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return hasher.hexdigest()[:16]

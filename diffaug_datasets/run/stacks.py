"""Which stack made what: library versions, and fingerprints of what the machine computes (`models.fingerprint`).

`numerics` is of the backbone, `numerics_encoder` of the method's encoder, `numerics_scores` of the encoder and judge of
the scores; a unit states those of the networks that it needs. The name of the device is information: it binds only
where no fingerprint is known.

What the kernels of a machine make of a fixed input: digests by which a stack is known, whatever it is called.

Two machines of one name and the same versions may take other paths through their libraries and give other last bits;
what they compute tells them apart. The inputs are fixed and small, their number is the planned batch shape.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from PIL import Image
from torch import Tensor

from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.encoders import Encoder, Judge
from diffaug_datasets.numerics.schedule import add_noise

TEXT, SCALE, SIDE = "a photo of a bird", 7.5, 64


@torch.no_grad()
def backbone_fingerprint(backbone: Backbone, shape: int) -> str:
    """16 hex digits of one guided U-Net call, the VAE both ways, the text encoder and the rows' noise, at `shape` rows.

    Installed concepts would change it: the caller takes them out before.
    """
    noise = torch.stack([torch.randn(backbone.latent_shape, generator=_generator(j)) for j in range(shape)])
    pixels = torch.stack([_levels(j, 3, backbone.height, backbone.width) for j in range(shape)]).float() / 127.5 - 1
    cond, uncond = backbone.prompts([TEXT] * shape), backbone.prompts([""] * shape)
    latents = backbone.encode(pixels)
    labels = [(j + 1) * backbone.schedule.num_train_timesteps // (shape + 1) for j in range(shape)]
    xt = add_noise(backbone.schedule, latents, noise.to(latents.device), labels)
    eps = backbone.guided_eps(xt, labels, cond, uncond, torch.full((shape,), SCALE))
    return _digest([noise, cond, uncond, latents, eps, backbone.decode_float(xt - eps)])


def features_fingerprint(models: Iterable[Encoder | Judge], shape: int) -> str:
    """16 hex digits of what encoders and judges make of `shape` fixed pictures, and encoders of a text if they read."""
    pictures = [Image.fromarray(_levels(j, SIDE, SIDE, 3).numpy()) for j in range(shape)]
    found: list[Tensor] = []
    for model in models:
        if isinstance(model, Judge):
            found.append(model.probabilities(pictures, batch_shape=shape))
        else:
            found.append(model.image_features(pictures, batch_shape=shape))
            found += [model.text_features([TEXT])] if model.has_text else []
    return _digest(found)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _levels(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator(seed))


def _digest(tensors: Iterable[Tensor]) -> str:
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return hasher.hexdigest()[:16]


NUMERICS = ("numerics", "numerics_encoder", "numerics_scores")
Stack = Mapping[str, str]


def same_stack(one: Stack, other: Stack) -> bool:
    """Whether two stacks have the same versions and compute the same bits, as far as both say.

    How many processes shared a batch is written there too, but binds nobody who continues.
    """
    shared = [key for key in NUMERICS if key in one and key in other]
    free = {*NUMERICS, "processes", *(["device"] if shared else [])}
    stated = (one.keys() | other.keys()) - free
    return all(one.get(key) == other.get(key) for key in (*stated, *shared))


def merged_stacks(stacks: Iterable[Stack]) -> tuple[dict[str, str], ...]:
    """The different ones; units of one stack that needed different networks state it together."""
    found: list[dict[str, str]] = []
    for stack in stacks:
        known = next((one for one in found if same_stack(one, stack) and _processes(one) == _processes(stack)), None)
        if known is None:
            found.append(dict(stack))
        else:
            known.update({key: value for key, value in stack.items() if key not in known})
    return tuple(found)


def _processes(stack: Stack) -> str:
    return stack.get("processes", "1")


def difference(theirs: Iterable[Stack], ours: Stack) -> str:
    """In words, how this stack differs from those that made a set: `another CPU: AVX512, numerics 1f.. there, ...`."""
    others = [stack for stack in theirs if not same_stack(stack, ours)]
    keys = [key for key in ours if key != "device" and any(stack.get(key, ours[key]) != ours[key] for stack in others)]
    if any(key not in NUMERICS for key in keys):
        kind = "other versions"
    else:
        kind = "another CPU" if all(_is_cpu(stack) for stack in (*others, ours)) else "another device"
    there = " and ".join(_words(stack, keys) for stack in others)
    return f"{kind}: {there} there, {_words(ours, keys)} here"


def _words(stack: Stack, keys: Iterable[str]) -> str:
    return " ".join([stack.get("device", "unknown"), *[f"{key} {stack.get(key, 'unknown')}" for key in keys]])


def _is_cpu(stack: Stack) -> bool:
    """torch names a CPU by one word for its capability, such as AVX2; a GPU has a maker and a model."""
    return " " not in stack.get("device", "")

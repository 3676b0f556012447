"""Image classifiers of transformers with a new head, as a bench trains them: read safely, or with random weights.

An image reaches a network as the model's own processor would bring it there (resize, middle, mean, deviation), in
Pillow and numpy, and as bytes up to the network, so that it can be mirrored, cropped and mixed before.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
)
from transformers.utils import logging as transformers_logging

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.model_files import Damage
from diffaug_datasets.families.parts.loaders import check_finite, quiet
from diffaug_datasets.models.backbone import MOST_PIXELS, checked_device
from diffaug_datasets.models.encoders import fetch_model, image_processor, probing
from diffaug_datasets.models.model_folder import unreadable

SMALL = "small_resnet"
SMALL_SIDE = 32
HEAD = "classifier"  # what transformers calls it in every image classifier
WHOLE_FROM = 384  # pixels: ConvNeXt's processor resizes to squares of that and more, and crops smaller ones
MOST_STRETCH = 64  # length over width of an image, before its middle alone is taken

Start = Literal["head", "fine_tuned", "scratch"]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the square that a network sees.

    `side`: of the square, in pixels, which is cut out of the middle. Before, the shorter side is resized to `resized`
    pixels, or both where the shape is not kept. `mean`, `deviation`: of red, green and blue from 0 to 1.
    """

    side: int
    resized: int
    keeps_shape: bool = True
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, image: Image.Image) -> Bytes:
        """The square [side side 3] of a picture."""
        rgb, how = image.convert("RGB"), Image.Resampling(self.resample)
        width = height = self.resized
        if self.keeps_shape:
            rgb = _middle(rgb, self.resized)
            width, height = (int(self.resized * length / min(rgb.size)) for length in rgb.size)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        whole = rgb.resize((width, height), how)
        return np.asarray(whole.crop((left, top, left + self.side, top + self.side)))


class ImageNetwork(nn.Module):
    """A trunk that makes features of pixels, and a new head that makes logits of features, both in float32."""

    pixel_mean: Tensor
    pixel_deviation: Tensor

    def __init__(self, model: Any, name: str, preparation: Preparation) -> None:
        super().__init__()
        self.name, self.preparation = name, preparation
        self.head: nn.Module = getattr(model, HEAD)
        setattr(model, HEAD, nn.Identity())
        self.trunk = model
        own = getattr(model.config, "image_size", None)
        # Position embeddings of a transformer are for one size of images.
        self._extra = {"interpolate_pos_encoding": True} if own != preparation.side and _interpolates(model) else {}
        for key, value in (("mean", preparation.mean), ("deviation", preparation.deviation)):
            self.register_buffer(f"pixel_{key}", 255 * torch.tensor(value).view(3, 1, 1), persistent=False)

    def features(self, pixels: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b d"]:
        """What the head sees of pixels from 0 to 255."""
        values = (pixels.float().permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_deviation
        features: Tensor = self.trunk(pixel_values=values.contiguous(), **self._extra).logits
        return features.flatten(1)

    def forward(self, pixels: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b C"]:
        """Logits of pixels from 0 to 255."""
        logits: Tensor = self.head(self.features(pixels))
        return logits

    def trained(self, start: Start) -> nn.Module:
        """The part that learns: the head alone, or all."""
        return self.head if start == "head" else self


def network_name(id_or_path: str) -> str:
    """`small_resnet`, or the recorded name of a folder or Hub id, which ends in its digest or commit.

    Raises:
        BackboneError: it cannot be found or brought.
    """
    return SMALL if id_or_path == SMALL else fetch_model(id_or_path, "encoder")[1]


def load_network(
    id_or_path: str, start: Start, classes: int, seed: int, *, side: int | None = None, device: str = "cpu"
) -> ImageNetwork:
    """A network with a new head for so many classes; with `scratch` all its weights are random, from the seed.

    Args:
        id_or_path: a folder or a Hub id with `config.json`, safetensors weights and `preprocessor_config.json`; with
            `scratch` its config alone counts, or `small_resnet`: 0.2 million weights, for about 32 pixels.
        start: what learns later.
        classes: of the new head.
        seed: of new weights.
        side: pixels of the square that it sees; default: the model's own, else 32.
        device: where it is put.

    Raises:
        BackboneError: it cannot be reached or read, lacks weights, or does not see images of that size.
    """
    place = checked_device(device)
    name, folder = SMALL, None
    if id_or_path != SMALL or start != "scratch":
        folder, name = fetch_model(id_or_path, "encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start == "scratch":
            model, preparation = _untrained(folder, id_or_path, classes, side)
        else:
            assert folder is not None
            model = _pretrained(folder, id_or_path, classes)
            preparation = preparation_of(image_processor(folder, id_or_path), side, id_or_path)
    network = ImageNetwork(model.float(), name, preparation).to(place).eval()
    with probing(id_or_path), torch.no_grad():
        seen = preparation.side
        logits = network(torch.zeros(1, seen, seen, 3, device=place))
        if logits.shape != (1, classes):
            raise Damage(f"it makes {tuple(logits.shape)} of one picture, expected (1, {classes})")
    return network


def preparation_of(processor: Any, side: int | None, name: str) -> Preparation:
    """What an image processor of transformers does, for a square of that many pixels; default: its own.

    Raises:
        BackboneError: it makes no squares.
    """
    size: Mapping[str, int] = dict(getattr(processor, "size", None) or {})
    crop: Mapping[str, int] = dict(getattr(processor, "crop_size", None) or {})
    if not getattr(processor, "do_center_crop", False):
        crop = {}
    shorter = size.get("shortest_edge") or 0
    resized = shorter or size.get("height") or 0
    own = crop.get("height") or resized
    if not own or (not shorter and size.get("width") != resized) or (crop and crop.get("width") != own):
        raise BackboneError(f"model {name!r} sees images of {crop or size}, expected squares; choose another one.")
    share = getattr(processor, "crop_pct", None)
    if share and 0 < shorter < WHOLE_FROM:
        resized = int(shorter / share)
    wanted = side or own
    normal = bool(getattr(processor, "do_normalize", True))
    return Preparation(
        wanted,
        max(wanted, round(resized * wanted / own)),
        bool(shorter) and not (share and shorter >= WHOLE_FROM),
        int(getattr(processor, "resample", None) or Image.Resampling.BICUBIC),
        tuple(processor.image_mean) if normal else (0.0,) * 3,
        tuple(processor.image_std) if normal else (1.0,) * 3,
    )


def _untrained(folder: Path | None, name: str, classes: int, side: int | None) -> tuple[Any, Preparation]:
    """A model with random weights and how it sees pictures: their middle, from -1 to 1."""
    if folder is None:
        config: Any = ResNetConfig(embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic")
    else:
        config = _config(folder, name)
    config.num_labels = classes
    own = getattr(config, "image_size", None) or (SMALL_SIDE if folder is None else None)
    wanted = side or (own if isinstance(own, int) else None)
    if wanted is None:
        raise BackboneError(f"model {name!r} does not say how large its images are; set image_size of the classifier.")
    if hasattr(config, "image_size"):
        config.image_size = wanted
    try:
        kind = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        model = (kind[0] if isinstance(kind, tuple) else kind)(config)
        _check_head(model)
    except Exception as error:  # of whichever kind this release of transformers finds a config unfit with
        raise unreadable(name, error) from error
    return model, Preparation(wanted, wanted)


def _config(folder: Path, name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whichever kind this release of transformers reads a config with
        raise unreadable(name, error) from error


def _pretrained(folder: Path, name: str, classes: int) -> Any:
    """The model of a folder; its head, if it had one, is replaced by a new one of torch's random weights."""
    config = _config(folder, name)
    config.num_labels = classes
    try:
        with quiet(), _no_report():
            model, info = AutoModelForImageClassification.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        _check_head(model)
        check_finite(model, "it")
    except Exception as error:  # of whichever kind this release of transformers opens a folder with
        raise unreadable(name, error) from error
    unread = [*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])]
    if needed := [key for key in unread if not key.startswith(f"{HEAD}.")]:
        raise unreadable(name, Damage(f"{len(needed)} weights are missing or of another shape, such as {min(needed)}"))
    for module in getattr(model, HEAD).modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


@contextmanager
def _no_report() -> Iterator[None]:
    """transformers lists every weight of a folder that a classifier has no use for; what it lacks is checked here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _check_head(model: Any) -> None:
    if not isinstance(getattr(model, HEAD, None), nn.Module):
        raise Damage(f"{type(model).__name__} has no {HEAD} that could be replaced")


def _interpolates(model: Any) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters


def _middle(image: Image.Image, resized: int) -> Image.Image:
    """The picture, or its middle where it is so long that resizing all of it would take far more than is left."""
    short, long = sorted(image.size)
    if resized * resized * long / short <= MOST_PIXELS // 4:
        return image
    keep = MOST_STRETCH * short
    left, top = (max(0, (length - keep) // 2) for length in image.size)
    return image.crop((left, top, image.width - left, image.height - top))

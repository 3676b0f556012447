"""Image-text encoders and judges: what finished and real images look like to another network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

from diffaug_datasets.core.errors import BackboneError, RecipeError
from diffaug_datasets.core.model_files import Damage
from diffaug_datasets.core.models import ORACLE, ModelKind, find_model
from diffaug_datasets.families.parts.loaders import check_finite, quiet, read_tokenizer
from diffaug_datasets.models.backbone import MOST_PIXELS, checked_device
from diffaug_datasets.models.model_folder import unreadable
from diffaug_datasets.models.wheel_weights import converted_oracle

PATTERNS = ["README.md", "*.json", "*.jinja", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]
PROBE_IMAGE = Image.new("RGB", (40, 30), "orange")


class Encoder:
    """A CLIP-like model (`has_text`), or a vision model such as DINOv2 or ViT, in float32.

    An image's features are CLIP's projected ones, a transformer's class token, or a convolution net's mean. `folder`:
    where its files and its card lie.
    """

    def __init__(
        self, model: Any, processor: Any, tokenizer: Any, name: str, device: torch.device, folder: Path | None = None
    ) -> None:
        self.name, self.device, self.folder = name, device, folder
        self._model, self._processor, self._tokenizer = model, processor, tokenizer
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, id_or_path: str, device: str = "cpu") -> "Encoder":
        """`tiny` (packaged), `efficientnet-lite0` (of an extra), a folder, or a Hub id, with `@<commit>` to pin it.

        Raises:
            BackboneError: it cannot be reached or read.
        """
        place, (folder, name) = checked_device(device), fetch_model(id_or_path, "encoder")
        model = read_model(AutoModel, folder, id_or_path, place)
        tokenizer = tokenizer_of(folder, id_or_path, model) if hasattr(model, "get_text_features") else None
        encoder = cls(model, image_processor(folder, id_or_path), tokenizer, name, place, folder)
        with probing(id_or_path):
            features = [encoder.image_features([PROBE_IMAGE], batch_shape=1)]
            features += [encoder._encode_text("a photo")[None]] if encoder.has_text else []
            _check_features(features)
        return encoder

    @property
    def has_text(self) -> bool:
        """Whether `text_features` works."""
        return self._tokenizer is not None

    def image_features(
        self, images: Iterable[Image.Image], *, batch_shape: int = 32, normalise: bool = True
    ) -> Float[Tensor, "n d"]:
        """Features on the CPU, of unit length unless told otherwise; the network always sees `batch_shape` images.

        The pictures are taken one by one and none is kept.
        """
        features = _in_batches(images, self._processor, batch_shape, self._encode_images)
        return F.normalize(features, dim=1) if normalise else features

    def pixel_features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Unit-norm features of images in [0, 1], stretched to the network's size; differentiable, on its device."""
        size = getattr(self._processor, "crop_size", None) or self._processor.size
        height, width = (int(size.get(key) or size["shortest_edge"]) for key in ("height", "width"))
        pixels = F.interpolate(images.to(self.device), (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        if self._processor.do_normalize:
            mean, std = (torch.tensor(part, device=self.device) for part in self._normal())
            pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        return F.normalize(self._encode_images(pixels), dim=1)

    def _normal(self) -> tuple[list[float], list[float]]:
        return list(self._processor.image_mean), list(self._processor.image_std)

    def _encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        pixels = pixels.to(self.device)
        if self.has_text:
            return _projected(self._model.get_image_features(pixel_values=pixels))
        output = self._model(pixel_values=pixels)
        states: Tensor = output.last_hidden_state
        # A transformer's pooler may be missing from the checkpoint, and then holds random weights.
        features: Tensor = output.pooler_output.flatten(1) if states.ndim == 4 else states[:, 0]
        return features

    def text_features(self, texts: Sequence[str], *, normalise: bool = True) -> Float[Tensor, "n d"]:
        """Features on the CPU; each text is encoded alone and remembered.

        Raises:
            BackboneError: this encoder sees images alone.
        """
        if not self.has_text:
            raise BackboneError(f"encoder {self.name!r} sees images alone: name a CLIP model where texts are compared.")
        for text in texts:
            if text not in self._texts:
                self._texts[text] = self._encode_text(text)
        features = torch.stack([self._texts[text] for text in texts])
        return F.normalize(features, dim=1) if normalise else features

    @torch.no_grad()
    def _encode_text(self, text: str) -> Float[Tensor, " d"]:
        # SigLIP was trained on padded texts; CLIP's causal attention never looks past the end of the text.
        padding = "max_length" if self._model.config.model_type.startswith("siglip") else False
        ids = self._tokenizer([text], truncation=True, padding=padding, return_tensors="pt").input_ids
        return _projected(self._model.get_text_features(input_ids=ids.to(self.device)))[0].cpu()


class Judge:
    """An image classifier over named classes, in float32."""

    def __init__(self, model: Any, processor: Any, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self._model, self._processor = model, processor

    @classmethod
    def load(cls, id_or_path: str, device: str = "cpu") -> "Judge":
        """`tiny` (packaged), `efficientnet-lite0` (of an extra), a folder, or a Hub id, with `@<commit>` to pin it.

        Raises:
            BackboneError: it cannot be reached or read, or is no image classifier.
        """
        place, (folder, name) = checked_device(device), fetch_model(id_or_path, "judge")
        model = read_model(AutoModelForImageClassification, folder, id_or_path, place)
        judge = cls(model, image_processor(folder, id_or_path), name, place)
        with probing(id_or_path):
            probabilities = judge.probabilities([PROBE_IMAGE], batch_shape=1)
            _check_features([probabilities])
            if probabilities.shape[1] != len(judge.class_names):
                raise Damage(f"it tells {probabilities.shape[1]} classes apart and names {len(judge.class_names)}")
        return judge

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        names: dict[int, str] = self._model.config.id2label
        return tuple(names[i] for i in range(len(names)))

    def columns(self, wanted: Sequence[str], key: str) -> list[int]:
        """Where the probabilities of these classes stand: by name, or by number where it has as many of other names.

        ImageNet's classifiers have words where the classes have WordNet ids. `key`: of the recipe, for the message.

        Raises:
            RecipeError: a class is not known and numbers cannot stand for names.
        """
        known = self.class_names
        if set(wanted) <= set(known):
            return [known.index(name) for name in wanted]
        if len(known) == len(wanted) and set(known).isdisjoint(wanted):
            return list(range(len(wanted)))
        missing = next(name for name in wanted if name not in known)
        raise RecipeError(
            f"{key}: {self.name} knows {len(known)} classes and no {missing!r}, expected these {len(wanted)}; name "
            "another."
        )

    def probabilities(self, images: Iterable[Image.Image], *, batch_shape: int = 32) -> Float[Tensor, "n C"]:
        """Class probabilities on the CPU; the network always sees `batch_shape` images, which are taken one by one."""
        return _in_batches(images, self._processor, batch_shape, self._classify).softmax(dim=1)

    def _classify(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b C"]:
        logits: Tensor = self._model(pixel_values=pixels.to(self.device)).logits
        return logits.float()


@contextmanager
def probing(name: str) -> Iterator[None]:
    """Try a model on a first picture; whatever it fails with becomes a sentence about its folder.

    Raises:
        BackboneError: it fails.
    """
    try:
        yield
    except Exception as error:  # of whichever kind its parts, which do not fit together, lead to
        raise unreadable(name, error) from error


def _check_features(features: Sequence[Tensor]) -> None:
    if not all(bool(f.isfinite().all()) for f in features) or len({f.shape[1] for f in features}) > 1:
        raise Damage(
            f"it makes {[tuple(f.shape) for f in features]} of a picture and a text, or values that are not finite"
        )


@torch.no_grad()
def _in_batches(
    images: Iterable[Image.Image], processor: Any, shape: int, network: Callable[[Tensor], Tensor]
) -> Float[Tensor, "n d"]:
    """The network's rows for all images; a short batch repeats its last image, so bits never depend on how many.

    They may depend on an image's place: whoever needs the same bits again gives it the same place.
    """
    rows: list[Tensor] = []
    pixels = (_pixels(processor, image) for image in images)
    while part := list(islice(pixels, shape)):
        rows.append(network(torch.cat(part + part[-1:] * (shape - len(part))))[: len(part)].cpu())
    if not rows:
        raise ValueError("got no image; give at least one")
    return torch.cat(rows)


def _pixels(processor: Any, image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """What the network sees of a picture, on the CPU; the processor works on each by itself."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    pixels: Tensor = processor(images=[_middle(rgb, processor)], return_tensors="pt")["pixel_values"]
    return pixels


def _middle(image: Image.Image, processor: Any) -> Image.Image:
    """The picture, or, where the shorter side is to be enlarged far beyond memory, the part that is left in the end."""
    side = (getattr(processor, "size", None) or {}).get("shortest_edge")
    if not side or not getattr(processor, "do_center_crop", False):
        return image
    short, long = sorted(image.size)
    if side * side * long / short <= MOST_PIXELS // 4:
        return image
    keep = 64 * short  # of a crop that is about square
    left, top = (max(0, (length - keep) // 2) for length in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def _projected(output: Any) -> Float[Tensor, "b d"]:
    """CLIP's projected features, which transformers 5 wraps."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def image_processor(folder: Path, name: str) -> Any:
    """The PIL one: torchvision is no dependency, and its resize gives other bits.

    Raises:
        BackboneError: the folder holds none, or one with code of its own.
    """
    is_old = int(transformers.__version__.split(".")[0]) < 5
    backend: dict[str, Any] = {"use_fast": False} if is_old else {"backend": "pil"}
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **backend)
    except Exception as error:  # of whichever kind this release of transformers reads a processor with
        raise unreadable(name, error) from error


def tokenizer_of(folder: Path, name: str, model: Any) -> Any:
    """The tokenizer beside a model.

    Raises:
        BackboneError: the folder holds none, or one without the words of the model's embeddings.
    """
    text = getattr(model, "text_model", model)
    try:
        return read_tokenizer(AutoTokenizer, folder, text.get_input_embeddings().num_embeddings)
    except Exception as error:  # of whichever kind this release of transformers reads a tokenizer with
        raise unreadable(name, error) from error


def fetch_model(id_or_path: str, kind: ModelKind) -> tuple[Path, str]:
    """Folder and recorded name (`id@revision`, never a path) of an encoder, a judge, a captioner or a summariser.

    Raises:
        BackboneError: it cannot be found or brought; names every way out.
    """
    model = find_model(id_or_path, kind)
    if model.id == ORACLE:
        return converted_oracle(), model.name
    if model.folder is not None and model.is_local:
        return model.folder, model.name
    folder = _snapshot(model.id, model.wanted, kind)
    return folder, f"{model.id}@{folder.name[:12]}"


def _snapshot(repository: str, revision: str | None, kind: ModelKind) -> Path:
    for only_cached in (True, False):
        try:
            folder = snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, local_files_only=only_cached
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            continue
        if any(Path(folder).glob("model*.safetensors")):
            return Path(folder)
        reason = "it has no safetensors weights"
    at = f" --revision {revision}" if revision else ""
    raise BackboneError(
        f"{kind} {repository!r} cannot be reached ({reason}): run `hf download {repository}{at}` where there is a "
        "network, give the path of a local folder, or say `tiny`."
    )


def read_model(kind: Any, folder: Path, name: str, device: torch.device) -> Any:
    """A transformers model of that class, in evaluation mode.

    Raises:
        BackboneError: the folder holds no such model, or not all of its weights.
    """
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        check_finite(model, "it")
    except Exception as error:  # of whichever kind this release of transformers opens a folder with
        raise unreadable(name, error) from error
    if needed := [key for key in info["missing_keys"] if "pooler" not in key]:
        raise unreadable(name, Damage(f"{len(needed)} weights are missing, such as {min(needed)}"))
    return model.eval().requires_grad_(False).float().to(device)

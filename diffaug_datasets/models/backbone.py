"""The only door to a diffusion model: images to latents and back, prompts to conditions, and the noise it sees.

`Backbone` is what all families share around a `families.parts.driven.DrivenModel`. Every text is encoded alone, once,
so that its condition never depends on the texts beside it. `preprocess` and `to_uint8` go from PIL pictures to the
tensors of a VAE and back. Sizes: b rows, latents [c h w], images [3 H W]; a condition is a tensor [b s d] of s tokens,
or a `numerics.conditions.Condition` of several.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.method import Resize
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.profiles import EXACT, Profile
from diffaug_datasets.families.parts.diffusers_folders import check_multiple
from diffaug_datasets.families.parts.driven import DrivenModel
from diffaug_datasets.models.adapters import LoadedConcepts, fuse, unfuse
from diffaug_datasets.models.loading import load_model
from diffaug_datasets.models.model_folder import in_words
from diffaug_datasets.numerics.conditions import Conditioning, joined, stacked
from diffaug_datasets.numerics.levels import noise_weights
from diffaug_datasets.numerics.schedule import Process, Schedule, eps_from_v, eps_from_x0, per_row

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

MOST_PIXELS = 1 << 26  # of a picture on its way to a crop: 256 MiB
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def checked_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        BackboneError: it has not, or there is no such kind.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(
            f"device {device!r} was asked for, but torch {torch.__version__} cannot use it here: "
            "say `cpu`, or install a torch build for your GPU."
        ) from error
    return place


def preprocess(image: Image.Image, resize: Resize, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """A picture as float32 in [-1, 1]. An alpha channel is dropped; EXIF rotation is done where images are read.

    `crop` keeps the aspect ratio: the picture is made to cover H x W (bilinear) and the middle is kept (GeNIe). The
    others stretch it: Diff-II uses lanczos, Diff-Mix bilinear, DA-Fusion and Diffusion Inversion bicubic.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    fitted = _covering(image, height, width) if resize == "crop" else image.resize((width, height), FILTERS[resize])
    levels = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
    return (2 * levels - 1).permute(2, 0, 1).contiguous()


def covering_size(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(width, height) in pixels of a picture of that size once it covers height x width.

    One side becomes what is asked for, the other int(asked * long / short), as torchvision's Resize has it: the product
    is a whole number before it is divided, so that no rounding takes a pixel away.
    """
    columns, rows = size
    if height * columns >= width * rows:
        return int(height * columns / rows), height
    return width, int(width * rows / columns)


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Follows torchvision's Resize(size) and CenterCrop(size), bilinear, for a square size.

    A picture so thin that it would be enlarged beyond `MOST_PIXELS` is cropped first: at most one grey level off.
    """
    size = covering_size(image.size, height, width)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    if size[0] * size[1] > MOST_PIXELS:
        return _cropped_first(image, size, (left, top, left + width, top + height))
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + width, top + height))


def _cropped_first(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """The box of an image that was resized, made from the part of the image that it shows and its neighbours."""
    steps = [length / resized for length, resized in zip(image.size, size, strict=True)] * 2
    shown = [edge * step for edge, step in zip(box, steps, strict=True)]
    margins = [math.ceil(max(step, 1)) + 1 for step in steps[:2]]  # what a bilinear filter sees beside the box
    corner = [max(0, math.floor(shown[axis]) - margins[axis]) for axis in (0, 1)]
    end = [min(image.size[axis], math.ceil(shown[axis + 2]) + margins[axis]) for axis in (0, 1)]
    x0, y0, x1, y1 = (edge - start for edge, start in zip(shown, corner * 2, strict=True))
    part = image.crop((corner[0], corner[1], end[0], end[1]))
    return part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))


def to_uint8(images: Float[Tensor, "b 3 H W"]) -> UInt8[Tensor, "b H W 3"]:
    """Images in [0, 1] as bytes on the CPU, rounded to the nearest grey level.

    Raises:
        ValueError: a value is not finite; callers that expect failed rows look before they convert.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("got an image with values that are not finite; check rows before turning them into bytes")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


@dataclass(frozen=True)
class BackboneFacts:
    """What is recorded of a backbone; `revision` in full.

    No safety checker ever runs: a blacked-out picture would be a wrong label.
    """

    name: str
    revision: str
    variant: str | None
    dtype: str
    prediction_type: str
    height: int
    width: int
    safety_checker: bool = False


class Backbone:
    """A diffusion model of any family. Latents, conditions and predictions are float32; its network has `dtype`.

    At one batch shape and place a row's results never depend on what the other rows hold: keep a row at its place of
    the planned shape, and it is the same to the bit. `calls` and `rows_evaluated` count the network's work, rows that
    only fill a batch too; `rows_skipped` those that turbo answers from features of an earlier step. `kernels`: how it
    computes, in words, once `kernels.put_to_work` has prepared it for a profile.
    """

    profile: Profile = EXACT
    kernels = ""

    def __init__(self, model: DrivenModel, spec: BackboneSpec, name: str) -> None:
        self.name, self.model = name, model
        self.device, self.dtype = model.device, model.dtype
        self.calls = 0
        self.rows_evaluated = 0
        self.rows_skipped = 0
        self.text, self.prediction_type = model.text, model.prediction
        self._spec = spec
        self.height, self.width = self.size_of(spec)
        self._unfused: dict[str, Tensor] = {}

    @classmethod
    def load(cls, spec: BackboneSpec, device: str = "cpu") -> "Backbone":
        """The model of a spec on a device, frozen; nothing global is set.

        Raises:
            BackboneError: the device is absent, the model cannot be reached, or it is of a family we do not drive.
        """
        return cls(load_model(spec, checked_device(device)), spec, find_backbone(spec).name)

    def size_of(self, spec: BackboneSpec) -> tuple[int, int]:
        """(height, width) in pixels that a spec of this model asks for, its own where the spec leaves it open.

        Raises:
            BackboneError: a side is no multiple of what its latents and tokens need.
        """
        rows, columns = self.model.side
        height, width = spec.height or rows, spec.width or columns
        with in_words(spec):
            check_multiple(height, width, self.model.facts.multiple_of)
        return height, width

    @property
    def vae(self) -> nn.Module:
        """The autoencoder between images and latents."""
        return self.model.vae

    @property
    def facts(self) -> BackboneFacts:
        """What to record of this backbone."""
        spec = self._spec
        kinds = (spec.variant, spec.dtype, self.prediction_type)
        return BackboneFacts(self.name, find_backbone(spec).revision, *kinds, self.height, self.width)

    @property
    def schedule(self) -> Process:
        """Its noise levels, at the size that it makes pictures at now."""
        return self.model.process(self.height, self.width)

    @property
    def vp_schedule(self) -> Schedule:
        """The same, of a variance-preserving model.

        Raises:
            BackboneError: it is a flow.
        """
        schedule = self.schedule
        if not isinstance(schedule, Schedule):
            raise BackboneError(f"backbone {self.name!r} is a rectified flow: use a Stable Diffusion model here.")
        return schedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one latent."""
        return self.model.latent_shape(self.height, self.width)

    @property
    def network(self) -> nn.Module:
        """What denoises: a U-Net or a transformer."""
        return self.model.network

    @property
    def unet(self) -> "UNet2DConditionModel":
        """The U-Net.

        Raises:
            BackboneError: this family has none.
        """
        if not self.model.facts.is_unet:
            raise BackboneError(f"backbone {self.name!r} has no U-Net: use a Stable Diffusion model.")
        return self.model.network

    @property
    def tokenizer(self) -> Any:
        """Of its first text encoder that takes learned tokens."""
        return self.text.encoders[0][0]

    @property
    def text_encoder(self) -> Any:
        """The first text encoder that takes learned tokens."""
        return self.text.encoders[0][1]

    @property
    def is_editor(self) -> bool:
        """Whether the network takes an image's latents beside the state, as InstructPix2Pix's does."""
        return self.model.facts.edits

    def prompt(self, text: str, *, negative: bool = False) -> Any:
        """The condition of a text, without the axis of rows, encoded alone and remembered.

        Too long a text is cut, with one warning per backbone. `negative`: it is what guidance leads away from.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        return self.text(text, negative=negative)

    def prompts(self, texts: Sequence[str], *, negative: bool = False) -> Any:
        """The conditions of several texts; the same bits as `prompt` gives for each."""
        return stacked([self.prompt(text, negative=negative) for text in texts])

    def preprocess(self, image: Image.Image, resize: Resize) -> Float[Tensor, "3 H W"]:
        """A picture in [-1, 1] at the backbone's size, on the CPU; see the function `preprocess`."""
        return preprocess(image, resize, self.height, self.width)

    def encode(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents of images in [-1, 1], scaled: the posterior's mode, or mean + std * noise where noise is given."""
        return self.model.scaled(self.image_latents(images, noise))

    def image_latents(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The same as `encode`, not scaled: what an editing U-Net sees of images."""
        with torch.no_grad():
            mode, deviation = self.model.posterior(images)
        return mode if noise is None or deviation is None else mode + deviation * noise.to(self.device)

    def decode_float(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1], float32, on the backbone's device; what is not finite stays so, for the caller to judge."""
        with torch.no_grad():
            return self.decode_with_gradient(z)

    def decode_with_gradient(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """The same, differentiable in z."""
        return (self.model.decode(z) / 2 + 0.5).clamp(0, 1)

    def decode(self, z: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
        """Images as bytes on the CPU, rounded.

        Raises:
            ValueError: a value is not finite; use `decode_float` where a row may fail.
        """
        return to_uint8(self.decode_float(z))

    def eps(
        self,
        xt: Float[Tensor, "b c h w"],
        t: float | Sequence[float],
        cond: Conditioning,
        image: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The noise the network sees in xt at timestep label t (one for all rows, or one per row): one network call.

        Float32 whatever the network's dtype; differentiable in `cond`. Predictions of v, x0 or a flow are turned into
        eps. `image`: what an editing U-Net sees beside the state; zeros where nothing is shown.
        """
        said, state, labels = self._said(xt, t, cond, image=image)
        return self._as_eps(said, state, labels)

    def said(
        self,
        xt: Float[Tensor, "b c h w"],
        t: float | Sequence[float],
        cond: Conditioning,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """What the schedule's `prediction` names, where `eps` is eps whatever the schedule: one network call.

        `guidance`: the scale that a network which embeds it is told; 1 where it is not given.
        """
        said, state, labels = self._said(xt, t, cond, guidance)
        return self._as_eps(said, state, labels) if self.schedule.prediction == "epsilon" else said

    def _said(
        self,
        xt: Tensor,
        t: float | Sequence[float],
        cond: Conditioning,
        guidance: Tensor | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[float]]:
        self.calls += 1
        self.rows_evaluated += len(xt)
        labels = [t] * len(xt) if isinstance(t, int | float) else list(t)
        state = xt.to(self.device)
        time = torch.tensor(labels, device=self.device)
        if self.model.facts.guidance == "embedded":
            guidance = torch.ones(len(xt)) if guidance is None else guidance
            guidance = guidance.to(self.device, torch.float32)
        return self.model.predict(state, time, cond, guidance, image), state.float(), labels

    def _as_eps(self, predicted: Tensor, xt: Tensor, labels: Sequence[float]) -> Tensor:
        schedule = self.schedule
        if self.prediction_type == "epsilon":
            return predicted
        rows = zip(predicted, xt, labels, strict=True)
        if not isinstance(schedule, Schedule):
            weights = [noise_weights(self.prediction_type, schedule.pair(t)) for t in labels]
            state, said = (per_row([weight[i] for weight in weights], xt) for i in (0, 1))
            return state * xt + said * predicted
        convert = eps_from_v if self.prediction_type == "v_prediction" else eps_from_x0
        return torch.cat([convert(row[None], state[None], schedule.level(int(t))) for row, state, t in rows])

    def guided_eps(
        self,
        xt: Float[Tensor, "b c h w"],
        t: float | Sequence[float],
        cond: Conditioning,
        uncond: Conditioning,
        scale: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """Classifier-free guidance of what `said` gives, one scale per row: one network call of 2b rows, or of b rows
        if no row is guided. A network that embeds the scale is told it in one call of b rows.

        A row of scale 1 always gets its value from a call of b rows: where guided rows stand beside it, both calls are
        made. So no row's bits depend on its neighbours' scales, and the second call costs only batches that mix them.
        """
        if self.model.facts.guidance == "embedded":
            return self.said(xt, t, cond, scale)
        plain = scale.to(self.device) == 1
        unguided = self.said(xt, t, cond) if bool(plain.any()) else None
        if unguided is not None and bool(plain.all()):
            return unguided
        twice = t if isinstance(t, int | float) else [*t, *t]
        both = self.said(torch.cat([xt, xt]), twice, joined([uncond, cond]))
        low, high = both.chunk(2)
        eps = self.model.guided(low, high, scale.to(self.device))
        return eps if unguided is None else torch.where(plain[:, None, None, None], unguided, eps)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls inside leave `calls` and `rows_evaluated` as they are: for pictures that no result rests on."""
        before = self.calls, self.rows_evaluated
        try:
            yield
        finally:
            self.calls, self.rows_evaluated = before

    def use_concepts(self, concepts: LoadedConcepts | None) -> None:
        """Install learned tokens and fuse their LoRA into the network; None brings the base back, to the bit.

        Fused attention costs nothing extra; the original weights are kept beside and put back, never subtracted.

        Raises:
            BackboneError: the concepts were learned on a model of another shape.
        """
        unfuse(self.network, self._unfused)
        self._unfused = {}
        self.text.uninstall()
        if concepts:
            try:
                self._unfused = fuse(self.network, concepts.lora, self.model.lora_prefix)
                self.text.install(concepts.tokens)
            except BackboneError:
                self.use_concepts(None)
                raise

"""The only door to a diffusion model: images to latents and back, prompts to conditions, and the noise it sees.

`Backbone` is a Stable Diffusion 1.x or 2.x pipeline, `PromptEncoder` its text side. Every text is encoded alone, once,
so that its condition never depends on the texts beside it. `preprocess` and `to_uint8` go from PIL pictures to the
tensors of a VAE and back. Sizes: b rows, latents [c h w], images [3 H W], conditions [s d] of s tokens.
"""

import copy
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.method import Resize
from diffaug_datasets.core.models import BackboneSpec, find_backbone
from diffaug_datasets.core.profiles import EXACT, Profile
from diffaug_datasets.models.adapters import LoadedConcepts, PlaceholderEmbedding, fuse, spelled_out, sub_tokens, unfuse
from diffaug_datasets.models.loading import Pieces, load_pieces
from diffaug_datasets.numerics.schedule import Schedule, eps_from_v, eps_from_x0, guided

MOST_PIXELS = 1 << 26  # of a picture on its way to a crop: 256 MiB
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
KEPT_PROMPTS = 1024
PLACEHOLDER = re.compile(r"<class_\d+>")


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


class PromptEncoder:
    """Tokenizer and text encoder of a pipeline, with or without learned tokens."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self._plain_tokenizer = self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._table = text_encoder.get_input_embeddings()
        self._has_mask = bool(text_encoder.config.to_dict().get("use_attention_mask"))
        self._tokens: dict[str, int] = {}
        self._learned_ids: dict[int, int] = {}
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._has_warned = False

    @property
    def length(self) -> int:
        """Tokens per prompt, start and end included."""
        positions: int = self._text_encoder.config.max_position_embeddings
        return min(int(self._plain_tokenizer.model_max_length), positions)

    def uninstall(self) -> None:
        """Bring the original tokenizer and embedding back: the same objects, so the same bits. Forgets all prompts."""
        self._cache.clear()
        self._tokens, self._learned_ids, self._tokenizer = {}, {}, self._plain_tokenizer
        self._text_encoder.set_input_embeddings(self._table)

    def forget(self) -> None:
        """Encode every text anew: the text encoder has changed."""
        self._cache.clear()

    def install(self, tokens: Mapping[str, Float[Tensor, "n d"]]) -> PlaceholderEmbedding:
        """Put these learned tokens beside the plain ones; returns the embedding whose `rows` hold them, in order.

        Raises:
            BackboneError: a token's width is not the text encoder's.
        """
        self.uninstall()
        embedding = PlaceholderEmbedding(self._table, torch.cat([self._checked(n, r) for n, r in tokens.items()]))
        self._tokens = {name: len(rows) for name, rows in tokens.items()}
        names = [sub for name, rows in tokens.items() for sub in sub_tokens(name, len(rows))]
        self._tokenizer = copy.deepcopy(self._plain_tokenizer)
        self._tokenizer.add_tokens(names)
        # A table may be longer than its tokenizer, so the tokenizer's new ids are not the rows' places.
        self._learned_ids = {
            self._tokenizer.convert_tokens_to_ids(name): self._table.num_embeddings + i for i, name in enumerate(names)
        }
        self._text_encoder.set_input_embeddings(embedding)
        return embedding

    def _checked(self, token: str, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        width = self._table.embedding_dim
        if rows.ndim != 2 or rows.shape[1] != width:
            raise BackboneError(
                f"concept {token} has embeddings of shape {tuple(rows.shape)}, expected [n, {width}]: it was learned "
                "on another backbone; use that one, or learn the concepts again."
            )
        return rows

    def __call__(self, text: str) -> Float[Tensor, "s d"]:
        """The condition of a text, float32, encoded at batch 1; the last few are remembered.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        if text not in self._cache:
            with torch.no_grad():
                self._cache[text] = self.encode(self.ids(text)[None])[0]
            while len(self._cache) > KEPT_PROMPTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return self._cache[text]

    def ids(self, text: str) -> Int[Tensor, " s"]:
        """Token ids of a text, padded or cut (with one warning per backbone) to `length`. Raises as `__call__`."""
        if unknown := set(PLACEHOLDER.findall(text)) - self._tokens.keys():
            sentence = f"prompt {text!r} names {min(unknown)}, which is not learned: install its concepts first."
            raise BackboneError(sentence)
        read: Sequence[int] = self._tokenizer(spelled_out(text, self._tokens), verbose=False).input_ids
        whole = [self._learned_ids.get(i, i) for i in read]
        if len(whole) > self.length and not self._has_warned:
            self._has_warned = True
            counts = f"has {len(whole)} tokens, {self.length} are read"
            warnings.warn(f"prompt {text!r} {counts}; this and longer prompts lose their end", stacklevel=3)
        cut = [*whole[: self.length - 1], whole[-1]] if len(whole) > self.length else whole
        return torch.tensor(cut + [self._padding] * (self.length - len(cut)), device=self._table.weight.device)

    @property
    def _padding(self) -> int:
        padding: int | None = self._plain_tokenizer.pad_token_id
        return 0 if padding is None else padding

    def encode(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Last hidden states of token ids, float32; differentiable in the learned rows."""
        mask = torch.ones_like(ids) if self._has_mask else None
        states: Tensor = self._text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


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
    """A Stable Diffusion 1.x or 2.x pipeline. Latents, conditions and eps are float32 outside; the network has `dtype`.

    At one batch shape and place a row's results never depend on what the other rows hold: keep a row at its place of
    the planned shape, and it is the same to the bit. `calls` and `rows_evaluated` count the U-Net's work, rows that
    only fill a batch too; `rows_skipped` those that turbo answers from features of an earlier step. `kernels`: how it
    computes, in words, once `kernels.put_to_work` has prepared it for a profile.
    """

    profile: Profile = EXACT
    kernels = ""

    def __init__(self, pieces: Pieces, spec: BackboneSpec, name: str, device: torch.device) -> None:
        self.name = name
        self.schedule: Schedule = pieces.schedule
        self.device = device
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.calls = 0
        self.rows_evaluated = 0
        self.rows_skipped = 0
        self.unet, self._vae, self.prediction_type = pieces.unet, pieces.vae, pieces.prediction_type
        self.text = PromptEncoder(pieces.tokenizer, pieces.text_encoder)
        self.tokenizer, self.text_encoder = pieces.tokenizer, pieces.text_encoder
        self._spec, self._factor = spec, 2 ** (len(pieces.vae.config.block_out_channels) - 1)
        self.height, self.width = self.size_of(spec)
        self._unfused: dict[str, Tensor] = {}

    @classmethod
    def load(cls, spec: BackboneSpec, device: str = "cpu") -> "Backbone":
        """The model of a spec on a device, frozen; nothing global is set.

        Raises:
            BackboneError: the device is absent, the model cannot be reached, or it is of a family we do not drive.
        """
        place = checked_device(device)
        pieces = load_pieces(spec, place)
        return cls(pieces, spec, find_backbone(spec).name, place)

    def size_of(self, spec: BackboneSpec) -> tuple[int, int]:
        """(height, width) in pixels that a spec of this model asks for, its own where the spec leaves it open.

        Raises:
            BackboneError: a side is no multiple of the VAE's factor.
        """
        native = self.unet.config.sample_size or 64  # as diffusers' pipelines take it where it is not stated
        rows, columns = (native, native) if isinstance(native, int) else native
        height, width = spec.height or rows * self._factor, spec.width or columns * self._factor
        if height % self._factor or width % self._factor:
            raise BackboneError(
                f"backbone {spec.id!r}: got {height} x {width} pixels, expected multiples of {self._factor}; "
                "change backbone.height and backbone.width."
            )
        return height, width

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder between images and latents."""
        return self._vae

    @property
    def facts(self) -> BackboneFacts:
        """What to record of this backbone."""
        spec = self._spec
        kinds = (spec.variant, spec.dtype, self.prediction_type)
        return BackboneFacts(self.name, find_backbone(spec).revision, *kinds, self.height, self.width)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one latent."""
        return int(self._vae.config.latent_channels), self.height // self._factor, self.width // self._factor

    def prompt(self, text: str) -> Float[Tensor, "s d"]:
        """The condition of a text, encoded alone and remembered. Too long a text is cut, with one warning per backbone.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        return self.text(text)

    def prompts(self, texts: Sequence[str]) -> Float[Tensor, "b s d"]:
        """The conditions of several texts; the same bits as `prompt` gives for each."""
        return torch.stack([self.prompt(text) for text in texts])

    def preprocess(self, image: Image.Image, resize: Resize) -> Float[Tensor, "3 H W"]:
        """A picture in [-1, 1] at the backbone's size, on the CPU; see the function `preprocess`."""
        return preprocess(image, resize, self.height, self.width)

    def encode(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Latents of images in [-1, 1], scaled: the posterior's mode, or mean + std * noise where noise is given."""
        config, drawn = self._vae.config, self.image_latents(images, noise)
        latents: Tensor = (drawn - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents

    def image_latents(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b c h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The same as `encode`, not scaled: what an editing U-Net sees of images."""
        with torch.no_grad():
            posterior = self._vae.encode(images.to(self.device, self.dtype)).latent_dist
        drawn: Tensor = posterior.mode().float()
        return drawn if noise is None else drawn + posterior.std.float() * noise.to(self.device)

    def decode_float(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1], float32, on the backbone's device; what is not finite stays so, for the caller to judge."""
        with torch.no_grad():
            return self.decode_with_gradient(z)

    def decode_with_gradient(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """The same, differentiable in z."""
        config = self._vae.config
        unscaled = z.to(self.device, torch.float32) / config.scaling_factor + (config.shift_factor or 0.0)
        images: Tensor = self._vae.decode(unscaled.to(self.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

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
        cond: Float[Tensor, "b s d"],
        image: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The noise the network sees in xt at timestep label t (one for all rows, or one per row): one network call.

        Float32 whatever the network's dtype; differentiable in `cond`. Predictions of v or x0 are turned into eps.
        `image`: what an editing U-Net sees beside the state; zeros where nothing is shown.
        """
        said, state, labels = self._said(xt, t, cond, image)
        return self._as_eps(said, state, labels)

    def said(
        self, xt: Float[Tensor, "b c h w"], t: float | Sequence[float], cond: Float[Tensor, "b s d"]
    ) -> Float[Tensor, "b c h w"]:
        """What the schedule's `prediction` names, where `eps` is eps whatever the schedule: one network call."""
        said, state, labels = self._said(xt, t, cond)
        return self._as_eps(said, state, labels) if self.schedule.prediction == "epsilon" else said

    def _said(
        self, xt: Tensor, t: float | Sequence[float], cond: Tensor, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[float]]:
        self.calls += 1
        self.rows_evaluated += len(xt)
        labels = [t] * len(xt) if isinstance(t, int | float) else list(t)
        state = xt.to(self.device)
        time = torch.tensor(labels, device=self.device)
        text = cond.to(self.device, self.dtype)
        shown = state
        if self.is_editor:
            shown = torch.cat([state, torch.zeros_like(state) if image is None else image.to(state)], dim=1)
        predicted: Tensor = self.unet(shown.to(self.dtype), time, encoder_hidden_states=text, return_dict=False)[0]
        return predicted.float(), state.float(), labels

    @property
    def is_editor(self) -> bool:
        """Whether the U-Net takes an image's latents beside the state, as InstructPix2Pix's does."""
        return int(self.unet.config.in_channels) == 2 * int(self._vae.config.latent_channels)

    def _as_eps(self, predicted: Tensor, xt: Tensor, labels: Sequence[float]) -> Tensor:
        if self.prediction_type == "epsilon":
            return predicted
        convert = eps_from_v if self.prediction_type == "v_prediction" else eps_from_x0
        rows = zip(predicted, xt, labels, strict=True)
        return torch.cat([convert(row[None], state[None], self.schedule.level(int(t))) for row, state, t in rows])

    def guided_eps(
        self,
        xt: Float[Tensor, "b c h w"],
        t: float | Sequence[float],
        cond: Float[Tensor, "b s d"],
        uncond: Float[Tensor, "b s d"],
        scale: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """Classifier-free guidance of what `said` gives, one scale per row: one network call of 2b rows, or of b rows
        if no row is guided.

        A row of scale 1 always gets its value from a call of b rows: where guided rows stand beside it, both calls are
        made. So no row's bits depend on its neighbours' scales, and the second call costs only batches that mix them.
        """
        plain = scale.to(self.device) == 1
        unguided = self.said(xt, t, cond) if bool(plain.any()) else None
        if unguided is not None and bool(plain.all()):
            return unguided
        twice = t if isinstance(t, int | float) else [*t, *t]
        both = self.said(torch.cat([xt, xt]), twice, torch.cat([uncond, cond]))
        low, high = both.chunk(2)
        eps = guided(low, high, scale.to(self.device))
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
        """Install learned tokens and fuse their LoRA into the U-Net; None brings the base back, to the bit.

        Fused attention costs nothing extra; the original weights are kept beside and put back, never subtracted.

        Raises:
            BackboneError: the concepts were learned on a model of another shape.
        """
        unfuse(self.unet, self._unfused)
        self._unfused = {}
        self.text.uninstall()
        if concepts:
            try:
                self._unfused = fuse(self.unet, concepts.lora)
                self.text.install(concepts.tokens)
            except BackboneError:
                self.use_concepts(None)
                raise

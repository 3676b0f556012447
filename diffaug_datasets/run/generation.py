"""One planned batch: generate, judge, retry. One image's failure is data; memory that runs out halves the shape.

The planned batch is the unit of exactness. A row is always made at its own place of the planned shape: on some kernels
its last bits hang on the place (seen under MKL's COMPATIBLE path: a U-Net call of 10 or 14 rows, CLIP at shapes that
are no multiple of 4; what the other rows hold and where memory lies never mattered). What stands beside it follows
from the plan and the attempt alone, never from who failed: a later attempt draws every row of the batch again and keeps
those that lacked an image.

Whether a recipe's steps fit the schedule of its backbone: asked at plan, and again where the backbone is loaded.

What a method may touch while it works: models loaded once, real images, finished fits, noise.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from diffaug_datasets.core.errors import BackboneError, RunError, SourceError
from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.images import decode_image, picture_bytes, source_id
from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.core.method import Generated, Method, redraw
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.plan import Batch
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import FailedRow, PlanRow
from diffaug_datasets.core.sources import Pool
from diffaug_datasets.numerics.timesteps import LABELS, Spacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from diffaug_datasets.models.backbone import Backbone
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.models.training import Team


class Timeline(Protocol):
    """What labels hang on: `SchedulerSettings`, or the `Schedule` of a loaded model."""

    @property
    def num_train_timesteps(self) -> int:
        """T."""

    @property
    def steps_offset(self) -> int:
        """Added to 'leading' labels."""

    @property
    def spacing(self) -> Spacing | None:
        """None = as each sampler has it."""


def check_steps(recipe: Recipe, timeline: Timeline) -> None:
    """Raises BackboneError where a sampler cannot take its steps, or a plan decided on labels that are not visited."""
    config = recipe.method_config
    sampler = getattr(config, "sampler", "ddim")
    for key, solver in (("num_inference_steps", sampler), ("inversion_steps", "ddim")):
        steps = getattr(config, key, None)
        if steps is None:
            continue
        told = {"spacing": timeline.spacing} if timeline.spacing else {}
        try:
            labels = LABELS[solver](steps, timeline.num_train_timesteps, timeline.steps_offset, **told)
        except ValueError as error:
            raise BackboneError(
                f"backbone {recipe.backbone.id!r} was trained on {timeline.num_train_timesteps} timesteps "
                f"({error}): change config.{key}, or choose another model."
            ) from None
        is_usual = timeline.num_train_timesteps == 1000 and labels == LABELS[solver](steps)
        if getattr(recipe.module, "USUAL_LABELS", False) and not is_usual:
            raise _unusual(recipe, solver, timeline)


def _unusual(recipe: Recipe, sampler: str, timeline: Timeline) -> BackboneError:
    got = f"{timeline.num_train_timesteps} timesteps, steps_offset {timeline.steps_offset}"
    if timeline.spacing:
        got += f", timestep_spacing {timeline.spacing!r}"
    return BackboneError(
        f"backbone {recipe.backbone.id!r} has a schedule of its own ({got}), but {recipe.method} with {sampler} "
        "decides on Stable Diffusion's labels (1000 timesteps, steps_offset 1, no timestep_spacing): choose another "
        "model, sampler or method."
    )


def checked_loader(load: "LoadBackbone", recipe: Recipe) -> "LoadBackbone":
    """A loader that also asks whether the recipe's steps fit what it loads."""

    def loaded(spec: Any, device: str) -> Any:
        backbone = load(spec, device)
        check_steps(recipe, backbone.schedule)
        return backbone

    return loaded


SOURCE_BYTES = 512 << 20  # of decoded real images that a worker keeps
FIT_BYTES = 512 << 20  # of tensors of finished fits

ReadSource = Callable[[str], bytes]
LoadBackbone = Callable[[BackboneSpec, str], "Backbone"]
Report = Callable[[int, int, float], None]
HeldOut = Callable[[], Iterable[bytes]]


class Tensors(dict[str, "Tensor"]):
    """A fit's tensors by name."""

    def __init__(self, fit: str, tensors: Mapping[str, "Tensor"]) -> None:
        super().__init__(tensors)
        self._fit = fit

    def __missing__(self, key: str) -> "Tensor":
        raise RunError(f"fit {self._fit} holds no tensor {key!r}; delete its folder and run `diffaug fit RUN`.")


def load_backbone(spec: BackboneSpec, device: str) -> "Backbone":
    """The pipeline of a spec on a device; tests pass a loader that wraps it."""
    from diffaug_datasets.models.backbone import Backbone

    return Backbone.load(spec, device)


class WorkContext:
    """One worker's models and data; everything is loaded at its first use and then kept."""

    def __init__(
        self,
        spec: BackboneSpec,
        fits: Path,
        read_source: ReadSource,
        *,
        device: str = "cpu",
        encoder: str | None = None,
        batch_shape: int = 8,
        loader: LoadBackbone = load_backbone,
        report: Report | None = None,
        pool: Pool | None = None,
        held_out: HeldOut = tuple,
    ) -> None:
        self.spec, self.fits, self.device = spec, fits, device
        self.batch_shape = batch_shape
        self.folder = fits
        self._read, self._encoder, self._loader = read_source, encoder, loader
        self._report, self._pool, self._held_out = report, pool, held_out
        self._concepts: str | None = None
        self.probed_rows = 0

    @cached_property
    def team(self) -> "Team":
        """This process alone, until an engine puts others beside it."""
        from diffaug_datasets.models.training import ALONE

        return ALONE

    @cached_property
    def backbone(self) -> "Backbone":
        """The diffusion model."""
        backbone = self._loader(self.spec, self.device)
        backbone.use_concepts(None)
        return backbone

    @cached_property
    def encoder(self) -> "Encoder":
        """The method's image encoder."""
        from diffaug_datasets.models.encoders import Encoder

        if self._encoder is None:
            raise RunError("this method looks at no encoder; name one in config.encoder.")
        return Encoder.load(self._encoder, self.device)

    def source(self, source_id: str) -> "Image":
        """The real image of that id, RGB.

        Raises:
            SourceError: its bytes are missing, are others, or are no picture.
        """
        return self._decoded(source_id)

    @cached_property
    def _decoded(self) -> Callable[[str], "Image"]:
        return ByteCache(self._decode, picture_bytes, SOURCE_BYTES)

    def _decode(self, wanted: str) -> "Image":
        data = self._read(wanted)
        if source_id(data) != wanted:
            raise SourceError(f"source {wanted[:12]}: its bytes have changed since the plan was made; plan again.")
        return decode_image(data)

    def image(self, pixels: "Tensor") -> "Image":
        """The 8-bit picture of float pixels [h, w, 3] in [0, 1]; NaN becomes black here and is judged elsewhere."""
        from PIL import Image

        return Image.fromarray(to_uint8(pixels))

    def features(self, images: Iterable["Image"], normalise: bool = True) -> "Tensor":
        """Features [n d], unit-norm unless told; the encoder always sees batches of the planned shape."""
        return self.encoder.image_features(images, batch_shape=self.batch_shape, normalise=normalise)

    def text_features(self, texts: Sequence[str]) -> "Tensor":
        """Unit-norm features [n d] of texts, each encoded alone."""
        return self.encoder.text_features(list(texts))

    @property
    def pool(self) -> Pool:
        """The images that may be retrieved."""
        if self._pool is None:
            raise RunError("this method retrieves nothing; name a pool in config.pool.")
        return self._pool

    def held_out(self) -> Iterator[bytes]:
        """The encoded test images that the run carries."""
        return iter(self._held_out())

    def fit(self, name: str) -> Mapping[str, "Tensor"]:
        """All tensors of a finished fit.

        Raises:
            RunError: it is not finished or damaged; also where a tensor is asked for that it has not.
        """
        return self._loaded(name)

    @cached_property
    def _loaded(self) -> Callable[[str], Mapping[str, "Tensor"]]:
        return ByteCache(self._load, lambda tensors: sum(t.nbytes for t in tensors.values()), FIT_BYTES)

    def _load(self, name: str) -> Mapping[str, "Tensor"]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = self.fits / name
        files = sorted(folder.glob("*.safetensors"))
        if not files or not (folder / "receipt.json").exists():
            raise RunError(f"fit {name} is not finished; `diffaug fit RUN` makes it.")
        try:
            return Tensors(name, {key: tensor for file in files for key, tensor in load_file(file).items()})
        except SafetensorError as error:
            raise RunError(f"fit {name} is damaged ({error}); delete its folder and run `diffaug fit RUN`.") from error

    def use_concepts(self, name: str) -> None:
        """Install a finished `concepts` fit into the backbone, once."""
        from diffaug_datasets.models.concepts import load_concepts

        if self._concepts != name:
            self.backbone.use_concepts(load_concepts(self.fits / name))
            self._concepts = name

    @cached_property
    def numerics(self) -> Callable[[str, int], str]:
        """(`numerics` or `numerics_encoder`, batch shape) -> the fingerprint of that network here, computed once.

        The U-Net rows that it takes are counted in `probed_rows`. Where memory does not suffice for the shape, the
        fingerprint is that of the halves in which the rows are made then.
        """
        return cache(self._fingerprint)

    def _fingerprint(self, key: str, shape: int) -> str:
        from diffaug_datasets.models.fingerprint import backbone_fingerprint, features_fingerprint

        if key == "numerics_encoder":
            return features_fingerprint([self.encoder], shape)
        before = self.backbone.rows_evaluated
        self.backbone.use_concepts(None)
        self._concepts = None
        try:
            return backbone_fingerprint(self.backbone, shape)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self.probed_rows += self.backbone.rows_evaluated - before
        return "out of memory" if shape == 1 else self._fingerprint(key, (shape + 1) // 2)

    def noise(self, rows: Sequence[PlanRow]) -> "Tensor":
        """Standard normal latents [b c h w], one CPU generator a row, so that they are the same on every device."""
        import torch

        draws = [self._normal(row.seed or 0) for row in rows]
        return torch.stack(draws).to(self.backbone.device)

    def _normal(self, seed: int) -> "Tensor":
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self.backbone.latent_shape, generator=generator)

    def team_total(self, count: int) -> int:
        """The sum of a count over the team."""
        from diffaug_datasets.models.training import total

        return count if self.team.size == 1 else total(self.team, count)

    def report(self, step: int, total: int, loss: float) -> None:
        """Progress of a fit; of a team the first process tells it."""
        if self._report and self.team.rank == 0:
            self._report(step, total, loss)


def to_uint8(pixels: "Tensor") -> Any:
    """uint8 array [h, w, 3] of float pixels in [0, 1], rounded (not-a-number becomes 0), or of uint8 pixels."""
    import torch

    if pixels.dtype == torch.uint8:
        return pixels.cpu().numpy()
    return torch.nan_to_num(pixels.detach().float().cpu()).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def stack(device: str) -> dict[str, str]:
    """Device kind and versions, the part of a stack that is known without a model; see `run.stacks`."""
    import diffusers
    import peft
    import torch
    import transformers

    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    versions = {m.__name__: str(m.__version__) for m in (torch, diffusers, transformers, peft)}
    return {"device": kind, **versions}


def settle(threads: int) -> None:
    """Set what must not depend on the environment: CPU threads, deterministic kernels."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def sources_in(tables: Sequence[Any]) -> ReadSource:
    """Reads the encoded bytes of real images out of the run's real shards (Arrow tables)."""
    places = {ids[0]: (t, i) for t in tables for i, ids in enumerate(t.column("source_ids").to_pylist())}

    def read(source_id: str) -> bytes:
        if source_id not in places:
            raise SourceError(f"source {source_id[:12]}: not among this run's real images.")
        table, index = places[source_id]
        return bytes(table.column("image")[index].as_py()["bytes"])

    return read


def images_in(tables: Sequence[Any]) -> Iterator[bytes]:
    """The encoded bytes of every image of Arrow tables, in order."""
    for table in tables:
        for image in table.column("image"):
            yield bytes(image.as_py()["bytes"])


@dataclass(frozen=True)
class Made:
    """A row with its picture: uint8 [h, w, 3]; `row` holds the draws of the attempt that worked.

    `place`: of the row in its planned batch. `encoded`: the bytes of a picture that was found, not made.
    """

    row: PlanRow
    pixels: "NDArray[np.uint8]"
    measured: dict[str, Any]
    attempt: int
    batch_shape: int
    place: int
    encoded: bytes | None = None


@dataclass(frozen=True)
class BatchJob:
    """How to make batches: the method, its configuration, the padded shape, the number of tries."""

    method: Method
    config: BaseModel
    ctx: WorkContext
    seed: int
    shape: int
    attempts: int

    def make(self, batch: Batch) -> tuple[list[Made], list[FailedRow]]:
        """Images of a planned batch's rows, and the rows that have none after all attempts."""
        _, unreadable = self._slots(batch, 0)
        named = _named(batch, unreadable)
        failed = [FailedRow(row_id=row.row_id, reason=unreadable[place], attempts=0) for place, row in named]
        waiting = [place for place, row in enumerate(batch) if row is not None and place not in unreadable]
        made: list[Made] = []
        reasons: dict[int, str] = {}
        for attempt in range(self.attempts):
            good, reasons = self._try(batch, waiting, attempt)
            made += good
            waiting = sorted(reasons)
            if not waiting:
                break
        named = _named(batch, waiting)
        failed += [FailedRow(row_id=row.row_id, reason=reasons[p], attempts=self.attempts) for p, row in named]
        return made, failed

    def rebuild(self, row: PlanRow, batch: Batch, place: int, attempt: int, shape: int) -> Made | None:
        """The image of a finished row, which stands at a place of its planned batch, at the attempt and the shape that
        made it; None where memory does not suffice for that shape.

        Raises:
            RunError: no batch of this shape is cut to that one.
        """
        slots, _ = self._slots(batch, attempt)
        slots[place] = row
        at = place
        while len(slots) > max(1, shape):
            lower, upper = _halves(slots)
            slots, at = (lower, at) if at < len(lower) else (upper, at - len(lower))
        if len(slots) != shape:
            raise RunError(
                f"row {row.row_id}: was made in a batch of {shape}, to which a planned batch of {self.shape} is never "
                "cut; its recipe or its columns were changed."
            )
        [(_, image, made_at)] = self._generate(slots, [at])
        return None if image is None or made_at != shape else _made(row, image, attempt, shape, place)

    def _slots(self, batch: Batch, attempt: int) -> tuple[list[PlanRow | None], dict[int, str]]:
        """The rows of an attempt at their places of the planned shape, None where no row can stand; why, by place."""
        rows = [row and self._drawn(row, attempt) for row in batch]
        unreadable = {p: told for p, row in enumerate(rows) if row is not None and (told := self._unreadable(row))}
        slots = [None if place in unreadable else row for place, row in enumerate(rows)]
        return [*slots, *[None] * (self.shape - len(slots))], unreadable

    def _unreadable(self, row: PlanRow) -> str:
        try:
            for source in row.source_ids:
                self.ctx.source(source)
        except SourceError as error:
            return str(error)
        return ""

    def _drawn(self, row: PlanRow, attempt: int) -> PlanRow:
        key = RowKey(self.seed, self.method.NAME, row.label, row.k, attempt)
        return redraw(self.method, row, key, self.config) if attempt else row

    def _try(self, batch: Batch, wanted: Sequence[int], attempt: int) -> tuple[list[Made], dict[int, str]]:
        """The images of an attempt at these places; of those that cannot stay, the reason by place."""
        slots, unreadable = self._slots(batch, attempt)
        bad = {place: unreadable[place] for place in wanted if place in unreadable}
        good: list[Made] = []
        for place, image, shape in self._generate(slots, [place for place in wanted if place not in bad]):
            reason = "out of memory at batch shape 1" if image is None else flaw(image)
            row = slots[place]
            if image is None or row is None or reason:
                bad[place] = reason
            else:
                good.append(_made(row, image, attempt, shape, place))
        return good, bad

    def _generate(
        self, slots: Sequence[PlanRow | None], wanted: Sequence[int]
    ) -> list[tuple[int, Generated | None, int]]:
        """(place, image, shape) of the wanted places; in padded halves where memory does not suffice for all slots.

        An empty slot holds the first row that there is.
        """
        if not wanted:
            return []
        shape, filler = len(slots), next(row for row in slots if row is not None)
        try:
            images = self._images([row or filler for row in slots])
            return [(place, images[place], shape) for place in wanted]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        _free_memory()
        if shape == 1:
            return [(place, None, 1) for place in wanted]
        lower, upper = _halves(slots)
        half = len(lower)
        first = self._generate(lower, [place for place in wanted if place < half])
        second = self._generate(upper, [place - half for place in wanted if place >= half])
        return [*first, *[(place + half, image, made_at) for place, image, made_at in second]]

    def _images(self, rows: Sequence[PlanRow]) -> list[Generated]:
        import torch

        self.ctx.batch_shape = len(rows)
        with torch.inference_mode():
            return self.method.generate(rows, self.config, self.ctx)


def _named(batch: Batch, places: Iterable[int]) -> list[tuple[int, PlanRow]]:
    return [(place, row) for place in sorted(places) if (row := batch[place]) is not None]


def _halves(slots: Sequence[PlanRow | None]) -> tuple[list[PlanRow | None], list[PlanRow | None]]:
    """Two batches of one shape, (n + 1) // 2, that hold all n slots; of an odd number the second has one slot empty."""
    half = (len(slots) + 1) // 2
    return list(slots[:half]), [*slots[half:], *[None] * (2 * half - len(slots))]


def _made(row: PlanRow, image: Generated, attempt: int, shape: int, place: int) -> Made:

    chosen = row.model_copy(update=dict(image.chosen))
    return Made(chosen, to_uint8(image.pixels), dict(image.measured), attempt, shape, place, image.encoded)


def flaw(image: Generated) -> str:
    """Why an image cannot stay: there is none, it is not finite, or of one flat colour; empty where it can."""
    import torch

    if image.lacking:
        return image.lacking
    if not bool(torch.isfinite(image.pixels).all()):
        return "not finite"
    low, high = image.pixels.amin(), image.pixels.amax()
    return "constant image" if float(high - low) < 1 / 255 else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the batch did not fit, on any device."""
    import torch

    text = str(error).lower()
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "out of memory" in text or "not enough memory" in text


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()

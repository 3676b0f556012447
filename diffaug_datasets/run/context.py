"""What a method may touch while it works: models loaded once, real images, finished fits, noise."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.backbone_spec import BackboneSpec
from diffaug_datasets.core.bounded import ByteCache
from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.images import decode_image, picture_bytes, source_id
from diffaug_datasets.core.pools import Pool
from diffaug_datasets.core.rows import PlanRow

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffaug_datasets.models.backbone import Backbone
    from diffaug_datasets.models.features import Encoder
    from diffaug_datasets.models.team import Team

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
        from diffaug_datasets.models.team import ALONE

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
        from diffaug_datasets.models.features import Encoder

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
        from diffaug_datasets.run.batch import is_out_of_memory

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
        from diffaug_datasets.models.team import total

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

"""What a method may touch while it works: the recipe's models, real images, finished fits, noise.

Everything is loaded at its first use and then kept; decoded images and tensors of fits are bounded in bytes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from diffaug_datasets.core.errors import RunError, SourceError
from diffaug_datasets.core.files import FileDigest, plain_name
from diffaug_datasets.core.images import decode_image, picture_bytes, source_id
from diffaug_datasets.core.learning import ConceptConfig, EmbeddingConfig, LoraConfig, OnStep
from diffaug_datasets.core.memory import ByteCache
from diffaug_datasets.core.method import FitFiles, Resize, image_of
from diffaug_datasets.core.models import BackboneSpec, find_backbone, model_name
from diffaug_datasets.core.profiles import EXACT, Profile
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Pool
from diffaug_datasets.core.suitability import check_suits
from diffaug_datasets.run.kept import kept

if TYPE_CHECKING:
    import numpy as np
    from diffusers import ControlNetModel
    from jaxtyping import Float
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from diffaug_datasets.models.backbone import Backbone
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.models.subjects import SubjectEncoder
    from diffaug_datasets.models.training import Team

SOURCE_BYTES = 512 << 20  # of decoded real images that a worker keeps
FIT_BYTES = 512 << 20  # of tensors of finished fits

ReadSource = Callable[[str], bytes]
"""sha256 of a real image -> its encoded bytes."""
Have = Callable[[str], None]
"""Name of a fit -> nothing, once its files are on this machine."""
HeldOut = Callable[[], Iterable[bytes]]
"""() -> the encoded test images."""


class WorkContext:
    """One worker's models and data, as `core.method.Context` lends them to the recipe's method.

    `team`: the processes that share a fit's batches. `folder`: of the fit that is being made. `batch_shape`: rows that
    a network sees at once. `probed_rows`: U-Net rows that went into fingerprints, not into results.
    """

    def __init__(
        self,
        recipe: Recipe,
        fits: Path,
        read_source: ReadSource,
        *,
        device: str = "cpu",
        report: OnStep | None = None,
        pool: Pool | None = None,
        held_out: HeldOut = tuple,
        have: Have = lambda _: None,
    ) -> None:
        """`have`: called with the name of a finished fit before its files are read."""
        self.recipe, self.fits, self.device = recipe, fits, device
        self.batch_shape, self.folder = recipe.batch_size, fits
        self.probed_rows, self._before, self._skipped_before = 0, 0, 0
        self._read, self._report, self._pool, self._held_out = read_source, report, pool, held_out
        self._have = have
        self._concepts: str | None = None

    @cached_property
    def team(self) -> "Team":
        """This process alone, until an engine puts others beside it."""
        from diffaug_datasets.models.training import ALONE

        return ALONE

    @cached_property
    def backbone(self) -> "Backbone":
        """The diffusion model.

        Raises:
            BackboneError: it cannot be loaded, or does not suit the recipe's method, sampler or steps.
        """
        from diffaug_datasets.models.editors import check_kind

        backbone = load_backbone(self.recipe.backbone, self.device, self.recipe.profile, self.batch_shape)
        check_kind(self.recipe.backbone.id, self.recipe.method_config.requirements.editor, backbone.is_editor)
        check_suits(self.recipe, backbone.model.facts)
        backbone.use_concepts(None)
        self._before = backbone.rows_evaluated  # of other runs, where it was kept
        self._skipped_before = backbone.rows_skipped
        return backbone

    def load(self) -> None:
        """Have the diffusion model now, so that its time is not the first image's. Raises as `backbone`."""
        _ = self.backbone

    @cached_property
    def encoder(self) -> "Encoder":
        """The method's image encoder."""
        from diffaug_datasets.models.encoders import Encoder

        encoder = self.recipe.method_config.requirements.encoder
        if encoder is None:
            raise RunError("this method looks at no encoder; name one in config.encoder.")
        return kept("encoder", f"{model_name(encoder)} {self.device}", lambda: Encoder.load(encoder, self.device))

    @cached_property
    def controlnet(self) -> "ControlNetModel":
        """The method's ControlNet."""
        from diffaug_datasets.models.controlnet import load_controlnet

        folder = self.recipe.method_config.requirements.controlnet
        if not folder:
            raise RunError("this method is steered by no ControlNet; name one in config.controlnet.")
        return load_controlnet(folder, self.backbone)

    def subject(self, image: "Image", word: str) -> 'Float[Tensor, "q d"]':
        """What a picture shows of the kind that the word names, seen alone."""
        return self._subjects.vectors(image, word)

    @cached_property
    def _subjects(self) -> "SubjectEncoder":
        from diffaug_datasets.models.subjects import load_subjects

        folder = self.recipe.method_config.requirements.qformer
        if not folder:
            raise RunError("this method is shown no subject; name a Q-Former in config.qformer.")
        return load_subjects(folder, self.backbone)

    @property
    def rows_evaluated(self) -> int:
        """U-Net rows that results rest on so far; none where no backbone is loaded yet."""
        if "backbone" not in self.__dict__:
            return 0
        return self.backbone.rows_evaluated - self.probed_rows - self._before

    @property
    def rows_skipped(self) -> int:
        """U-Net rows that turbo left out so far, features of an earlier step having taken their place."""
        return self.backbone.rows_skipped - self._skipped_before if "backbone" in self.__dict__ else 0

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

    def image(self, pixels: 'Float[Tensor, "h w 3"]') -> "Image":
        """The 8-bit picture of pixels in [0, 1]; NaN becomes black here and is judged elsewhere."""
        from PIL import Image

        return Image.fromarray(to_uint8(pixels))

    def features(self, images: Iterable["Image"], normalise: bool = True) -> 'Float[Tensor, "n d"]':
        """Features, unit-norm unless told; the encoder always sees batches of the planned shape."""
        return self.encoder.image_features(images, batch_shape=self.batch_shape, normalise=normalise)

    def text_features(self, texts: Sequence[str]) -> 'Float[Tensor, "n d"]':
        """Unit-norm features of texts, each encoded alone."""
        return self.encoder.text_features(list(texts))

    def pixel_features(self, images: 'Float[Tensor, "b 3 H W"]') -> 'Float[Tensor, "b d"]':
        """Unit-norm features of images in [0, 1], differentiable, by the network at their own number."""
        return self.encoder.pixel_features(images)

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

        self._have(name)
        folder = self.fits / name
        files = sorted(files_of_fit(folder).values())
        if not files or not (folder / "receipt.json").exists():
            raise RunError(f"fit {name} is not finished; `diffaug fit RUN` makes it.")
        try:
            return _Tensors(name, {key: tensor for file in files for key, tensor in load_file(file).items()})
        except SafetensorError as error:
            raise RunError(f"fit {name} is damaged ({error}); delete its folder and run `diffaug fit RUN`.") from error

    def use_concepts(self, name: str) -> None:
        """Install a finished `concepts` fit into the backbone, once."""
        from diffaug_datasets.models.adapters import load_concepts

        if self._concepts != name:
            self._have(name)
            self.backbone.use_concepts(load_concepts(self.fits / name, files_of_fit(self.fits / name)))
            self._concepts = name

    def learn_concepts(
        self, images: Sequence[str], names: Mapping[int, str], cfg: ConceptConfig, *, metaclass: str, resize: Resize
    ) -> FitFiles:
        """Tokens and LoRA; killed and called again, it goes on from its last checkpoint. A team trains together."""
        from diffaug_datasets.models.concepts import train_concepts
        from diffaug_datasets.models.latents import ConceptExample

        pairs = [image_of(image) for image in images]
        examples = [ConceptExample(partial(self.source, source), label, source) for source, label in pairs]
        self._concepts = None
        learned = train_concepts(
            self.backbone, examples, names, cfg, metaclass=metaclass, resize=resize,
            workdir=self.folder, progress=self.report, team=self.team,
        )  # fmt: skip
        return FitFiles(learned.concepts.files(), learned.measured())

    def learn_lora(
        self, images: Sequence[str], prompts: Mapping[int, str], cfg: LoraConfig, *, resize: Resize
    ) -> FitFiles:
        """LoRA of both networks; killed and called again, it goes on from its last checkpoint."""
        from diffaug_datasets.models.few_shot import learn_lora
        from diffaug_datasets.models.latents import ConceptExample

        self._concepts = None
        pairs = map(image_of, images)
        examples = [ConceptExample(partial(self.source, source), label, source) for source, label in pairs]
        learned = learn_lora(
            self.backbone, examples, prompts, cfg, workdir=self.folder, resize=resize, progress=self.report
        )
        return FitFiles(learned.files(), learned.measured())

    def learn_embeddings(
        self, images: Sequence[str], cfg: EmbeddingConfig, *, resize: Resize, prompts: Mapping[int, str] | None = None
    ) -> FitFiles:
        """A condition per image; killed and called again, it goes on from its last checkpoint."""
        from diffaug_datasets.models.concepts import learn_embeddings

        self._concepts = None
        pixels = (self.backbone.preprocess(self.source(image_of(image)[0]), resize) for image in images)
        labels = [image_of(image)[1] for image in images]
        learned = learn_embeddings(
            self.backbone, pixels, cfg, labels=labels, prompts=prompts, workdir=self.folder, progress=self.report
        )
        files = {"image_embeddings.safetensors": dict(zip(images, learned.embeddings, strict=True))}
        return FitFiles(files, learned.measured())

    def noise(self, rows: Sequence[PlanRow]) -> 'Float[Tensor, "b c h w"]':
        """Standard normal latents, one CPU generator per row, so that they are the same on every device."""
        import torch

        generators = [torch.Generator("cpu").manual_seed(row.seed or 0) for row in rows]
        draws = [torch.randn(self.backbone.latent_shape, generator=generator) for generator in generators]
        return torch.stack(draws).to(self.backbone.device)

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

    def kernels(self, probes: Iterable[str]) -> dict[str, str]:
        """What a stack says of how a profile computes here, where the backbone's fingerprint stands beside it."""
        if self.recipe.profile.is_plain or "numerics" not in probes:
            return {}
        return {"kernels": self.backbone.kernels}

    def team_total(self, count: int) -> int:
        """The sum of a count over the team."""
        from diffaug_datasets.models.training import total

        return count if self.team.size == 1 else total(self.team, count)

    def report(self, step: int, total: int, loss: float) -> None:
        """Progress of a fit; of a team the first process tells it."""
        if self._report and self.team.rank == 0:
            self._report(step, total, loss)


class _Tensors(dict[str, "Tensor"]):
    """A fit's tensors by name; asking for another one is a sentence."""

    def __init__(self, fit: str, tensors: Mapping[str, "Tensor"]) -> None:
        super().__init__(tensors)
        self._fit = fit

    def __missing__(self, key: str) -> "Tensor":
        raise RunError(f"fit {self._fit} holds no tensor {key!r}; delete its folder and run `diffaug fit RUN`.")


def files_of_fit(folder: Path) -> dict[str, Path]:
    """The files of a fit, by the names that its maker gave them: those of its receipt, or all where it has none."""
    try:
        content = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
        stated = [FileDigest.model_validate(file) for file in content["files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {path.name: path for path in folder.glob("*.safetensors")}
    return {plain_name(file): folder / file.file for file in stated}


def load_backbone(spec: BackboneSpec, device: str, profile: Profile = EXACT, shape: int = 1) -> "Backbone":
    """The pipeline of a spec on a device, put to work for batches of `shape` rows as the profile has it, in the dtype
    that it takes there; loaded, or kept from the run before.
    """
    from diffaug_datasets.models.backbone import Backbone

    if not profile.is_exact:
        from diffaug_datasets.models.kernels import spec_on

        spec = spec_on(spec, profile, device)

    def made() -> Backbone:
        backbone = Backbone.load(spec, device)
        if not profile.is_plain:
            from diffaug_datasets.models.kernels import put_to_work

            put_to_work(backbone, profile, shape)
        return backbone

    at_work = "" if profile.is_plain else f" {profile.words}, {shape} rows"
    return kept("backbone", f"{spec.model_dump_json()} {find_backbone(spec).name} {device}{at_work}", made)


def to_uint8(pixels: "Tensor") -> "NDArray[np.uint8]":
    """Array [h, w, 3] of float pixels in [0, 1], rounded (not-a-number becomes 0), or of uint8 pixels."""
    import torch

    if pixels.dtype != torch.uint8:
        pixels = torch.nan_to_num(pixels.detach().float().cpu()).mul(255).round().clamp(0, 255).to(torch.uint8)
    array: NDArray[np.uint8] = pixels.cpu().numpy()
    return array


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the batch did not fit, on any device."""
    import torch

    text = str(error).lower()
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "out of memory" in text or "not enough memory" in text


def sources_in(tables: Sequence[pa.Table]) -> ReadSource:
    """Reads the encoded bytes of real images out of the run's real shards."""
    places = {ids[0]: (t, i) for t in tables for i, ids in enumerate(t.column("source_ids").to_pylist())}

    def read(source_id: str) -> bytes:
        if source_id not in places:
            raise SourceError(f"source {source_id[:12]}: not among this run's real images.")
        table, index = places[source_id]
        return bytes(table.column("image")[index].as_py()["bytes"])

    return read


def images_in(tables: Sequence[pa.Table]) -> Iterator[bytes]:
    """The encoded bytes of every image of Arrow tables, in order."""
    for table in tables:
        for image in table.column("image"):
            yield bytes(image.as_py()["bytes"])

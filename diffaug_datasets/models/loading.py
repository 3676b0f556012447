"""From a `BackboneSpec` to a loaded model: its files are found or fetched, its family loads them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import Family
from diffaug_datasets.core.model_files import brief
from diffaug_datasets.core.models import (
    ADAPTER_CONFIG,
    BackboneSpec,
    ModelRef,
    WeightFile,
    find_backbone,
    find_loras,
    find_single_file,
    find_vae,
)
from diffaug_datasets.families.parts.driven import DrivenModel
from diffaug_datasets.families.parts.single_files import part_in
from diffaug_datasets.models.model_folder import check_folder, family_in, in_words, unloadable, unreachable
from diffaug_datasets.models.overrides import VAE_FILES, with_overrides

INDEX = "model_index.json"


def load_model(spec: BackboneSpec, device: torch.device) -> DrivenModel:
    """The model of a spec, frozen and in eval mode.

    Raises:
        BackboneError: the model cannot be reached, is of no family, or its files do not fit together.
    """
    fetch_single_file(spec)  # what it lacks is to be brought of the model
    folder = fetch(spec)
    fetch_vae(spec)
    fetch_loras(spec)
    check_folder(folder, spec)
    with in_words(spec):
        folder = with_overrides(folder, spec)
    with one_sentence(spec):
        loaded: DrivenModel = family_in(folder, spec.id).load(folder, spec, device)
    return loaded


def fetch(spec: BackboneSpec) -> Path:
    """The folder with the spec's files; a Hub id comes from the cache, and only what it lacks from the network.

    Raises:
        BackboneError: names every way out.
    """
    model = find_backbone(spec)
    if model.folder is not None and model.is_local:
        if not (model.folder / INDEX).is_file():
            raise unreachable(model, f"{str(model.folder)!r} has no {INDEX}")
        return model.folder
    wanted = [INDEX]
    try:
        cached = _snapshot(model, wanted, local_files_only=True)
    except (OSError, ValueError):
        cached = _download(model, wanted)
    family = family_in(cached, spec.id)
    with in_words(spec):
        own = [part for part in family.PARTS if part_in(spec, cached, part) is None]
    if _complete(cached, spec, family, own):
        return cached
    folder = _download(model, list(_wanted(spec, family, own)))
    if not _complete(folder, spec, family, own):
        missing = ", ".join(name for name in _needed(spec, family, own) if not _present(folder, name))
        raise unreachable(model, f"{missing} is missing; only safetensors weights are read")
    return folder


def fetch_vae(spec: BackboneSpec) -> None:
    """Bring the autoencoder of an override to this machine, where it is a Hub id.

    Raises:
        BackboneError: it cannot be reached.
    """
    other = find_vae(spec)
    if other is None or other.is_local:
        return
    where: dict[str, Any] = {"revision": other.revision, "allow_patterns": list(VAE_FILES)}
    try:
        snapshot_download(other.id, **where, local_files_only=other.folder is not None)
    except (OSError, ValueError) as error:
        raise unreachable(other, str(error).strip().split("\n")[0].rstrip(".")) from error


def fetch_single_file(spec: BackboneSpec) -> None:
    """Bring the checkpoint of an override to this machine, where it lies on the Hub.

    Raises:
        BackboneError: it cannot be reached, or the repository holds no such file.
    """
    file = find_single_file(spec)
    if file is not None and file.path is None and not (_brought(file, file.names) / file.names[0]).is_file():
        raise BackboneError(f"{file.key}: {file.name!r} holds no {file.names[0]}: name a file that it holds.")


def fetch_loras(spec: BackboneSpec) -> None:
    """Bring LoRA of an override to this machine, where it is a Hub id.

    Raises:
        BackboneError: it cannot be reached, or holds no such file.
    """
    for file in find_loras(spec):
        if file.path is not None:
            continue
        folder = _brought(file, (*file.names, ADAPTER_CONFIG))
        if not any((folder / name).is_file() for name in file.names):
            raise BackboneError(
                f"backbone.lora: {file.given!r} holds no {' or '.join(file.names)}: say which file it is by `name`."
            )


def _brought(file: WeightFile, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(file.name, revision=file.revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise BackboneError(
            f"{file.key}: {file.given!r} cannot be reached ({reason}): run `{file.download}` where there is a network, "
            "or give the path of a .safetensors file."
        ) from error


def _snapshot(model: ModelRef, wanted: list[str], *, local_files_only: bool = False) -> Path:
    where = snapshot_download(
        model.id, revision=model.revision, allow_patterns=wanted, local_files_only=local_files_only
    )
    folder = Path(where)
    if not (folder / INDEX).is_file():
        raise ValueError(f"{INDEX} is missing")
    return folder


def _download(model: ModelRef, wanted: list[str]) -> Path:
    try:
        return _snapshot(model, wanted)
    except (OSError, ValueError) as error:
        raise unreachable(model, str(error).strip().split("\n")[0].rstrip(".")) from error


def _weights(spec: BackboneSpec, family: Family, part: str) -> str:
    variant = f".{spec.variant}" if spec.variant else ""
    return f"{part}/{family.PARTS[part]}{variant}.safetensors"


def _needed(spec: BackboneSpec, family: Family, own: Sequence[str]) -> list[str]:
    """`own`: the parts whose weights are the model's own, not those of a single file."""
    weights = [_weights(spec, family, part) for part in own]
    return [INDEX, "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in family.PARTS), *weights]


def _wanted(spec: BackboneSpec, family: Family, own: Sequence[str]) -> Iterator[str]:
    """The patterns to download: what is needed, tokenizers, and the shards of weights that come in several files."""
    yield from _needed(spec, family, own)
    yield from family.OTHER_FILES
    for part in own:
        stem = _weights(spec, family, part).removesuffix(".safetensors")
        yield from (f"{stem}-*-of-*.safetensors", f"{part}/{family.PARTS[part]}.safetensors.index*.json")


def _present(folder: Path, name: str) -> bool:
    path = folder / name
    return path.is_file() or any(path.parent.glob(f"{path.name.removesuffix('.safetensors')}-*-of-*.safetensors"))


def _complete(folder: Path, spec: BackboneSpec, family: Family, own: Sequence[str]) -> bool:
    others = {pattern.partition("/")[0] for pattern in family.OTHER_FILES}
    return all(_present(folder, name) for name in _needed(spec, family, own)) and all(
        (folder / other).is_dir() for other in others
    )


@contextmanager
def one_sentence(spec: BackboneSpec) -> Iterator[None]:
    """Turn what the libraries raise about a model's files into a `BackboneError` of one sentence."""
    try:
        with in_words(spec):
            yield
    except BackboneError:
        raise
    except Exception as error:  # of whichever kind diffusers, transformers and tokenizers fail with on odd files
        raise unloadable(spec.id, brief(error), spec.single_file) from error

"""Whether the folder of an encoder or a judge is whole: its JSON and weight headers, read at plan, without torch."""

import re
from pathlib import Path
from typing import Any, Literal

from diffaug_datasets.core.backbone_spec import cached_snapshot
from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.model_files import Damage, brief, check_vocabulary, read_object, read_weights, whole_number

PACKAGED = ("tiny", "shots")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def unreadable(name: str, error: Exception) -> BackboneError:
    """A model whose files are missing, damaged, of another kind, or need code of their own, as a library found it."""
    needs_code = "trust_remote_code" in str(error)
    reason = "it brings code of its own, which is never run" if needs_code else brief(error)
    return BackboneError(
        f"model {name!r} cannot be loaded ({reason}): expected a transformers folder with config.json and "
        "safetensors weights of the kind that is asked for and, where it sees images, preprocessor_config.json."
    )


def check_model(id_or_path: str, kind: Literal["encoder", "judge"]) -> None:
    """Look at what lies on this machine of a model that sees images; a Hub id that is not cached is not looked at.

    Raises:
        BackboneError: a file is missing, damaged or a pickle.
    """
    if id_or_path in PACKAGED:
        return
    folder = Path(id_or_path).expanduser()
    is_whole = folder.is_dir()
    if not is_whole:
        repository, _, revision = id_or_path.partition("@")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
            way_out = "give one of these, or `tiny`."
            raise BackboneError(f"{kind} {id_or_path!r} is neither a folder nor a Hub id: {way_out}")
        found = cached_snapshot(repository, revision or None)
        if found is None or not (found / "config.json").is_file():
            return
        folder = found
    try:
        _check(folder, kind, is_whole)
    except Damage as error:
        raise unreadable(id_or_path, error) from None


def _check(folder: Path, kind: str, is_whole: bool) -> None:
    config = read_object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise Damage(f"config.json has model_type {config.get('model_type')!r}, expected a name")
    if config.get("quantization_config"):
        raise Damage("config.json has a quantization_config, expected weights of plain floats")
    weights = read_weights(folder, "model")
    if weights is None and is_whole:
        raise Damage("model.safetensors is missing")
    found = [name for name in PROCESSORS if (folder / name).is_file()]
    if not found and is_whole:
        raise Damage(f"{PROCESSORS[0]} is missing")
    for name in found:
        read_object(folder, name)
    if kind == "judge":
        _check_classes(config)
    text = config.get("text_config")
    if kind == "encoder" and isinstance(text, dict) and (is_whole or (folder / "tokenizer_config.json").is_file()):
        check_vocabulary(folder, whole_number(text, "vocab_size", "config.json", _rows(weights)))


def _check_classes(config: dict[str, Any]) -> None:
    names = config.get("id2label", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise Damage("config.json has an id2label that gives no names of classes")
    if set(names) != {str(i) for i in range(len(names))}:
        raise Damage("config.json has an id2label whose numbers do not run from 0")


def _rows(weights: Any) -> int | None:
    """Words of the embedding table, where the configuration leaves them to its class's default."""
    tables = [entry.shape[0] for key, entry in (weights or {}).items() if key.endswith("token_embedding.weight")]
    return tables[0] if tables else None

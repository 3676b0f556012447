"""Whether a model can be driven, judged by its folder without torch: asked at plan, and again before it is loaded.

Read are JSON, the headers of safetensors weights, and the words of a tokenizer. Which diffusion models can be driven,
and what is known of them then, their families say (`core.family`). Of encoders and judges the folder must be whole.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.family import Family, ModelFacts, discover_families, family_of, guess_facts
from diffaug_datasets.core.model_files import (
    Damage,
    brief,
    check_vocabulary,
    read_object,
    read_weights,
    whole_number,
)
from diffaug_datasets.core.models import (
    ORACLE,
    PACKAGED,
    BackboneSpec,
    ModelRef,
    find_backbone,
    find_model,
    oracle_folder,
    oracle_weights,
)
from diffaug_datasets.core.weight_headers import TensorInfo
from diffaug_datasets.families.parts.diffusers_folders import SCHEDULER, WrongSize
from diffaug_datasets.models.overrides import check_loras, with_overrides
from diffaug_datasets.numerics.timelines import usual_timeline
from diffaug_datasets.numerics.timesteps import Labels, Unfit

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
FEW_STEP = re.compile(r"(?:sd|xl)[-_]?lightning|hyper[-_]?sd|(?:^|[-_/])tcd(?:[-_]|$)", re.I)


def unreadable(name: str, error: Exception) -> BackboneError:
    """A model whose files are missing, damaged, of another kind, or need code of their own, as a library found it."""
    needs_code = "trust_remote_code" in str(error)
    reason = "it brings code of its own, which is never run" if needs_code else brief(error)
    return BackboneError(
        f"model {name!r} cannot be loaded ({reason}): expected a transformers folder with config.json and "
        "safetensors weights of the kind that is asked for and, where it sees images, preprocessor_config.json."
    )


def check_model(id_or_path: str, kind: Literal["encoder", "judge"], *, texts: bool = False) -> None:
    """Look at what lies on this machine of a model that sees images; a Hub id that is not cached is not looked at.

    `texts`: whether it must read texts too.

    Raises:
        BackboneError: a file is missing, damaged or a pickle, the package of its weights is not installed, or it sees
            images alone where texts are compared.
    """
    if id_or_path == ORACLE and not oracle_folder().is_dir():
        oracle_weights()
    if id_or_path == ORACLE and texts:
        raise sees_images_alone(id_or_path)
    if id_or_path in PACKAGED:
        return
    model = find_model(id_or_path, kind)
    if model.folder is None:
        return
    try:
        _check(model.folder, kind, model.is_local)
    except Damage as error:
        raise unreadable(id_or_path, error) from None
    if texts and not _reads_texts(read_object(model.folder, "config.json")):
        raise sees_images_alone(id_or_path)


def sees_images_alone(name: str) -> BackboneError:
    """An encoder that has no text side."""
    return BackboneError(f"encoder {name!r} sees images alone: name a CLIP model where texts are compared.")


def _reads_texts(config: Mapping[str, object]) -> bool:
    """Whether a configuration is that of a model of images and texts; those of CLIP may leave out its text side."""
    return "text_config" in config or "clip" in str(config["model_type"])


def _check(folder: Path, kind: str, is_whole: bool) -> None:
    config = read_object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise Damage(f"config.json has model_type {config.get('model_type')!r}, expected a name")
    if config.get("quantization_config"):
        raise Damage("config.json has a quantization_config, expected weights of plain floats")
    weights = read_weights(folder, "model")
    if weights is None and is_whole:
        raise Damage("model.safetensors is missing")
    processors = [name for name in PROCESSORS if (folder / name).is_file()]
    if not processors and is_whole:
        raise Damage(f"{PROCESSORS[0]} is missing")
    for name in processors:
        read_object(folder, name)
    if kind == "judge":
        _check_classes(config)
    text = config.get("text_config")
    if kind == "encoder" and isinstance(text, dict) and (is_whole or (folder / "tokenizer_config.json").is_file()):
        check_vocabulary(folder, whole_number(text, "vocab_size", "config.json", _rows(weights)))


def _check_classes(config: Mapping[str, object]) -> None:
    names = config.get("id2label", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise Damage("config.json has an id2label that gives no names of classes")
    if set(names) != {str(i) for i in range(len(names))}:
        raise Damage("config.json has an id2label whose numbers do not run from 0")


def _rows(weights: Mapping[str, TensorInfo] | None) -> int | None:
    """Words of the embedding table, where the configuration leaves them to its class's default."""
    tables = [entry.shape[0] for key, entry in (weights or {}).items() if key.endswith("token_embedding.weight")]
    return tables[0] if tables else None


def unfit(name: str, got: str, expected: str) -> BackboneError:
    """A model that is whole, but of another kind."""
    return BackboneError(
        f"backbone {name!r} {got}, expected {expected}: choose another model, or set `backbone: tiny`."
    )


def unloadable(name: str, reason: str, single_file: str | None = None) -> BackboneError:
    """A model whose files are missing, damaged, or do not fit together."""
    if single_file is not None:
        return BackboneError(
            f"backbone.single_file: {single_file!r} cannot be loaded with the configurations of {name!r} ({reason}): "
            "give as backbone.id a model of the same size and kind, or another file."
        )
    return BackboneError(
        f"backbone {name!r} cannot be loaded ({reason}): check that the folder is complete and holds safetensors "
        "weights of the stated variant, download it again, or set `backbone: tiny`."
    )


def unreachable(model: ModelRef, reason: str) -> BackboneError:
    """A model whose files are not here and cannot be brought."""
    revision = f" --revision {model.wanted}" if model.wanted else ""
    download = "" if model.is_local else f"run `hf download {model.id}{revision}` where there is a network, "
    return BackboneError(
        f"backbone {model.given!r} cannot be reached ({reason}): {download}"
        "give the path of a local folder in diffusers format, or set `backbone: tiny`."
    )


def check_backbone(spec: BackboneSpec) -> ModelFacts | None:
    """The facts of the model, once all that can be checked without torch fits; None where it is not here yet.

    Of a Hub id whose files are still to come the facts are those that its name and the files at hand give away.

    Raises:
        BackboneError: a file is missing or damaged, or the model is of a kind that cannot be driven.
    """
    model = find_backbone(spec)
    if FEW_STEP.search(spec.id) and not model.is_local:
        raise unfit(spec.id, "is made for a few steps, as its name says", "an ordinary model")
    folder = model.folder
    if folder is None:
        return guess_facts(model.id)
    if not (folder / "model_index.json").is_file():
        raise unreachable(model, f"{str(folder)!r} has no model_index.json")
    facts = check_folder(folder, spec, is_whole=model.is_local)
    is_known = model.is_local or (folder / SCHEDULER).is_file()
    return facts if is_known else guess_facts(model.id) or facts


def timeline_of(spec: BackboneSpec, sampler: str = "ddim") -> Labels:
    """The labels of a model that `check_backbone` let pass; the sampler's usual ones where it is not here yet."""
    facts = check_backbone(spec)
    return usual_timeline(sampler) if facts is None else facts.timeline


def embeds_guidance(spec: BackboneSpec) -> bool:
    """Whether a model that may be planned on is told the scale of guidance in one branch."""
    return _embeds_guidance(spec.model_dump_json())


@lru_cache(maxsize=16)
def _embeds_guidance(content: str) -> bool:
    facts = check_backbone(BackboneSpec.model_validate_json(content))
    return facts is not None and facts.guidance == "embedded"


def family_in(folder: Path, name: str) -> Family:
    """The family that drives the pipeline in a folder; `name`: what the recipe calls it, for the message.

    Raises:
        BackboneError: its model_index.json is missing or damaged, or no family drives its class.
    """
    try:
        kind = read_object(folder, "model_index.json").get("_class_name")
    except Damage as error:
        raise unloadable(name, str(error)) from None
    if isinstance(kind, list):
        code = "one of diffusers' own: code of a model folder is never run"
        raise unfit(name, f"brings a pipeline of its own ({', '.join(map(str, kind))})", code)
    family = family_of(kind)
    if family is None:
        driven = "; ".join(known.TITLE for known in discover_families().values())
        raise unfit(name, f"is a {kind}, which no model family drives", f"one of these: {driven}")
    return family


def check_folder(folder: Path, spec: BackboneSpec, *, is_whole: bool = True) -> ModelFacts:
    """What can be planned on a folder in diffusers format. `is_whole`: what is missing is not still to come.

    Raises:
        BackboneError: a file is missing or damaged, or the model cannot be driven.
    """
    with in_words(spec):
        folder = with_overrides(folder, spec)
    family = family_in(folder, spec.id)
    with in_words(spec):
        facts: ModelFacts = family.check(folder, spec, is_whole)
        check_loras(folder, family, spec)
    return facts


@contextmanager
def in_words(spec: BackboneSpec) -> Iterator[None]:
    """Turn what a family says of a model's files into a `BackboneError` of one sentence."""
    try:
        yield
    except Damage as error:
        raise unloadable(spec.id, str(error), spec.single_file) from None
    except Unfit as error:
        raise unfit(spec.id, error.got, error.expected) from None
    except WrongSize as error:
        raise BackboneError(f"backbone {spec.id!r}: {error}; change backbone.height and backbone.width.") from None

"""What a LoRA file holds, read from its header without torch: which two matrices change which module, and how much.

Three layouts are read. diffusers: `unet.<module>.lora_A.weight`, older `unet.<module>.lora.down.weight` and
`...processor.to_q_lora.down.weight`, the scale in the file's metadata, in `.alpha`, or 1. kohya:
`lora_unet_<module with underscores>.lora_down.weight` with `.alpha`, modules as diffusers or as the original code names
them. peft: `base_model.model.<module>.lora_A.weight`, the scale in `adapter_config.json` beside the file. The change
of a weight is weight * alpha / rank * B A (Hu et al. 2021, arXiv 2106.09685).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.model_files import Damage, read_object
from diffaug_datasets.core.models import ADAPTER_CONFIG, WeightFile
from diffaug_datasets.core.weight_headers import TensorInfo, read_header, read_metadata
from diffaug_datasets.families.parts.original_names import Renaming, row_counts

Shape = tuple[int, ...]
ENDINGS = {  # how a key of a matrix ends -> its side
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".alpha": "alpha",
}
OTHERS = {  # what a key of something else holds -> what that is
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_B.bias": "LoRA with biases",
}
DIFFERENCES = (".diff", ".diff_b")
KOHYA = re.compile(r"lora_(unet|transformer|te[123]?)_(.+)")
ENCODERS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}
PEFT, WRAPPED = "base_model.model.", ("model.diffusion_model.", "diffusion_model.")
DENOISERS = ("unet", "transformer")
OF_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
METADATA = "lora_adapter_metadata"
CONVERT = "read it with diffusers' load_lora_weights and write it again with save_lora_weights"


class Matrices(NamedTuple):
    """The change of one weight of a part: keys of A and B in the file, and which rows of B are meant.

    `scale`: what B A is multiplied with where no key `alpha` states it; `rank`: of the matrices.
    """

    module: str
    a: str
    b: str
    rows: tuple[int, int]
    rank: int
    scale: float
    alpha: str | None


@dataclass
class _Entry:
    """What a file holds of one module, under the name that it has there."""

    part: str | None
    name: str
    underscored: bool
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraFile:
    """The header of a LoRA file and the scales that it states."""

    given: str
    header: Mapping[str, TensorInfo]
    entries: tuple[_Entry, ...]
    scales: "_Scales"


def read_lora(file: WeightFile, parts: tuple[str, ...]) -> LoraFile:
    """What a LoRA file that is on this machine holds; `parts`: of the model's networks, the denoising one first.

    Raises:
        BackboneError: it is no safetensors file, is damaged, holds something else than LoRA, or belongs to a part that
            this model has not.
    """
    path = file.path
    if path is None:
        raise BackboneError(f"{file.key}: {file.given!r} is not on this machine: run `hf download {file.name}` first.")
    try:
        header, metadata = read_header(path), read_metadata(path)
    except ValueError as error:
        raise BackboneError(f"{file.key}: {str(path)!r} {error}: download it again, or name another.") from None
    except OSError as error:
        raise BackboneError(f"{file.key}: {str(path)!r} cannot be read: {error.strerror}.") from None
    entries: dict[tuple[str | None, str], _Entry] = {}
    for key in sorted(header):
        entry, side = _entry(file.given, key, parts)
        entries.setdefault((entry.part, entry.name), entry).keys[side] = key
    kept = tuple(entry for entry in entries.values() if entry.keys.keys() != {"alpha"})
    if not kept:
        raise BackboneError(f"{file.key}: {file.given!r} holds no matrices, expected LoRA.")
    is_peft = any(key.startswith(PEFT) for key in header)
    return LoraFile(file.given, header, kept, _scales(file, metadata, parts[0], is_peft=is_peft))


def matrices(lora: LoraFile, part: str, weights: Mapping[str, Shape], original: Renaming | None) -> list[Matrices]:
    """What the file changes in a part with these weights (module -> shape); an entry that names no part counts where
    the part has its module.

    Raises:
        BackboneError: a module is not there, or its matrices do not make up its weight.
    """
    names = {_bare(name): name for name in weights}
    names |= {_bare(name).replace(".", "_"): name for name in weights}
    made: list[Matrices] = []
    for entry in lora.entries:
        if entry.part not in (part, None):
            continue
        found = _modules(entry, names, original)
        if not found and entry.part is None:
            continue
        if not found:
            raise BackboneError(
                f"backbone.lora: {lora.given!r} holds {_key(entry)}, for which this model's {part} has no weight: it "
                f"was made for another model or is in a layout that is not read; name another, or {CONVERT}."
            )
        made += _checked(lora, entry, found, weights, part)
    return made


def check_fit(
    lora: LoraFile, parts: Mapping[str, Mapping[str, Shape]], originals: Mapping[str, Renaming | None]
) -> None:
    """Whether all that a file holds changes a weight of a model; `parts`: the denoising network first.

    Raises:
        BackboneError: see `matrices`; or no part has a module.
    """
    found = {made.a for part, weights in parts.items() for made in matrices(lora, part, weights, originals.get(part))}
    lost = next((entry for entry in lora.entries if entry.keys.get("A") not in found), None)
    if lost is not None:
        raise BackboneError(
            f"backbone.lora: {lora.given!r} holds {_key(lost)}, for which no network of this model has a weight: it "
            f"was made for another model or is in a layout that is not read; name another, or {CONVERT}."
        )


def _key(entry: _Entry) -> str:
    return min(entry.keys.values())


def _bare(name: str) -> str:
    """Text encoders have their module `text_model` in some files and not in others."""
    return name.removeprefix("text_model.")


def _entry(given: str, key: str, parts: tuple[str, ...]) -> tuple[_Entry, str]:
    """The module that a key belongs to, and which side of it the key is."""
    for other, kind in OTHERS.items():
        if other in key:
            raise BackboneError(f"backbone.lora: {given!r} holds {kind} ({key}), expected plain LoRA: {CONVERT}.")
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if key.endswith(DIFFERENCES):
        raise BackboneError(
            f"backbone.lora: {given!r} holds whole differences of weights ({key}), expected plain LoRA."
        )
    if ending is None:
        raise BackboneError(f"backbone.lora: {given!r} holds {key}, which is none of a LoRA's: name another file.")
    name, side = key.removesuffix(ending), ENDINGS[ending]
    if kohya := KOHYA.fullmatch(name):
        owner = ENCODERS.get(kohya[1], parts[0])
        return _Entry(_known(given, key, owner, parts), _bare_kohya(kohya[2]), underscored=True), side
    head, dot, rest = name.partition(".")
    part: str | None = None
    if dot and head in (*DENOISERS, *ENCODERS.values()):
        part, name = _known(given, key, head, parts), rest
    for wrapped in WRAPPED:
        if name.startswith(wrapped):
            part, name = parts[0], name.removeprefix(wrapped)
    name = name.removeprefix(PEFT)
    if old := re.fullmatch(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)(?:_lora)?", name):
        name = f"{old[1]}.{OF_ATTENTION[old[2]]}"
    return _Entry(part, _bare(name.removesuffix(".lora")), underscored=False), side


def _bare_kohya(name: str) -> str:
    return name.removeprefix("text_model_")


def _known(given: str, key: str, part: str, parts: tuple[str, ...]) -> str:
    if part not in parts:
        raise BackboneError(
            f"backbone.lora: {given!r} holds {key}, and this model has no {part}, only {', '.join(parts)}: it was made "
            "for another family; name another file."
        )
    return part


def _modules(entry: _Entry, names: Mapping[str, str], original: Renaming | None) -> tuple[str, ...]:
    if (own := names.get(entry.name)) is not None:
        return (own,)
    renamed = original(entry.name) if original else ()
    found = [names.get(name) or names.get(name.replace(".", "_")) for name in renamed]
    return tuple(name for name in found if name) if all(found) else ()


def _checked(
    lora: LoraFile, entry: _Entry, modules: tuple[str, ...], weights: Mapping[str, Shape], part: str
) -> list[Matrices]:
    """The matrices of an entry, once they make up the weights of its modules."""
    if not {"A", "B"} <= entry.keys.keys():
        raise BackboneError(f"backbone.lora: {lora.given!r} has {_key(entry)} without its other half: it is damaged.")
    a, b = (lora.header[entry.keys[side]].shape for side in ("A", "B"))
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0] or math.prod(b[2:]) != 1:
        raise BackboneError(
            f"backbone.lora: {lora.given!r} has matrices of shapes {list(a)} and {list(b)} for {entry.name}, expected "
            "one rank in both: the file is damaged."
        )
    sizes, columns = row_counts(modules, b[0], a[1]), a[1:]
    made, begin = [], 0
    for module, rows in zip(modules, sizes, strict=True):
        if weights[module] not in ((rows, *columns), (rows, *columns, 1, 1)):
            raise BackboneError(
                f"backbone.lora: {lora.given!r} changes {module} by {rows} x {' x '.join(map(str, columns))} numbers, "
                f"and this model's {part} has {' x '.join(map(str, weights[module]))} there: it was made for another "
                "model; name one that was made for this."
            )
        scale = lora.scales.of(part, module, a[0])
        made.append(
            Matrices(
                module, entry.keys["A"], entry.keys["B"], (begin, begin + rows), a[0], scale, entry.keys.get("alpha")
            )
        )
        begin += rows
    return made


@dataclass(frozen=True)
class _Scales:
    """Alphas that stand outside the tensors, by part and pattern of a module; without, nothing is scaled."""

    given: str
    configs: Mapping[str, Mapping[str, object]]

    def of(self, part: str, module: str, rank: int) -> float:
        config = self.configs.get(part) or self.configs.get("")
        if config is None:
            return 1.0
        alpha = _patterned(config, "alpha_pattern", module, config.get("lora_alpha", rank))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise BackboneError(f"backbone.lora: {self.given!r} states lora_alpha {alpha!r}, expected a number.")
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _patterned(config: Mapping[str, object], key: str, module: str, usual: object) -> object:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        return usual
    ends = {str(name).lstrip("^"): value for name, value in patterns.items()}
    bare = _bare(module)
    return next((value for name, value in ends.items() if f".{bare}".endswith(f".{_bare(name)}")), usual)


def _scales(file: WeightFile, metadata: Mapping[str, str], denoiser: str, *, is_peft: bool) -> _Scales:
    """What metadata (`unet.lora_alpha`, as diffusers writes it) or a file beside it (peft) say."""
    if METADATA in metadata:
        return _Scales(file.given, _by_part(file, metadata[METADATA], denoiser))
    if not is_peft:
        return _Scales(file.given, {})
    beside = file.settings
    if beside is None:
        raise BackboneError(
            f"backbone.lora: {file.given!r} is in peft's layout, whose scale stands in {ADAPTER_CONFIG} beside it, and "
            "there is none: put it there."
        )
    try:
        config = read_object(Path(beside.parent), ADAPTER_CONFIG)
    except Damage as error:
        raise BackboneError(f"backbone.lora: {file.given!r}: {error}; write it again with peft.") from None
    if config.get("use_dora") or config.get("bias", "none") != "none" or config.get("peft_type", "LORA") != "LORA":
        raise BackboneError(f"backbone.lora: {file.given!r} is more than LoRA by its {ADAPTER_CONFIG}: {CONVERT}.")
    return _Scales(file.given, {"": config})


def _by_part(file: WeightFile, text: str, denoiser: str) -> Mapping[str, Mapping[str, object]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BackboneError(f"backbone.lora: {file.given!r} has garbled metadata ({METADATA}): write it again.")
    found: dict[str, dict[str, object]] = {}
    for key, value in content.items():
        part, _, name = str(key).partition(".")
        found.setdefault(denoiser if part in DENOISERS else part, {})[name] = value
    return found

"""Released embeddings as safetensors. A pickle can run code, so torch's restricted unpickler reads it.

Forms that authors released: {token: tensor} (textual inversion; DA-Fusion's merged classes), the same under
`learned_embeds_dict` beside the classes' names (Diff-Mix, Diff-II), under `string_to_param` (Gal et al., whose files
hold a ParameterDict there), and the weight of one linear map from images to conditions (`emb.weight`, Diffusion
Inversion). Trainers and web UIs write safetensors with the one key `emb_params` and no token at all.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError, one_line
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.models.adapters import LoadedConcepts

MOST_BYTES = 2**30
MOST_VECTORS, MOST_WIDTH, MOST_NAME = 77, 8192, 200
CONDITION_WIDTH = 768
IMAGES_FILE, NAMES_FILE, SINGLE = "image_embeddings.safetensors", "names.json", "tokens"
CODE = re.compile(r"GLOBAL (\S+)")
EXPECTED = "a learned_embeds file is a dictionary from tokens to tensors"
NAMELESS = ("*", "emb_params")  # keys that stand for whatever token the reader chooses
TWO_ENCODERS = {"clip_l", "clip_g"}


@dataclass(frozen=True)
class Released:
    """What a file holds: tokens with rows [n d], with their classes' names if stated; or images' conditions [s d]."""

    tokens: Mapping[str, Float[Tensor, "n d"]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Float[Tensor, "s d"]] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write the safetensors; several tokens also one per file, as `load_textual_inversion` of diffusers wants them.

        Raises:
            BackboneError: a file of that name is there already. Nothing is written then.
        """
        contents = {folder / name: content for name, content in self._contents().items()}
        if taken := [path for path in contents if path.exists()]:
            raise BackboneError(f"{taken[0]}: is there already; give another folder, or remove it first.")
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        return list(contents)

    def _contents(self) -> dict[str, bytes]:
        files: dict[str, Mapping[str, Tensor]] = dict(LoadedConcepts(self.tokens).files())
        files |= {IMAGES_FILE: self.images} if self.images else {}
        if len(self.tokens) > 1:
            singles = enumerate(self.tokens.items())
            files |= {f"{SINGLE}/{i:04d}{_slug(token)}.safetensors": {token: rows} for i, (token, rows) in singles}
        # One metadata key: the order of several is random in safetensors.
        written = {name: save(dict(tensors), metadata={"format": "pt"}) for name, tensors in files.items()}
        names = json.dumps(dict(self.names), indent=1, ensure_ascii=False).encode()
        return written | ({NAMES_FILE: names} if self.names else {})


class Parameters:
    """What a pickled `torch.nn.ParameterDict` is read as: its attributes, and nothing that torch does with them."""


def read_released(path: Path, token: str | None = None) -> Released:
    """What a pickle or safetensors file holds; no code in it is run, and only tensors of a token's shape are taken.

    `token`: the name of the file's one token; else its own, or, where it has none, the file's name in angle brackets.

    Raises:
        BackboneError: there is no such file, it holds more than tensors, or tensors of another kind; or a token is
            named for a file of several.
    """
    _check_size(path)
    content = _loaded(path) if path.suffix == ".safetensors" else _unpickled(path)
    if isinstance(content, Mapping) and isinstance(content.get("emb.weight"), Tensor):
        return Released(images=_conditions(path, content["emb.weight"]))
    pairs = _entries(content)
    if pairs.keys() == TWO_ENCODERS:
        raise BackboneError(
            f"{path}: is an embedding of SDXL (clip_l and clip_g), which has two text encoders; {EXPECTED}."
        )
    if not pairs:
        raise BackboneError(f"{path}: holds no tensor by name; {EXPECTED}.")
    if token is not None and len(pairs) > 1:
        raise BackboneError(f"{path}: holds {len(pairs)} tokens with names of their own, so drop --token {token}.")
    if len(pairs) == 1:
        name, rows = next(iter(pairs.items()))
        pairs = {token or (f"<{path.stem}>" if name in NAMELESS else name): rows}
    tokens = {_name(path, name): _rows(path, name, rows) for name, rows in pairs.items()}
    if len(widths := {rows.shape[1] for rows in tokens.values()}) > 1:
        raise BackboneError(f"{path}: its tensors have widths {sorted(widths)}; the tokens of a file are of one model.")
    return Released(tokens, _names(content, tokens))


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise BackboneError(f"{path}: no such file; give a learned_embeds file that authors released.")
    sizes = [path.stat().st_size]
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                sizes.append(sum(item.file_size for item in archive.infolist()))
        except (zipfile.BadZipFile, ValueError) as error:
            raise BackboneError(f"{path}: is damaged ({error}); download it again.") from None
    if max(sizes) > MOST_BYTES:
        raise BackboneError(f"{path}: unpacks to {max(sizes):,} bytes, expected at most {MOST_BYTES:,}; {EXPECTED}.")


def _loaded(path: Path) -> Any:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        reason = one_line(error, 100)
        raise BackboneError(f"{path}: cannot be read as safetensors ({reason}); download it again.") from None


def _unpickled(path: Path) -> Any:
    stand_in = torch.serialization.safe_globals([(Parameters, "torch.nn.modules.container.ParameterDict")])
    try:
        with warnings.catch_warnings(action="ignore"), stand_in:  # warnings about old ways to write a pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        text = " ".join(str(error).split())
        if code := CODE.search(text):
            sentence = f"holds {code[1]} beside tensors, which might run code, so it is not opened; {EXPECTED}"
        else:
            reason = text.rpartition("WeightsUnpickler error: ")[2].split(". ")[0].split(" Check ")[0]
            sentence = f"cannot be read as tensors ({type(error).__name__}: {reason[:100]}); {EXPECTED}"
        raise BackboneError(f"{path}: {sentence}.") from None


def _entries(content: Any) -> Mapping[Any, Any]:
    """Token -> tensor, wherever the form keeps them; everything else a file says is left out."""
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Parameters):
        held = vars(content["string_to_param"]).get("_parameters")
        content = {**content, "string_to_param": held if isinstance(held, Mapping) else {}}
    if isinstance(content, Mapping) and isinstance(content.get("learned_embeds_dict"), Mapping):
        content = content["learned_embeds_dict"]
    elif isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        held = content["string_to_param"]
        content = {content["name"]: held["*"]} if set(held) == {"*"} and content.get("name") else held
    pairs = content if isinstance(content, Mapping) else {}
    return {name: value for name, value in pairs.items() if isinstance(value, Tensor)}


def _name(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MOST_NAME:
        raise BackboneError(f"{path}: got a token named {str(name)[:40]!r}, expected a short printable text.")
    if name == "__metadata__":
        raise BackboneError(f"{path}: a token cannot be named __metadata__, which safetensors keeps for itself.")
    return name


def _rows(path: Path, name: Any, tensor: Tensor) -> Float[Tensor, "n d"]:
    rows = tensor.detach()
    shape = tuple(rows.shape)
    plain = rows.layout == torch.strided and rows.device.type == "cpu" and rows.is_floating_point()
    fits = len(shape) in (1, 2) and 1 <= shape[-1] <= MOST_WIDTH and 1 <= rows.numel() // shape[-1] <= MOST_VECTORS
    if not plain or not fits:
        got = f"shape {shape} and dtype {str(rows.dtype).removeprefix('torch.')}"
        raise BackboneError(f"{path}: {name!r} has {got}, expected numbers of shape (d,) or (n, d), n up to 77.")
    vectors = rows.reshape(-1, shape[-1]).float().clone()
    if not bool(torch.isfinite(vectors).all()):
        raise BackboneError(f"{path}: {name!r} holds values that are not finite; the file is damaged.")
    return vectors


def _conditions(path: Path, weight: Tensor) -> dict[str, Float[Tensor, "s d"]]:
    """Column j of the map, [s 768]: the condition of image j of the authors' group."""
    vectors = weight.shape[0] // CONDITION_WIDTH if weight.ndim == 2 else 0
    if not 1 <= vectors <= MOST_VECTORS or weight.shape[0] % CONDITION_WIDTH or weight.numel() > MOST_BYTES // 4:
        raise BackboneError(f"{path}: emb.weight has shape {tuple(weight.shape)}, expected (n times 768, images).")
    columns = weight.detach().T.reshape(-1, vectors, CONDITION_WIDTH)
    return {str(j): _rows(path, f"emb.weight, image {j}", rows) for j, rows in enumerate(columns)}


def _names(content: Any, tokens: Mapping[str, Tensor]) -> dict[str, str]:
    """Token -> class name, where the file has one."""
    names = content.get("placeholder2name") if isinstance(content, Mapping) else None
    known = names if isinstance(names, Mapping) else {}
    return {token: known[token] for token in tokens if isinstance(known.get(token), str)}


def _slug(token: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", token).strip("-")[:40]
    return f"-{plain}" if plain else ""

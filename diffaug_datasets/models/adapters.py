"""Released embeddings as safetensors. A pickle can run code, so torch's restricted unpickler reads it.

Forms that authors released: {token: tensor} (textual inversion; DA-Fusion's merged classes), the same under
`learned_embeds_dict` beside the classes' names (Diff-Mix, Diff-II), under `string_to_param` (Gal et al., whose files
hold a ParameterDict there), and the weight of one linear map from images to conditions (`emb.weight`, Diffusion
Inversion). Trainers and web UIs write safetensors with the one key `emb_params` and no token at all.

What concept learning leaves: token embeddings and a LoRA, in files that plain diffusers loads.

LoRA on the U-Net's attention projections (Hu et al., arXiv 2106.09685): attach to train, fuse to use.

Placeholder tokens: rows that stand beside a frozen embedding table, and the words that they start from.
"""

import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.learning import ConceptConfig

EMBEDDINGS_FILE = "learned_embeds.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoadedConcepts:
    """`tokens`: name, such as `<class_3>`, -> rows [n d]; `lora`: diffusers' key -> matrix, empty = none."""

    tokens: Mapping[str, Tensor]
    lora: Mapping[str, Tensor] = field(default_factory=dict)

    def files(self) -> dict[str, dict[str, Tensor]]:
        """File name -> its tensors, on the CPU. A file without tensors is left out.

        `pipe.load_lora_weights(folder)` reads the LoRA. diffusers takes one token a dictionary:
        `for token, rows in load_file(path).items(): pipe.load_textual_inversion({token: rows})`.
        """
        both = {EMBEDDINGS_FILE: self.tokens, LORA_FILE: self.lora}
        return {file: {k: v.cpu().contiguous() for k, v in part.items()} for file, part in both.items() if part}

    def save(self, folder: Path) -> None:
        """Write the files, each complete or not at all; the same tensors give the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        for file, tensors in self.files().items():
            # One metadata key: the order of several is random in safetensors.
            write_bytes(folder / file, save(tensors, metadata={"format": "pt"}))


def load_concepts(folder: Path) -> LoadedConcepts:
    """The concepts in a folder.

    Raises:
        BackboneError: it holds none, or the files are damaged.
    """
    if not (folder / EMBEDDINGS_FILE).is_file():
        raise BackboneError(f"{str(folder)!r} holds no {EMBEDDINGS_FILE}: learn the concepts with `diffaug fit RUN`.")
    try:
        tokens = load_file(folder / EMBEDDINGS_FILE)
        lora = load_file(folder / LORA_FILE) if (folder / LORA_FILE).is_file() else {}
    except SafetensorError as error:
        sentence = f"concepts in {str(folder)!r} are damaged ({error}): delete the folder and fit again."
        raise BackboneError(sentence) from error
    return LoadedConcepts(tokens, lora)


# All attention processors, self and cross, as in the code of Diff-Mix and Diff-II.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
KEY = re.compile(r"unet\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def attach(unet: UNet2DConditionModel, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Put trainable float32 LoRA matrices (alpha = rank, no bias, no dropout) beside the frozen projections.

    Returns them by the key they are stored under. A starts uniform as in peft, drawn from `seed` and its own key
    alone; B starts at zero, so nothing changes yet.
    """
    from peft import LoraConfig  # it takes a second to import, and only training needs it

    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    matrices: dict[str, nn.Parameter] = {}
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            key = f"unet.{name.replace('.default.', '.').replace('.base_layer', '')}"
            parameter.data = _initial(parameter, key, seed).to(parameter.device)
            matrices[key] = parameter
    return matrices


def _initial(matrix: Tensor, key: str, seed: int) -> Float[Tensor, "rows columns"]:
    if ".lora_B." in key:
        return torch.zeros(matrix.shape)
    bound = 1 / math.sqrt(matrix.shape[1])
    generator = torch.Generator().manual_seed(uint63(f"{seed}|concepts|lora|{key}"))
    return torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator)


def detach(unet: UNet2DConditionModel) -> None:
    """Take the matrices away; the projections are the modules that they were before."""
    unet.unload_lora()


def fuse(unet: UNet2DConditionModel, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set every projection to W + B A, added in float32 on the CPU; returns the original weights by module name.

    Raises:
        BackboneError: a matrix belongs to no projection of this U-Net, or has another shape. Nothing is changed then.
    """
    fused = {module: _fused(unet, module, a, b) for module, (a, b) in _pairs(lora).items()}
    originals = {module: unet.get_submodule(module).weight.data for module in fused}
    for module, weight in fused.items():
        unet.get_submodule(module).weight.data = weight
    return originals


def unfuse(unet: UNet2DConditionModel, originals: Mapping[str, Tensor]) -> None:
    """Put back the weights that `fuse` returned: the same tensors, so the same bits."""
    for module, weight in originals.items():
        unet.get_submodule(module).weight.data = weight


def _pairs(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, matrix in lora.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise BackboneError(f"LoRA key {key!r} is unknown, expected `unet.<module>.lora_A.weight` or lora_B.")
        sides.setdefault(match["module"], {})[match["side"]] = matrix
    if alone := [module for module, pair in sides.items() if len(pair) < 2]:
        raise BackboneError(f"LoRA of {alone[0]!r} lacks its A or its B: the file is damaged; learn it again.")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _fused(unet: UNet2DConditionModel, module: str, a: Tensor, b: Tensor) -> Tensor:
    try:
        weight: Tensor = unet.get_submodule(module).weight.data
    except AttributeError:
        sentence = f"LoRA is for {module!r}, which this U-Net has not: use the backbone it was learned on."
        raise BackboneError(sentence) from None
    if weight.shape != (b.shape[0], a.shape[1]):
        got, expected = (b.shape[0], a.shape[1]), tuple(weight.shape)
        sentence = f"LoRA of {module!r} has shape {got}, expected {expected}: use the backbone it was learned on."
        raise BackboneError(sentence)
    change = b.float().cpu() @ a.float().cpu()
    return (weight.float().cpu() + change).to(weight.device, weight.dtype)


# The authors' start in SD 1.5: a rare sub-word of CLIP's vocabulary.
RARE_TOKEN = 42_170
CLIP_VOCABULARY = 49_408


class PlaceholderEmbedding(nn.Module):
    """A token embedding whose ids from V on come from `rows` [n d]; the V rows of the table are never written.

    Departs from the authors' code, which trains the whole table and restores the other rows after every step.
    """

    def __init__(self, table: nn.Embedding, rows: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.to(table.weight.device, table.weight.dtype).clone(), requires_grad=False)

    @property
    def weight(self) -> Float[Tensor, "V d"]:
        """The frozen table, which transformers asks for its dtype."""
        return self.table.weight

    def forward(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Embeddings of ids in [0, V + n)."""
        size = self.table.num_embeddings
        known = self.table(ids.clamp(max=size - 1))
        learned = F.embedding((ids - size).clamp(min=0), self.rows)
        return torch.where((ids >= size)[..., None], learned, known)


def sub_tokens(token: str, vectors: int) -> list[str]:
    """The vocabulary entries of a token with several vectors, named as diffusers names them: `<a>`, `<a>_1`, ..."""
    return [token, *(f"{token}_{i}" for i in range(1, vectors))]


def spelled_out(text: str, tokens: Mapping[str, int]) -> str:
    """The text with every token (name -> number of vectors) replaced by its sub-tokens."""
    for token, vectors in tokens.items():
        text = text.replace(token, " ".join(sub_tokens(token, vectors)))
    return text


def initial_rows(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, cfg: ConceptConfig, name: str, metaclass: str
) -> Float[Tensor, "n d"]:
    """The start of a class's vectors, all alike: a vocabulary row, or the mean over a phrase's tokens.

    Raises:
        BackboneError: the id is outside the vocabulary, or the phrase has no token.
    """
    table = text_encoder.get_input_embeddings().weight.detach().float()
    ids = _initial_ids(tokenizer, len(table), starting_point(text_encoder, cfg, metaclass), name, metaclass)
    row: Tensor = table[ids].mean(0, keepdim=True)
    return row.repeat(cfg.tokens_per_class, 1).cpu()


def starting_point(text_encoder: CLIPTextModel, cfg: ConceptConfig, metaclass: str) -> int | str:
    """The vocabulary id or phrase that tokens start from, `auto` decided: the same for all classes, as the authors'."""
    if cfg.init != "auto":
        return cfg.init
    return RARE_TOKEN if text_encoder.config.vocab_size == CLIP_VOCABULARY else metaclass or "thing"


def _initial_ids(tokenizer: CLIPTokenizer, size: int, start: int | str, name: str, metaclass: str) -> list[int]:
    if isinstance(start, int):
        if start not in range(size):
            limits = f"this model has {size} tokens: 0 to {size - 1}"
            raise BackboneError(f"concepts.init: got vocabulary id {start}, but {limits}.")
        return [start]
    phrase = start.replace("{name}", name).replace("{metaclass}", metaclass)
    ids: list[int] = tokenizer(phrase, add_special_tokens=False).input_ids
    if not ids:
        sentence = f"concepts.init: {start!r} gives no token for class {name!r}: name a word or a vocabulary id."
        raise BackboneError(sentence)
    return ids


MOST_BYTES = 2**30
MOST_VECTORS, MOST_WIDTH, MOST_NAME = 77, 8192, 200
CONDITION_WIDTH = 768
IMAGES_FILE, NAMES_FILE, SINGLE = "image_embeddings.safetensors", "names.json", "tokens"
CODE = re.compile(r"GLOBAL (\S+)")
KINDS = "a learned_embeds file is a dictionary from tokens to tensors"
NAMELESS = ("*", "emb_params")  # keys that stand for whatever token the reader chooses
TWO_ENCODERS = {"clip_l", "clip_g"}


@dataclass(frozen=True)
class Released:
    """What a file holds: tokens with rows [n d] and, where told, their classes' names; or images' conditions [s d]."""

    tokens: Mapping[str, Float[Tensor, "n d"]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Float[Tensor, "s d"]] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write the safetensors; several tokens also one a file, as `load_textual_inversion` of diffusers wants them.

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
            f"{path}: is an embedding of SDXL (clip_l and clip_g), which has two text encoders; {KINDS}."
        )
    if not pairs:
        raise BackboneError(f"{path}: holds no tensor by name; {KINDS}.")
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
        raise BackboneError(f"{path}: unpacks to {max(sizes):,} bytes, expected at most {MOST_BYTES:,}; {KINDS}.")


def _loaded(path: Path) -> Any:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise BackboneError(f"{path}: cannot be read as safetensors ({reason}); download it again.") from None


def _unpickled(path: Path) -> Any:
    stand_in = torch.serialization.safe_globals([(Parameters, "torch.nn.modules.container.ParameterDict")])
    try:
        with warnings.catch_warnings(action="ignore"), stand_in:  # warnings about old ways to write a pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes lead to
        text = " ".join(str(error).split())
        if code := CODE.search(text):
            sentence = f"holds {code[1]} beside tensors, which might run code, so it is not opened; {KINDS}"
        else:
            reason = text.rpartition("WeightsUnpickler error: ")[2].split(". ")[0].split(" Check ")[0]
            sentence = f"cannot be read as tensors ({type(error).__name__}: {reason[:100]}); {KINDS}"
        raise BackboneError(f"{path}: {sentence}.") from None


def _entries(content: Any) -> Mapping[Any, Any]:
    """Token -> tensor, wherever the form keeps them; everything else a file says is left out."""
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Parameters):
        held = vars(content["string_to_param"]).get("_parameters")
        content = {**content, "string_to_param": held if isinstance(held, Mapping) else {}}
    if isinstance(content, Mapping) and isinstance(content.get("learned_embeds_dict"), Mapping):
        content = content["learned_embeds_dict"]
    elif isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        found = content["string_to_param"]
        content = {content["name"]: found["*"]} if set(found) == {"*"} and content.get("name") else found
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
    found = rows.reshape(-1, shape[-1]).float().clone()
    if not bool(torch.isfinite(found).all()):
        raise BackboneError(f"{path}: {name!r} holds values that are not finite; the file is damaged.")
    return found


def _conditions(path: Path, weight: Tensor) -> dict[str, Float[Tensor, "s d"]]:
    """Column j of the map, [s 768]: the condition of image j of the authors' group."""
    vectors = weight.shape[0] // CONDITION_WIDTH if weight.ndim == 2 else 0
    if not 1 <= vectors <= MOST_VECTORS or weight.shape[0] % CONDITION_WIDTH or weight.numel() > MOST_BYTES // 4:
        raise BackboneError(f"{path}: emb.weight has shape {tuple(weight.shape)}, expected (n times 768, images).")
    columns = weight.detach().T.reshape(-1, vectors, CONDITION_WIDTH)
    return {str(j): _rows(path, f"emb.weight, image {j}", rows) for j, rows in enumerate(columns)}


def _names(content: Any, tokens: Mapping[str, Tensor]) -> dict[str, str]:
    """Token -> class name, where the file tells it."""
    told = content.get("placeholder2name") if isinstance(content, Mapping) else None
    known = told if isinstance(told, Mapping) else {}
    return {token: known[token] for token in tokens if isinstance(known.get(token), str)}


def _slug(token: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", token).strip("-")[:40]
    return f"-{plain}" if plain else ""

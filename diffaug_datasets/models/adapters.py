"""What concept learning puts into a diffusion model: rows beside its token table, and LoRA beside its attention.

`LoadedConcepts` are the two as files that plain diffusers loads. `attach` puts LoRA matrices (Hu et al., arXiv
2106.09685) beside the network's projections to be trained, `fuse` adds learned ones into them to be used.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.files import write_bytes
from diffaug_datasets.core.identity import uint63
from diffaug_datasets.core.learning import ConceptConfig

EMBEDDINGS_FILE = "learned_embeds.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
# All attention processors, self and cross, as in the code of Diff-Mix and Diff-II.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
KEY = re.compile(r"(?P<part>[a-z_0-9]+)\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# The authors' start in SD 1.5: a rare sub-word of CLIP's vocabulary.
RARE_TOKEN = 42_170
CLIP_VOCABULARY = 49_408


@dataclass(frozen=True)
class LoadedConcepts:
    """`tokens`: name, such as `<class_3>`, -> rows [n d]; `lora`: diffusers' key -> matrix, empty = none."""

    tokens: Mapping[str, Tensor]
    lora: Mapping[str, Tensor] = field(default_factory=dict)

    def files(self) -> dict[str, dict[str, Tensor]]:
        """File name -> its tensors, on the CPU. A file without tensors is left out.

        `pipe.load_lora_weights(folder)` reads the LoRA. diffusers takes one token per dictionary:
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


def load_concepts(folder: Path, files: Mapping[str, Path] | None = None) -> LoadedConcepts:
    """The concepts in a folder; `files`: where its files lie, if they are called otherwise there.

    Raises:
        BackboneError: it holds none, or the files are damaged.
    """
    known = files or {}
    embeddings, matrices = (known.get(name, folder / name) for name in (EMBEDDINGS_FILE, LORA_FILE))
    if not embeddings.is_file():
        raise BackboneError(f"{str(folder)!r} holds no {EMBEDDINGS_FILE}: learn the concepts with `diffaug fit RUN`.")
    try:
        tokens = load_file(embeddings)
        lora = load_file(matrices) if matrices.is_file() else {}
    except SafetensorError as error:
        sentence = f"concepts in {str(folder)!r} are damaged ({error}): delete the folder and fit again."
        raise BackboneError(sentence) from error
    return LoadedConcepts(tokens, lora)


def attach(
    network: Any,
    rank: int,
    seed: int,
    start: Literal["gaussian", "uniform"] = "gaussian",
    prefix: str = "unet",
    targets: Sequence[str] = TARGETS,
) -> dict[str, nn.Parameter]:
    """Put trainable float32 LoRA matrices (alpha = rank, no bias, no dropout) beside the frozen projections.

    `prefix`, `targets`: a family's `LORA_PREFIX` and `LORA_TARGETS`. Returns them by the key they are stored under.
    A is drawn from `seed` and its own key alone: `gaussian`, normal with
    standard deviation 1/rank, as peft's `init_lora_weights="gaussian"` and the LoRA layers of diffusers before
    it used peft; `uniform`, within 1/sqrt(columns), as peft's default. B starts at zero, so nothing changes yet.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second to import, and only training needs it

    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
        if hasattr(network, "add_adapter"):
            network.add_adapter(config)
        else:  # of a class to which diffusers gives no adapters, as PixArt's transformer
            inject_adapter_in_model(config, network, "default")
    matrices: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            key = f"{prefix}.{name.replace('.default.', '.').replace('.base_layer', '')}"
            parameter.data = initial_matrix(parameter.shape, key, seed, start).to(parameter.device)
            matrices[key] = parameter
    return matrices


def initial_matrix(shape: torch.Size, key: str, seed: int, start: str) -> Float[Tensor, "rows columns"]:
    """The start of a LoRA matrix of that key, as `attach` says."""
    if ".lora_B." in key:
        return torch.zeros(shape)
    rank, columns = shape
    generator = torch.Generator().manual_seed(uint63(f"{seed}|concepts|lora|{key}"))
    if start == "gaussian":
        return torch.empty(shape).normal_(0, 1 / rank, generator=generator)
    bound = 1 / math.sqrt(columns)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def detach(network: Any) -> None:
    """Take the matrices away; the projections are the modules that they were before."""
    if hasattr(network, "unload_lora"):
        network.unload_lora()
        return
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(network)
    del network.peft_config


def fuse(network: nn.Module, lora: Mapping[str, Tensor], prefix: str = "unet") -> dict[str, Tensor]:
    """Set every projection to W + B A, added in float32 on the CPU; returns the original weights by module name.

    Raises:
        BackboneError: a matrix belongs to no projection of this network, or has another shape. Nothing is changed then.
    """
    fused = {module: _fused(network, module, a, b) for module, (a, b) in _pairs(lora, prefix).items()}
    originals: dict[str, Tensor] = {module: _weight(network, module).data for module in fused}
    for module, weight in fused.items():
        _weight(network, module).data = weight
    return originals


def unfuse(network: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Put back the weights that `fuse` returned: the same tensors, so the same bits."""
    for module, weight in originals.items():
        _weight(network, module).data = weight


def _pairs(lora: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, matrix in lora.items():
        match = KEY.fullmatch(key)
        if match is None or match["part"] != prefix:
            raise BackboneError(f"LoRA key {key!r} is unknown, expected `{prefix}.<module>.lora_A.weight` or lora_B.")
        sides.setdefault(match["module"], {})[match["side"]] = matrix
    if alone := [module for module, pair in sides.items() if len(pair) < 2]:
        raise BackboneError(f"LoRA of {alone[0]!r} lacks its A or its B: the file is damaged; learn it again.")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _weight(network: nn.Module, module: str) -> nn.Parameter:
    parameter: nn.Parameter = network.get_submodule(module).weight  # type: ignore[assignment]
    return parameter


def _fused(network: nn.Module, module: str, a: Tensor, b: Tensor) -> Tensor:
    try:
        weight = _weight(network, module).data
    except AttributeError:
        sentence = f"LoRA is for {module!r}, which this network has not: use the backbone it was learned on."
        raise BackboneError(sentence) from None
    if weight.shape != (b.shape[0], a.shape[1]):
        got, expected = (b.shape[0], a.shape[1]), tuple(weight.shape)
        sentence = f"LoRA of {module!r} has shape {got}, expected {expected}: use the backbone it was learned on."
        raise BackboneError(sentence)
    change = b.float().cpu() @ a.float().cpu()
    return (weight.float().cpu() + change).to(weight.device, weight.dtype)


def initial_rows(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
    cfg: ConceptConfig,
    name: str,
    metaclass: str,
) -> Float[Tensor, "n d"]:
    """The start of a class's vectors, all alike: a vocabulary row, or the mean over a phrase's tokens.

    Raises:
        BackboneError: the id is outside the vocabulary, or the phrase has no token.
    """
    table = text_encoder.get_input_embeddings().weight.detach().float()
    ids = _initial_ids(tokenizer, len(table), starting_point(text_encoder, cfg, metaclass), name, metaclass)
    row: Tensor = table[ids].mean(0, keepdim=True)
    return row.repeat(cfg.tokens_per_class, 1).cpu()


def starting_point(
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection, cfg: ConceptConfig, metaclass: str
) -> int | str:
    """The vocabulary id or phrase that tokens start from, `auto` decided: the same for all classes, as the authors'."""
    if cfg.init != "auto":
        return cfg.init
    return RARE_TOKEN if text_encoder.config.vocab_size == CLIP_VOCABULARY else metaclass or "thing"


RARE_LETTERS = "bcdfghjklmnpqrstvwxz"


def word_row(cfg: ConceptConfig, label: int, name: str, metaclass: str) -> Tensor:
    """The words that a class's token stands for where no text encoder takes tokens, as bytes of UTF-8 [n], uint8: a
    rare one and the class's name, or what `cfg.init` says instead of the name.

    The rare word is the class's number in consonants, so no two classes share one (DreamBooth, Ruiz et al. 2022, arXiv
    2208.12242, section 4.1, looks rare ones up in a vocabulary).

    Raises:
        BackboneError: `cfg.init` is a vocabulary id, of which a model that reads words has no use.
    """
    if isinstance(cfg.init, int):
        raise BackboneError(f"concepts.init: got vocabulary id {cfg.init}, but this model reads words: set it to auto.")
    base, number, letters = len(RARE_LETTERS), label, ""
    while number or len(letters) < 3:
        letters, number = RARE_LETTERS[number % base] + letters, number // base
    phrase = "{name}" if cfg.init == "auto" else cfg.init
    words = f"{letters} {phrase.replace('{name}', name).replace('{metaclass}', metaclass)}"
    return torch.tensor(list(" ".join(words.split()).encode("utf-8")), dtype=torch.uint8)


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

"""Placeholder tokens: rows that stand beside a frozen embedding table, and the words that they start from."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from diffaug_datasets.core.concept_config import ConceptConfig
from diffaug_datasets.core.errors import BackboneError

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

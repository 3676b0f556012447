"""CLIP's side of a pipeline: a tokenizer and a text encoder, with or without learned tokens.

`PlaceholderEmbedding` holds the rows of new tokens while the table stays frozen (Textual Inversion, Gal et al., arXiv
2208.01618).
"""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.families.parts.driven import TextSide

PLACEHOLDER = re.compile(r"<class_\d+>")


class PromptEncoder(TextSide):
    """Tokenizer and text encoder of a pipeline, with or without learned tokens."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel | CLIPTextModelWithProjection) -> None:
        super().__init__()
        self._plain_tokenizer = self._tokenizer = tokenizer
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.encoders = ((tokenizer, text_encoder),)
        self._table = text_encoder.get_input_embeddings()
        self._has_mask = bool(text_encoder.config.to_dict().get("use_attention_mask"))
        self._tokens: dict[str, int] = {}
        self._learned_ids: dict[int, int] = {}
        self._has_warned = False

    @property
    def length(self) -> int:
        """Tokens per prompt, start and end included."""
        positions: int = self.text_encoder.config.max_position_embeddings
        return min(int(self._plain_tokenizer.model_max_length), positions)

    def uninstall(self) -> None:
        """Bring the original tokenizer and embedding back: the same objects, so the same bits. Forgets all prompts."""
        self.forget()
        self._tokens, self._learned_ids, self._tokenizer = {}, {}, self._plain_tokenizer
        self.text_encoder.set_input_embeddings(self._table)

    def install(self, tokens: Mapping[str, Float[Tensor, "n d"]]) -> tuple[nn.Parameter, ...]:
        """Put these learned tokens beside the plain ones; returns the one parameter whose rows hold them, in order.

        Raises:
            BackboneError: a token's width is not the text encoder's.
        """
        self.uninstall()
        embedding = PlaceholderEmbedding(self._table, torch.cat([self._checked(n, r) for n, r in tokens.items()]))
        self._tokens = {name: len(rows) for name, rows in tokens.items()}
        names = [sub for name, rows in tokens.items() for sub in sub_tokens(name, len(rows))]
        self._tokenizer = copy.deepcopy(self._plain_tokenizer)
        self._tokenizer.add_tokens(names)
        # A table may be longer than its tokenizer, so the tokenizer's new ids are not the rows' places.
        self._learned_ids = {
            self._tokenizer.convert_tokens_to_ids(name): self._table.num_embeddings + i for i, name in enumerate(names)
        }
        self.text_encoder.set_input_embeddings(embedding)
        return (embedding.rows,)

    def _checked(self, token: str, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        width = self._table.embedding_dim
        if rows.ndim != 2 or rows.shape[1] != width:
            raise BackboneError(
                f"concept {token} has embeddings of shape {tuple(rows.shape)}, expected [n, {width}]: it was learned "
                "on another backbone; use that one, or learn the concepts again."
            )
        return rows

    def condition(self, text: str) -> Float[Tensor, "s d"]:
        """The condition of a text, float32, encoded at batch 1.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        return self.encode(self.ids(text)[None])[0]

    def ids(self, text: str) -> Int[Tensor, " s"]:
        """Token ids of a text, padded or cut (with one warning per backbone) to `length`. Raises as `__call__`."""
        if unknown := set(PLACEHOLDER.findall(text)) - self._tokens.keys():
            sentence = f"prompt {text!r} names {min(unknown)}, which is not learned: install its concepts first."
            raise BackboneError(sentence)
        read: Sequence[int] = self._tokenizer(spelled_out(text, self._tokens), verbose=False).input_ids
        whole = [self._learned_ids.get(i, i) for i in read]
        if len(whole) > self.length and not self._has_warned:
            self._has_warned = True
            counts = f"has {len(whole)} tokens, {self.length} are read"
            warnings.warn(f"prompt {text!r} {counts}; this and longer prompts lose their end", stacklevel=3)
        cut = [*whole[: self.length - 1], whole[-1]] if len(whole) > self.length else whole
        return torch.tensor(cut + [self._padding] * (self.length - len(cut)), device=self._table.weight.device)

    @property
    def _padding(self) -> int:
        padding: int | None = self._plain_tokenizer.pad_token_id
        return 0 if padding is None else padding

    def encode(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Last hidden states of token ids, float32; differentiable in the learned rows."""
        mask = torch.ones_like(ids) if self._has_mask else None
        states: Tensor = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


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

"""Prompts as conditions: every text is encoded alone, once, so that it never depends on the texts beside it."""

import copy
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.models.textual_inversion import PlaceholderEmbedding, spelled_out, sub_tokens

KEPT_PROMPTS = 1024
PLACEHOLDER = re.compile(r"<class_\d+>")


class PromptEncoder:
    """Tokenizer and text encoder of a pipeline, with or without learned tokens."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self._plain_tokenizer = self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._table = text_encoder.get_input_embeddings()
        self._tokens: dict[str, int] = {}
        self._learned_ids: dict[int, int] = {}
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._has_warned = False

    @property
    def length(self) -> int:
        """Tokens a prompt, start and end included."""
        positions: int = self._text_encoder.config.max_position_embeddings
        return min(int(self._plain_tokenizer.model_max_length), positions)

    def uninstall(self) -> None:
        """Bring the original tokenizer and embedding back: the same objects, so the same bits. Forgets all prompts."""
        self._cache.clear()
        self._tokens, self._learned_ids, self._tokenizer = {}, {}, self._plain_tokenizer
        self._text_encoder.set_input_embeddings(self._table)

    def install(self, tokens: Mapping[str, Float[Tensor, "n d"]]) -> PlaceholderEmbedding:
        """Put these learned tokens beside the plain ones; returns the embedding whose `rows` hold them, in order.

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
        self._text_encoder.set_input_embeddings(embedding)
        return embedding

    def _checked(self, token: str, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        width = self._table.embedding_dim
        if rows.ndim != 2 or rows.shape[1] != width:
            raise BackboneError(
                f"concept {token} has embeddings of shape {tuple(rows.shape)}, expected [n, {width}]: it was learned "
                "on another backbone; use that one, or learn the concepts again."
            )
        return rows

    def __call__(self, text: str) -> Float[Tensor, "s d"]:
        """The condition of a text, float32, encoded at batch 1; the last few are remembered.

        Raises:
            BackboneError: the text names a class token that is not installed.
        """
        if text not in self._cache:
            with torch.no_grad():
                self._cache[text] = self.encode(self.ids(text)[None])[0]
            while len(self._cache) > KEPT_PROMPTS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(text)
        return self._cache[text]

    def ids(self, text: str) -> Int[Tensor, " s"]:
        """Token ids of a text, padded or cut (with one warning a backbone) to `length`. Raises as `__call__`."""
        if unknown := set(PLACEHOLDER.findall(text)) - self._tokens.keys():
            told = f"prompt {text!r} names {min(unknown)}, which is not learned: install its concepts first."
            raise BackboneError(told)
        read: Sequence[int] = self._tokenizer(spelled_out(text, self._tokens), verbose=False).input_ids
        whole = [self._learned_ids.get(i, i) for i in read]
        if len(whole) > self.length:
            self._warn(text, len(whole))
        cut = [*whole[: self.length - 1], whole[-1]] if len(whole) > self.length else whole
        return torch.tensor(cut + [self._padding] * (self.length - len(cut)), device=self._table.weight.device)

    @property
    def _padding(self) -> int:
        padding: int | None = self._plain_tokenizer.pad_token_id
        return 0 if padding is None else padding

    def _warn(self, text: str, tokens: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            counts = f"has {tokens} tokens, {self.length} are read"
            told = f"prompt {text!r} {counts}; this and longer prompts lose their end"
            warnings.warn(told, stacklevel=4)

    def encode(self, ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """Last hidden states of token ids, float32; differentiable in the learned rows."""
        mask = torch.ones_like(ids) if getattr(self._text_encoder.config, "use_attention_mask", False) else None
        states: Tensor = self._text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

"""Two CLIP text encoders side by side, as Stable Diffusion XL has them: states of both, and one pooled text."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.families.parts.clip_text import PromptEncoder
from diffaug_datasets.families.parts.driven import TextSide
from diffaug_datasets.numerics.conditions import Condition


class Penultimate(PromptEncoder):
    """A CLIP text encoder of whose states those before the last layer count."""

    def states(self, ids: Int[Tensor, "b s"]) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s d"]]:
        """The states before the last layer, and the normalised ones after it."""
        found = self.text_encoder(input_ids=ids, output_hidden_states=True)
        return found.hidden_states[-2], found.last_hidden_state

    def end_of(self, ids: Int[Tensor, "b s"]) -> Int[Tensor, " b"]:
        """Where each text ends: the place of its first end token, also behind learned tokens of higher numbers."""
        ends: Tensor = (ids == self.tokenizer.eos_token_id).int().argmax(dim=-1)
        return ends


class PairEncoder(TextSide):
    """Texts through both encoders: `text` [s d1 + d2], and `pooled` [p], the second one's projection of the text's end.

    Follows diffusers' `StableDiffusionXLPipeline.encode_prompt`. An empty negative prompt is zeros where the model says
    so (`force_zeros_for_empty_prompt`). Rows of a learned token are those of both encoders side by side, [n d1 + d2].
    Departs from diffusers with learned tokens: the pooled text is taken at its end token, where a text encoder whose
    configuration is older than transformers 4.31 takes the token of the highest number, which a learned one is.
    """

    def __init__(self, first: Penultimate, second: Penultimate, *, zeros_when_empty: bool) -> None:
        super().__init__()
        self._first, self._second, self._zeros_when_empty = first, second, zeros_when_empty
        self.encoders = first.encoders + second.encoders

    @property
    def length(self) -> int:
        """Tokens per prompt, start and end included."""
        return min(self._first.length, self._second.length)

    def condition(self, text: str) -> Condition:
        """The condition of a text, encoded at batch 1. Raises BackboneError as `PromptEncoder.ids`."""
        return self.encode(self.ids(text)[None]).map(lambda part: part[0])

    def unconditional(self, text: str) -> Condition:
        """Zeros for no text, where the model wants that."""
        found = self.condition(text)
        return found.map(torch.zeros_like) if self._zeros_when_empty and not text else found

    def ids(self, text: str) -> Int[Tensor, "2 s"]:
        """Token ids for both encoders."""
        return torch.stack([self._first.ids(text), self._second.ids(text)])

    def encode(self, ids: Int[Tensor, "b 2 s"]) -> Condition:
        """The conditions of token ids, differentiable in the learned rows."""
        first, _ = self._first.states(ids[:, 0])
        second, last = self._second.states(ids[:, 1])
        rows = torch.arange(len(ids), device=ids.device)
        pooled = self._second.text_encoder.text_projection(last[rows, self._second.end_of(ids[:, 1])])
        return Condition({"text": torch.cat([first, second], dim=-1), "pooled": pooled})

    def install(self, tokens: Mapping[str, Float[Tensor, "n d"]]) -> tuple[nn.Parameter, ...]:
        """Put these learned tokens beside the plain ones of both encoders; one parameter for each.

        Raises:
            BackboneError: a token's width is not that of both together.
        """
        self.uninstall()
        widths = [encoder.get_input_embeddings().embedding_dim for _, encoder in self.encoders]
        for name, rows in tokens.items():
            if rows.ndim != 2 or rows.shape[1] != sum(widths):
                raise BackboneError(
                    f"concept {name} has embeddings of shape {tuple(rows.shape)}, expected [n, {sum(widths)}]: it was "
                    "learned on another backbone; use that one, or learn the concepts again."
                )
        parts = [{name: rows[:, : widths[0]] for name, rows in tokens.items()}]
        parts += [{name: rows[:, widths[0] :] for name, rows in tokens.items()}]
        return (*self._first.install(parts[0]), *self._second.install(parts[1]))

    def uninstall(self) -> None:
        """Bring the original tokenizers and embeddings back."""
        self.forget()
        self._first.uninstall()
        self._second.uninstall()

"""What concept learning leaves: token embeddings and a LoRA, in files that plain diffusers loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.temporary import write_bytes

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

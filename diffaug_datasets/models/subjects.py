"""BLIP-Diffusion's subject: a real image, and the word for what it shows, as vectors among those of a prompt.

1. what a vision transformer sees in the picture, V = ViT(x), tokens [v w]
2. queries and the word through a Q-Former, whose queries attend to V              `SubjectEncoder.vectors`
3. the queries' states, projected to the text encoder's width, s [q d]
4. the prompt, `a {subject} {prompt}` 20 times over, with s after its first word   `subject_conditions`

Li, Li & Hoi 2023, "BLIP-Diffusion", arXiv 2305.14720. Follows diffusers' `BlipDiffusionControlNetPipeline`, whose
weights by name it reads. Their classes are there still in 0.42, but no longer run beside transformers 5: they call
BLIP-2's layers as these were before. Here is what they compute, in float32, each image alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer

from diffaug_datasets.core.method import DiffusionModel
from diffaug_datasets.core.model_files import brief, read_object
from diffaug_datasets.families.parts.clip_text import PlaceholderEmbedding, PromptEncoder
from diffaug_datasets.families.parts.loaders import read_tokenizer
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.subject_folder import unfit_subject

REPEATS = 20  # of the prompt, as the pipeline's default has it
BEGIN = 2  # place of the subject's vectors: after the start of the text and its first word
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
PROJECTION_EPS = 1e-12
# What transformers' Blip2Config takes where a config.json is silent.
VISION: Mapping[str, Any] = {"num_attention_heads": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
QFORMER: Mapping[str, Any] = {"num_attention_heads": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class SubjectEncoder:
    """Vision transformer, Q-Former and projection of a folder `qformer`, float32, frozen."""

    def __init__(self, weights: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: BertTokenizer) -> None:
        self._weights, self._tokenizer = weights, tokenizer
        self._vision = {**VISION, **(config.get("vision_config") or {})}
        self._qformer = {**QFORMER, **(config.get("qformer_config") or {})}
        self.queries: int = weights["query_tokens"].shape[1]

    def vectors(self, image: Image.Image, word: str) -> Float[Tensor, "q d"]:
        """The subject of a picture, of the kind that the word names; of this image alone."""
        with torch.no_grad():
            return self._projected(self._asked(self._seen(self._pixels(image)), word))[0]

    def _pixels(self, image: Image.Image) -> Float[Tensor, "1 3 s s"]:
        """Stretched to the square that the transformer sees, normalised as for CLIP."""
        places = self._weights["visual_encoder.embeddings.position_embedding"].shape[1] - 1
        side = round(places**0.5) * self._weights["visual_encoder.embeddings.patch_embedding.weight"].shape[-1]
        fitted = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        levels = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
        pixels = (levels - torch.tensor(MEAN)) / torch.tensor(STD)
        return pixels.permute(2, 0, 1)[None].to(self._weights["query_tokens"].device)

    def _seen(self, pixels: Float[Tensor, "1 3 s s"]) -> Float[Tensor, "1 v w"]:
        part, eps = "visual_encoder", self._vision["layer_norm_eps"]
        heads, act = self._vision["num_attention_heads"], ACTIVATIONS[self._vision["hidden_act"]]
        kernel = self._weights[f"{part}.embeddings.patch_embedding.weight"]
        patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
        x = torch.cat([self._weights[f"{part}.embeddings.class_embedding"], patches], dim=1)
        x = x + self._weights[f"{part}.embeddings.position_embedding"]
        x = self._norm(x, f"{part}.pre_layernorm", eps)
        for i in self._layers(f"{part}.encoder.layers"):
            layer = f"{part}.encoder.layers.{i}"
            q, k, v = self._linear(self._norm(x, f"{layer}.layer_norm1", eps), f"{layer}.self_attn.qkv").chunk(3, -1)
            x = x + self._linear(_attention(q, k, v, heads), f"{layer}.self_attn.projection")
            inner = act(self._linear(self._norm(x, f"{layer}.layer_norm2", eps), f"{layer}.mlp.fc1"))
            x = x + self._linear(inner, f"{layer}.mlp.fc2")
        return self._norm(x, f"{part}.post_layernorm", eps)

    def _asked(self, seen: Float[Tensor, "1 v w"], word: str) -> Float[Tensor, "1 q h"]:
        """The queries' states beside the word's tokens. Layers without cross-attention do not look at the image."""
        ids = torch.tensor([self._tokenizer(word).input_ids], device=seen.device)
        text = F.embedding(ids, self._weights["embeddings.word_embeddings.weight"])
        text = text + self._weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        both = torch.cat([self._weights["query_tokens"], text], dim=1)
        h, q = self._norm(both, "embeddings.LayerNorm", self._qformer["layer_norm_eps"]), self.queries
        for i in self._layers("encoder.layer"):
            layer = f"encoder.layer.{i}"
            a = self._attended(h, h, f"{layer}.attention")
            asked = a[:, :q]
            if f"{layer}.crossattention.output.dense.weight" in self._weights:
                asked = self._attended(asked, seen, f"{layer}.crossattention")
            asked = self._fed(asked, f"{layer}.intermediate_query", f"{layer}.output_query")
            h = torch.cat([asked, self._fed(a[:, q:], f"{layer}.intermediate", f"{layer}.output")], dim=1)
        return h[:, :q]

    def _attended(self, x: Tensor, to: Tensor, name: str) -> Tensor:
        own = [self._linear(part, f"{name}.attention.{k}") for part, k in ((x, "query"), (to, "key"), (to, "value"))]
        return self._added(_attention(own[0], own[1], own[2], self._qformer["num_attention_heads"]), x, name)

    def _fed(self, x: Tensor, inner: str, outer: str) -> Tensor:
        wide = ACTIVATIONS[self._qformer["hidden_act"]](self._linear(x, f"{inner}.dense"))
        return self._norm(self._linear(wide, f"{outer}.dense") + x, f"{outer}.LayerNorm", self._eps)

    def _added(self, found: Tensor, x: Tensor, name: str) -> Tensor:
        return self._norm(self._linear(found, f"{name}.output.dense") + x, f"{name}.output.LayerNorm", self._eps)

    @property
    def _eps(self) -> float:
        return float(self._qformer["layer_norm_eps"])

    def _projected(self, x: Float[Tensor, "1 q h"]) -> Float[Tensor, "1 q d"]:
        inner = quick_gelu(self._linear(self._norm(x, "proj_layer.LayerNorm", PROJECTION_EPS), "proj_layer.dense1"))
        return self._linear(inner, "proj_layer.dense2") + x

    def _layers(self, prefix: str) -> range:
        numbers = {int(key.split(".")[prefix.count(".") + 1]) for key in self._weights if key.startswith(f"{prefix}.")}
        return range(len(numbers))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self._weights[f"{name}.bias"], eps)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax(q k' / sqrt(w)) v of every head; tokens [b n heads*w]."""
    split = [x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(split[0], split[1], split[2]).transpose(1, 2).flatten(2)


def load_subjects(folder: str, backbone: Backbone) -> SubjectEncoder:
    """The subject encoder of a folder, on the backbone's device; safetensors alone, no remote code.

    Raises:
        BackboneError: it cannot be read, lacks weights, or does not fit the text encoder.
    """
    try:
        files = sorted(Path(folder).glob("model*.safetensors"))
        stored = {name: weight for path in files for name, weight in load_file(path).items()}
        floats = {name: weight for name, weight in stored.items() if weight.is_floating_point()}
        weights = {name: weight.to(backbone.device, torch.float32) for name, weight in floats.items()}
        if broken := [name for name, weight in weights.items() if not bool(weight.isfinite().all())]:
            raise ValueError(f"it holds values in {broken[0]} that are not finite")
        rows = len(weights["embeddings.word_embeddings.weight"])
        words = read_tokenizer(BertTokenizer, Path(folder), rows)
        found = SubjectEncoder(weights, read_object(Path(folder), "config.json"), words)
        subject_conditions(backbone, [found.vectors(Image.new("RGB", (8, 8)), "bird")], ["a bird"])
    except Exception as error:  # of whichever kind torch and tokenizers fail with on odd files
        missing = f"{error.args[0]} is missing or of another kind" if isinstance(error, KeyError) else brief(error)
        raise unfit_subject(folder, missing) from error
    return found


def subject_prompt(word: str, sentence: str) -> str:
    """What the text encoder reads besides the subject's vectors, until it is full."""
    return ", ".join([f"a {word} {sentence.strip()}"] * REPEATS)


def subject_conditions(
    model: DiffusionModel, subjects: Sequence[Float[Tensor, "q d"]], texts: Sequence[str]
) -> Float[Tensor, "b s d"]:
    """Conditions of texts with a subject's vectors after their first word, float32, each encoded alone."""
    backbone = cast(Backbone, model)  # that of a plan whose text encoder was looked at
    table = backbone.text_encoder.get_input_embeddings()
    found: list[Tensor] = []
    try:
        for subject, text in zip(subjects, texts, strict=True):
            backbone.text_encoder.set_input_embeddings(PlaceholderEmbedding(table, subject))
            ids = _ids(backbone, text, len(subject), table.num_embeddings)
            with torch.no_grad():
                found.append(backbone.text.encode(ids[None])[0])
    finally:
        backbone.text_encoder.set_input_embeddings(table)
    return torch.stack(found)


def _ids(backbone: Backbone, text: str, vectors: int, rows: int) -> Tensor:
    """Token ids, cut and padded to leave room for the vectors, which stand at `BEGIN`."""
    room, padding = cast(PromptEncoder, backbone.text).length - vectors, backbone.tokenizer.pad_token_id or 0
    words: list[int] = backbone.tokenizer(text, truncation=True, max_length=room, verbose=False).input_ids
    words += [padding] * (room - len(words))
    placed = [*words[:BEGIN], *range(rows, rows + vectors), *words[BEGIN:]]
    return torch.tensor(placed, device=backbone.device)

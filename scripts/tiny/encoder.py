"""The image-text encoder: a CLIP trained so that a picture matches every caption that is true of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from tiny import data, tokens, work
from tiny.captions import PHRASES, CaptionTable, draw, prompt
from tiny.data import Split
from tiny.fit import Plan, fit

BATCH = 128


def build(vocab_size: int) -> CLIPModel:
    """An untrained encoder: 8 px patches (17 tokens), three vision and two text layers, 64-d shared space."""
    text = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": tokens.MAX_LENGTH,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def processor() -> CLIPImageProcessorPil:
    """Resizes to 32 px and maps 0..255 to -1..1."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def true_match_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against an even spread over the true captions of each picture; logits, truth are [N, M]."""
    target = truth.float()
    return -(F.log_softmax(logits, 1) * target).sum(1).div(target.sum(1).clamp_min(1)).mean()


def train(folder: Path, steps: int) -> None:
    """Stage "encoder": train on the train split and its captions, save as `encoder/`."""
    if (folder / "encoder" / "config.json").exists():
        return
    torch.manual_seed(3)
    split, states = data.load_train(folder), np.load(folder / "states.npy")
    captions, tokenizer = CaptionTable.build(), tokens.build()
    ids = tokenizer(captions.texts, padding="longest", return_tensors="pt").input_ids
    model = build(len(tokenizer)).to(work.device()).train()

    def loss_at(step: int) -> torch.Tensor:
        """The contrastive loss of a step's batch."""
        rng = np.random.default_rng([13, step])
        rows = rng.integers(0, len(split), BATCH)
        numbers = draw(captions, split.labels[rows], states[rows], rng, empty=0.0)
        truth = torch.from_numpy(captions.truth(numbers, split.labels[rows], states[rows])).to(model.device)
        pixels = data.tensor(data.shifted(split.images[rows], rng)).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            logits = model(input_ids=ids[torch.from_numpy(numbers)].to(model.device), pixel_values=pixels)
        scores = logits.logits_per_image.float()
        return 0.5 * (true_match_loss(scores, truth) + true_match_loss(scores.T, truth.T))

    fit(folder, Plan("encoder", steps, 1.5e-3, weight_decay=0.02), model, loss_at)
    model.logit_scale.data.clamp_(max=float(np.log(100)))
    for part in (tokenizer, processor(), model):
        part.save_pretrained(folder / "encoder")


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, split: Split) -> float:
    """Accuracy of picking the class whose plain prompt is nearest to the picture."""
    ids = tokenizer([prompt(p) for p in PHRASES], padding=True, return_tensors="pt")
    batches = data.tensor(split.images).split(250)
    picked = torch.cat([model(**ids, pixel_values=b).logits_per_image.argmax(1) for b in batches])
    return float((picked.numpy() == split.labels).mean())

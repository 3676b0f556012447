"""The judge: a small residual network that names the class of a 32 px picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from tiny import data, work
from tiny.captions import CLASS_NAMES
from tiny.data import Split
from tiny.fit import Plan, fit

BATCH = 128


def build(widths: tuple[int, ...] = (48, 96, 128)) -> ResNetForImageClassification:
    """An untrained classifier; its stem already brings 32 px down to 8."""
    names = dict(enumerate(CLASS_NAMES))
    config = ResNetConfig(
        embedding_size=48, hidden_sizes=list(widths), depths=[1] * len(widths), layer_type="basic",
        id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def processor() -> ViTImageProcessorPil:
    """Resizes to 32 px and maps 0..255 to -1..1."""
    side = {"height": 32, "width": 32}
    return ViTImageProcessorPil(size=side, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def learn(folder: Path, plan: Plan, split: Split) -> ResNetForImageClassification:
    """A classifier trained on shifted pictures of the split; resumable under plan.name."""
    torch.manual_seed(2)
    model = build().to(work.device()).train()

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng([11, step])
        rows = rng.integers(0, len(split), BATCH)
        pixels = data.tensor(data.shifted(split.images[rows], rng)).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(pixels).logits.float()
        return F.cross_entropy(logits, torch.from_numpy(split.labels[rows]).to(model.device), label_smoothing=0.05)

    fit(folder, plan, model, loss_at)
    return model


def train(folder: Path, steps: int) -> None:
    """Stage "judge": train on the train split and save as `judge/`."""
    if (folder / "judge" / "config.json").exists():
        return
    model = learn(folder, Plan("judge", steps, 3e-3, weight_decay=0.02), data.load_train(folder))
    processor().save_pretrained(folder / "judge")
    model.save_pretrained(folder / "judge")


@torch.no_grad()
def predict(model: ResNetForImageClassification, images: np.ndarray) -> np.ndarray:
    """Class numbers [N] of uint8 pictures [N, 32, 32]."""
    return torch.cat([model(b).logits.argmax(1) for b in data.tensor(images).split(250)]).numpy()

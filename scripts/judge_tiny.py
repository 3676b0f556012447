"""Measure the embedded default and write the numbers into its model card: `python scripts/judge_tiny.py --help`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from tiny import autoencoder, data, encoder, judge, sampling, work
from tiny.card import Measured, write_card
from tiny.data import Split
from tiny.fit import Plan
from tiny.properties import MEASURES, SUFFIXES, Suffix
from tiny.sampling import Request
from transformers import CLIPModel, CLIPTokenizer, ResNetForImageClassification

ASSETS = Path(__file__).resolve().parents[1] / "diffaug_datasets" / "assets" / "tiny"


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    assets: Path
    guidance: float
    train_guidance: float
    samples: int
    train_samples: int
    train_steps: int
    pairs: int


def recognised(pipe: StableDiffusionPipeline, model: ResNetForImageClassification, o: Options) -> np.ndarray:
    """Share of samples the judge gives the class asked for, by class [10]."""
    labels = sampling.class_labels(o.samples)
    images = sampling.sample(pipe, Request(sampling.prompts(labels), sampling.noise(o.samples, 101), o.guidance))
    hits = judge.predict(model, images) == labels
    return np.array([hits[labels == c].mean() for c in range(10)])


def trained_on_samples(pipe: StableDiffusionPipeline, test: Split, o: Options) -> float:
    """Real-test accuracy of a classifier of the judge's shape that saw nothing but samples."""
    labels = sampling.class_labels(o.train_samples)
    request = Request(sampling.prompts(labels), sampling.noise(o.train_samples, 202), o.train_guidance)
    images = sampling.sample(pipe, request)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan("on-samples", o.train_steps, 2e-3, weight_decay=0.05)
        model = judge.learn(Path(folder), plan, Split(images, labels))
    return float((judge.predict(model, test.images) == test.labels).mean())


def _values(pipe: StableDiffusionPipeline, o: Options, *suffixes: str) -> dict[str, np.ndarray]:
    """All properties of `pairs` samples of each class that carry the suffixes; the seeds are always the same."""
    labels = sampling.class_labels(10 * o.pairs)
    request = Request(sampling.prompts(labels, *suffixes), sampling.noise(len(labels), 303), o.guidance)
    images = sampling.sample(pipe, request)
    return {name: rule(data.unit(images)) for name, rule in MEASURES.items()}


def _moved(with_suffix: np.ndarray, reference: np.ndarray, suffix: Suffix) -> float:
    """Share of pairs in which the property lies on the stated side of the reference."""
    sign = 1 if suffix.direction == "up" else -1
    return float((sign * (with_suffix - reference) > 0).mean())


def suffix_effects(pipe: StableDiffusionPipeline, o: Options) -> dict[str, tuple[float, float]]:
    """For each suffix: share of equal-seed pairs moved as stated against the plain prompt and against its opposite."""
    plain = _values(pipe, o)
    values = {s: _values(pipe, o, s.text) for s in SUFFIXES}
    opposite = {s: next(r for r in SUFFIXES if r.property == s.property and r != s) for s in SUFFIXES}
    return {
        s.text: (
            _moved(values[s][s.property], plain[s.property], s),
            _moved(values[s][s.property], values[opposite[s]][s.property], s),
        )
        for s in SUFFIXES
    }


@torch.no_grad()
def forward_ms(unet: UNet2DConditionModel, batch: int = 16, repeats: int = 10) -> float:
    """Milliseconds of one U-Net forward at the batch size on one CPU thread (best of the repeats)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    z, t = sampling.noise(batch, 1), torch.tensor(500)
    text = torch.zeros(batch, 32, unet.config.cross_attention_dim)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        unet(z, t, text)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 1000 * best


def megabytes(folder: Path) -> float:
    """Size of all files below a folder in 10^6 bytes."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def measure(o: Options) -> Measured:
    """Every number of the model card; the shipped test set is the real test."""
    pipe = sampling.load(o.assets / "pipeline")
    test = data.read_parquet(o.assets / "fashion" / "test.parquet")
    referee = ResNetForImageClassification.from_pretrained(
        o.assets / "judge", use_safetensors=True, trust_remote_code=False
    ).eval()
    clip = CLIPModel.from_pretrained(o.assets / "encoder", use_safetensors=True, trust_remote_code=False).eval()
    words = CLIPTokenizer.from_pretrained(o.assets / "encoder", trust_remote_code=False)
    shares = recognised(pipe, referee, o)
    print(f"recognised {shares.mean():.3f} by class {np.round(shares, 2).tolist()}", flush=True)
    effects = suffix_effects(pipe, o)
    print(f"suffixes {effects}", flush=True)
    return Measured(
        guidance=o.guidance, train_guidance=o.train_guidance, samples=o.samples, train_samples=o.train_samples,
        pairs=10 * o.pairs, recognised=shares.tolist(), suffixes=effects,
        judge=float((judge.predict(referee, test.images) == test.labels).mean()),
        psnr=autoencoder.psnr(pipe.vae, test.images),
        zero_shot=encoder.zero_shot(clip, words, test),
        trained_on_samples=trained_on_samples(pipe, test, o),
        weights={n: work.weight_count([m]) for n, m in _parts(pipe, clip, referee).items()},
        sizes={n: megabytes(o.assets / n) for n in ("pipeline", "encoder", "judge", "fashion")},
        forward_ms=forward_ms(pipe.unet.cpu()),
    )  # fmt: skip


def _parts(
    pipe: StableDiffusionPipeline, clip: CLIPModel, referee: ResNetForImageClassification
) -> dict[str, torch.nn.Module]:
    """The networks by the names the card uses."""
    return {"U-Net": pipe.unet, "text encoder": pipe.text_encoder, "autoencoder": pipe.vae,
            "encoder": clip, "judge": referee}  # fmt: skip


def parse() -> Options:
    """Options from the command line."""
    parser = argparse.ArgumentParser(description="Measure the tiny models and write their model card.")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--guidance", type=float, default=4.0, help="for recognition and suffixes")
    parser.add_argument("--train-guidance", type=float, default=2.0, help="for the classifier trained on samples")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--train-samples", type=int, default=5000)
    parser.add_argument("--train-steps", type=int, default=800)
    parser.add_argument("--pairs", type=int, default=10, help="seeds a class for each suffix")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return Options(args.assets, args.guidance, args.train_guidance, args.samples, args.train_samples,
                   args.train_steps, args.pairs)  # fmt: skip


def main() -> None:
    """Measure and write."""
    options = parse()
    measured = measure(options)
    write_card(options.assets / "README.md", measured)
    print(measured.lines(), flush=True)


if __name__ == "__main__":
    main()

"""Train the embedded default (diffaug_datasets/assets/tiny): `python scripts/train_tiny.py --help`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import autoencoder, data, denoiser, encoder, export, judge

ASSETS = Path(__file__).resolve().parents[1] / "diffaug_datasets" / "assets" / "tiny"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the official files


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    fashion: Path
    folder: Path
    assets: Path
    minutes: float
    vae_steps: int
    encoder_steps: int
    judge_steps: int
    threads: int


STAGES: dict[str, Callable[[Options], None]] = {
    "data": lambda o: data.prepare(o.fashion, o.folder),
    "vae": lambda o: autoencoder.train(o.folder, o.vae_steps),
    "latents": lambda o: autoencoder.encode_all(o.folder),
    "unet": lambda o: denoiser.train(o.folder, o.minutes, o.threads),
    "encoder": lambda o: encoder.train(o.folder, o.encoder_steps),
    "judge": lambda o: judge.train(o.folder, o.judge_steps),
    "export": lambda o: export.everything(o.folder, o.fashion, o.assets),
}


def parse() -> tuple[Options, list[str]]:
    """Options and the stages to run."""
    parser = argparse.ArgumentParser(description="Train the tiny Fashion-MNIST models; a killed run continues.")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the four official .gz files")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "diffaug-tiny-work")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the stage export writes")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--minutes", type=float, default=48, help="time budget of the U-Net over all resumptions")
    parser.add_argument("--vae-steps", type=int, default=1400)
    parser.add_argument("--encoder-steps", type=int, default=1600)
    parser.add_argument("--judge-steps", type=int, default=1800)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = Options(args.fashion, args.work, args.assets, args.minutes, args.vae_steps, args.encoder_steps,
                      args.judge_steps, args.threads)  # fmt: skip
    return options, args.stage or list(STAGES)


def main() -> None:
    """Run the stages in order; each skips or resumes what it finds done."""
    options, stages = parse()
    for name in stages:
        started = time.monotonic()
        STAGES[name](options)
        print(f"[{name}] done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

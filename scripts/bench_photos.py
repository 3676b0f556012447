"""What each method's images of photographs do to a classifier: a bench of five draws, five real images per class.

    python scripts/bench_photos.py DATA [--model DIR] [--noun flower] [--out DIR]     resumable

DATA holds train/ and test/ with a folder per class, MODEL a small pipeline of photographs in diffusers' form whose
captions are "a photo of a {name} {noun}". Prints the bench's table; `diffaug bench report OUT` makes its page. Commit
none of the images: the photographs are for research alone.
"""

import argparse
from pathlib import Path
from typing import Any

from diffaug_datasets.cli import main as diffaug
from diffaug_datasets.evaluate.suite import Bench

SHARED = Path(__file__).resolve().parents[2] / "shared"
COLOURS = ("blue", "green", "black", "gray", "brown")
GUIDANCE = 5.0  # of a small pipeline; those of Stable Diffusion overdo it


def parser(about: str | None) -> argparse.ArgumentParser:
    """What the command line may ask for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and test/")
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "photos64", help="in diffusers' form")
    parser.add_argument("--noun", default="", help="what all classes are, as the captions of the model call it")
    parser.add_argument("--out", type=Path, help="default: runs/bench-NAME")
    parser.add_argument("--draws", type=int, default=5, help="of real images, each with noise of its own")
    parser.add_argument("--per-class", type=int, default=5, help="synthetic images")
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--concept-steps", type=int, default=400, help="Diff-II: optimiser steps")
    parser.add_argument("--network-steps", type=int, default=400, help="of the small network from random weights")
    parser.add_argument("--classifiers", nargs="+", choices=("logistic", "scratch"), default=["logistic", "scratch"])
    parser.add_argument("--encoders", nargs="+", default=["efficientnet-lite0"])
    return parser


def spec(given: argparse.Namespace) -> Bench:
    """Six sets; logistic regression on frozen features, and a small network."""
    sampling = {"num_inference_steps": given.steps, "guidance_scale": GUIDANCE}
    plain = {**sampling, "prompt": f"a photo of a {{name}} {given.noun}".rstrip()}
    learned = {"rank": 8, "lr_lora": 5e-4, "lr_embedding": 2e-3, "steps": given.concept_steps, "checkpoint_every": 50}
    template = f"a photo of a {{token}} {given.noun}".rstrip()
    interpolated = {
        **sampling,
        "inversion_steps": given.steps,
        "suffixes": [f"on a {colour} background" for colour in COLOURS],
        "concepts": {**learned, "prompt_template": template},
    }
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "txt2img": ("txt2img", plain),
        "img2img-L": ("img2img", {**plain, "strength": 0.3}),
        "img2img-H": ("img2img", {**plain, "strength": 0.7}),
        "genie": ("genie", {**plain, "ratio": 0.8}),
        "realguidance": ("realguidance", plain),
        "diffii": ("diffii", interpolated),
    }
    kinds = {"logistic": "logistic", "scratch": {"kind": "scratch", "steps": given.network_steps, "image_size": 64}}
    labels = sorted(place.name for place in (given.data / "train").iterdir() if place.is_dir())
    return Bench.from_dict(
        {
            "title": f"{given.data.name}, 5 real photographs per class",
            "sets": [
                {"set": f"imagefolder_5shot_{slug}", "name": name, "changes": {"config": config}}
                for name, (slug, config) in configs.items()
            ],
            "draws": given.draws,
            "changes": {
                "source": str(given.data),
                "classes": {label: label.replace("-", " ").replace("_", " ") for label in labels},
                "backbone": {"id": str(given.model), "dtype": "float32", "height": None, "width": None},
                "per_class": given.per_class,
            },
            "encoders": given.encoders,
            "classifiers": [kinds[name] for name in given.classifiers],
            "controls": ["real", "duplicate", "classic", "randaugment_cutmix"],
            "more_real": [1, 5],
        }
    )


def check(given: argparse.Namespace) -> None:
    """Raises SystemExit where the data or the model is not there."""
    if not (given.data / "train").is_dir():
        raise SystemExit(f"{given.data / 'train'}: no such folder; give one with train/ and test/")
    if not (given.model / "model_index.json").is_file():
        raise SystemExit(f"{given.model}: no model_index.json; give --model, a pipeline in diffusers' form")


def write(bench: Bench, out: Path) -> Path:
    """Write a bench into its folder; the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "photos.yaml"
    path.write_text(bench.model_dump_json(by_alias=True, exclude_unset=True), encoding="utf-8")  # JSON is YAML
    return path


def main() -> None:
    """Write the bench, make what it lacks, print its table."""
    given = parser(__doc__).parse_args()
    check(given)
    out = given.out or Path("runs") / f"bench-{given.data.name}"
    raise SystemExit(diffaug(["bench", str(write(spec(given), out)), "--out", str(out)]))


if __name__ == "__main__":
    main()

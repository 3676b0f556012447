"""How far the stated departures from the authors' code reach: the numbers on the pages of methods.

    python scripts/measure_departures.py [--only resize encode ...] [--seeds 2] [--work FOLDER]

`resize`: sizes of pictures, 1 to 1024 on each side, whose long side was a pixel short before torchvision's rounding
was taken, and of those alone whose long side comes out as a whole number. `encode`: latents of the packaged pictures,
mode against sample. `final`: where DPM-Solver++ ends, by latents and grey levels, from noise and from GeNIe's start.
`inverters`: how Diff-II's ways to noise come back, also of photographs. `rounding`: grey levels of generated
pictures, rounded against cut off. `prompt`: Real-Gen's bracketed names, by the packaged judge. `circle`: the share of
Eq. 7's circle that A.3's interval covers. `lora`: the start of LoRA, by |B A| after training, the loss of its last
tenth, and the packaged judge of images. Everything runs on the packaged model, on one thread.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.methods.diff_ii import _half_way
from diffaug_datasets.models.backbone import Backbone, covering_size
from diffaug_datasets.models.denoising import Conditions, guided_network, invert, psnr, reconstructed, sampled
from diffaug_datasets.numerics.interpolation import kurtosis, root_mean_square
from diffaug_datasets.numerics.inverters import Inverter
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions
from diffaug_datasets.sources.real import read_real

SIDE = 1024
STARTS = ("gaussian", "uniform")
LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
BRACKETED = {label: f"<{label.partition('/')[0].lower().replace(' ', '_')}>" for label in LABELS}


def resize(_: argparse.Namespace) -> Iterator[str]:
    """The product before the quotient, against a quotient in floating point that is multiplied."""
    for asked in (224, 256, 512):
        pairs = [(long, short) for short, long in product(range(1, SIDE + 1), repeat=2) if long > short]
        less = {pair: covering_size(pair, asked, asked)[0] - int(pair[0] * (asked / pair[1])) for pair in pairs}
        whole = [pair for pair in pairs if asked * pair[0] % pair[1] == 0]
        all_of, exact = (sum(bool(less[pair]) for pair in some) / len(some) for some in (pairs, whole))
        yield f"at {asked}: {max(less.values())} pixel short for {all_of:.2%} of sizes, {exact:.1%} of exact ones"


def encode(_: argparse.Namespace) -> Iterator[str]:
    """256 packaged pictures."""
    backbone = Backbone.load(BackboneSpec(id="tiny"))
    real = read_real("fashion", None)
    chosen = range(0, len(real.train), max(1, len(real.train) // 256))
    pictures = [decode_image(real.read("train", i)) for i in chosen]
    pixels = torch.stack([backbone.preprocess(picture, "bilinear") for picture in pictures])
    noise = torch.randn(len(pixels), *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    apart = (backbone.encode(pixels, noise) - backbone.encode(pixels)).abs()
    yield f"latents apart: {float(apart.max()):.4f} at most, {float(apart.mean()):.4f} on average"


@torch.no_grad()
def final(_: argparse.Namespace) -> Iterator[str]:
    """Ten pictures of each kind; the first 50 steps are GeNIe's, the 25 Diff-Mix's."""
    backbone = Backbone.load(BackboneSpec(id="tiny"))
    prompts = [f"a photo of a {label.lower()}" for label in LABELS]
    conditions = Conditions(last=prompts, negative=[""] * len(prompts), scale=[7.5] * len(prompts))
    network = guided_network(backbone, conditions)
    noise = torch.randn(len(prompts), *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    for what, n, start in (("50 steps from noise", 50, 0), ("the last 40 of 50", 50, 10), ("25 from noise", 25, 0)):
        ends = ("zero", "alpha_bar_0")
        made = [sampled(backbone, network, noise, "dpm", n, [start] * len(prompts), end) for end in ends]
        apart = (made[0] - made[1]).abs()
        levels = [(255 * backbone.decode_float(latents)).round() for latents in made]
        grey = (levels[0] - levels[1]).abs()
        told = f"{what}: latents apart {float(apart.max()):.3f} at most, {float(apart.mean()):.4f} on average; grey"
        yield f"{told} levels {float(grey.max()):.0f} at most, {float(grey.mean()):.2f} on average"


def rounding(_: argparse.Namespace) -> Iterator[str]:
    """What is stored, against int(255 x), on the same pictures in floating point."""
    backbone = Backbone.load(BackboneSpec(id="tiny"))
    noise = torch.randn(64, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    pixels = 255 * backbone.decode_float(noise)
    apart = pixels.round() - pixels.floor()
    yield f"grey levels apart: {float(apart.max()):.0f} at most, {float(apart.mean()):.2f} on average"


def prompt(given: argparse.Namespace) -> Iterator[str]:
    """`a photo of a <ankle_boot>` against `a photo of a ankle boot`."""
    phrases: dict[str, dict[str, str]] = {"as here": {}, "bracketed": BRACKETED}
    for what, classes in phrases.items():
        rates = [
            agreement(made(given, "fashion_5shot_realgen", seed, per_class=given.per_class, classes=classes))
            for seed in seeds(given)
        ]
        yield f"{what}: {fmean(rates):.1%} judged as their class ({len(rates)} seeds)"


@torch.no_grad()
def inverters(given: argparse.Namespace) -> Iterator[str]:
    """Latents of pictures by each of Diff-II's inverters, and what they give back, alone and half-way to themselves."""
    backbone = Backbone.load(BackboneSpec(id=given.model))
    pictures, prompts = photographs(given.photos, given.noun, given.images)
    images = [backbone.preprocess(picture, "lanczos") for picture in pictures]
    names: tuple[Inverter, ...] = ("ddim", "midpoint", "bdia", "edict")
    for name in names:
        words: dict[str, Any] = {"steps": given.inversion_steps, "batch": 8, "inverter": name}
        latents = invert(backbone, images, prompts, **words)
        back = reconstructed(backbone, latents, prompts, **words)
        again = invert(backbone, [2 * image - 1 for image in back], prompts, **words)
        between = [_half_way(a, b) for a, b in zip(latents, again, strict=True)]
        halfway = reconstructed(backbone, between, prompts, **words)
        rows = list(zip(images, back, halfway, strict=True))
        found = {
            "PSNR, dB": [psnr(image / 2 + 0.5, one) for image, one, _ in rows],
            "norm": [root_mean_square(latent) for latent in latents],
            "kurtosis": [kurtosis(latent) for latent in latents],
            "self-interpolation, dB": [psnr(image / 2 + 0.5, one) for image, _, one in rows],
        }
        told = ", ".join(f"{what} {fmean(values):.2f} +- {stdev(values):.2f}" for what, values in found.items())
        yield f"{name}, {len(images)} pictures, {given.inversion_steps} steps: {told}"


def photographs(folder: Path | None, noun: str, count: int) -> tuple[list[Any], list[str]]:
    """Pictures spread evenly over classes, with a prompt each: a folder's class folders, or the packaged ones."""
    if folder is None:
        real = read_real("fashion", None)
        chosen = range(0, len(real.train), max(1, len(real.train) // count))[:count]
        names = [real.train.class_names[real.train.sources[i].label].lower() for i in chosen]
        return [decode_image(real.read("train", i)) for i in chosen], [f"a photo of a {name}" for name in names]
    classes = [sorted(place.iterdir()) for place in sorted(folder.iterdir()) if place.is_dir()]
    paths = [of[i] for i in range(count) for of in classes][:count]
    names = [path.parent.name.replace("-", " ").replace("_", " ").lower() for path in paths]
    return [decode_image(path.read_bytes()) for path in paths], [
        f"a photo of a {name} {noun}".rstrip() for name in names
    ]


def circle(given: argparse.Namespace) -> Iterator[str]:
    """The angle between two inversions of a class."""
    quick = {"concepts": {"steps": 60}}
    rows = rows_of(made(given, "fashion_5shot_diffii", 0, per_class=4, config=quick))
    angles = [json.loads(row["measured"])["alpha"] for row in rows]
    mean = fmean(angles)
    yield f"angle of two inversions: {mean:.2f} on average, {min(angles):.2f} to {max(angles):.2f}"
    yield f"A.3's interval of lambda is {mean / (2 * math.pi):.0%} of the circle of Eq. 7"


def lora(given: argparse.Namespace) -> Iterator[str]:
    """Two starts of the same training, and what images come of it; fits are shared where they are alike."""
    size = dict.fromkeys(STARTS, 0.0)
    for start, seed in product(STARTS, seeds(given)):
        done: list[Path] = []
        for slug in given.methods:
            changes = {"per_class": given.per_class, **learning(start, given.steps)}
            run = made(given, f"fashion_5shot_{slug}", seed, fits_from=done, **changes)
            done.append(run.folder)
            concept = next(unit for unit in run.plan.fits if unit.kind == "concepts")
            loss, moved = run.receipt(concept.name).measured["loss_last"], change(run)
            size[start] += moved
            about = f"|B A| {moved:.4f}, loss {loss:.4f}, {agreement(run):.1%} judged as their class"
            yield f"{slug}, {start}, seed {seed}, {given.steps} steps: {about}"
    ratio = size["gaussian"] / size["uniform"]
    yield f"after {given.steps} steps |B A| is {ratio:.2f} times as large from the gaussian start"


def learning(start: str, steps: int) -> dict[str, Any]:
    """The changes of a recipe."""
    return {"config": {"concepts": {"lora_start": start, "steps": steps}}}


def seeds(given: argparse.Namespace) -> range:
    """Of recipes: other sources, noise and draws."""
    return range(given.seeds)


def made(given: argparse.Namespace, name: str, seed: int, *, fits_from: Sequence[Path] = (), **changes: Any) -> Run:
    """A finished run, in a folder of its own under `--work`."""
    recipe = config_recipe(name, **merged({"per_class": 1, "seed": seed, "include_test": False}, changes))
    run = write_run(prepare(recipe), Path(tempfile.mkdtemp(dir=given.work)) / "run")
    execute(run, WorkerOptions(fits_from=tuple(fits_from)), workers=1)
    return run


def rows_of(run: Run) -> list[dict[str, Any]]:
    """All generated rows, without pictures."""
    tables = [run.table(shard) for shard in run.plan.shards()]
    return [row for table in tables for row in table.drop_columns(["image"]).to_pylist()]


def agreement(run: Run) -> float:
    """Share of rows that the judge takes for their class."""
    rows = rows_of(run)
    return fmean(row["judge_label"] == row["label"] for row in rows)


def change(run: Run) -> float:
    """|B A| over all projections of a run's concepts."""
    from safetensors.torch import load_file

    concept = next(unit for unit in run.plan.fits if unit.kind == "concepts")
    matrices = load_file(run.fit_folder(concept.name) / "pytorch_lora_weights.safetensors")
    pairs = [(matrices[key.replace("lora_A", "lora_B")], a) for key, a in matrices.items() if ".lora_A." in key]
    return math.sqrt(sum(float((b @ a).square().sum()) for b, a in pairs))


MEASURES: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "resize": resize,
    "encode": encode,
    "final": final,
    "rounding": rounding,
    "prompt": prompt,
    "inverters": inverters,
    "circle": circle,
    "lora": lora,
}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["diffgen", "diffaug", "diffmix", "diffii"], help="of `lora`")
    parser.add_argument("--steps", type=int, default=300, help="of `lora`")
    parser.add_argument("--per-class", type=int, default=10, help="images of `lora` and `prompt`")
    parser.add_argument("--model", default="tiny", help="of `inverters`: a folder in diffusers' form")
    parser.add_argument("--photos", type=Path, help="of `inverters`: a folder of class folders; default: the packaged")
    parser.add_argument("--noun", default="", help="of `inverters`: what all classes are")
    parser.add_argument("--images", type=int, default=32, help="of `inverters`")
    parser.add_argument("--inversion-steps", type=int, default=25, help="of `inverters`")
    parser.add_argument("--work", type=Path, help="where runs go; a temporary folder unless given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        given.work = given.work or Path(name)
        for measure in given.only:
            for said in MEASURES[measure](given):
                print(f"{measure}: {said}", flush=True)


if __name__ == "__main__":
    main()

"""5-shot runs on real photographs with a small pipeline of photographs; prints one line per dataset and method.

    python scripts/try_photos.py [--data DIR ...] [--model DIR] [--work DIR]

- rows, seconds: images made, and the sum of the workers' receipts (fits included).
- distance: mean over the images of 1 - cosine to the nearest real training image, in the last features of a small
  ResNet that learned the *whole* real training split (a measuring device: no run and no classifier below sees it).
- accuracy on the real test split, last iteration, mean and standard deviation over seeds, of the same small ResNet
  trained from scratch for the same iterations: on the 5 real images per class alone, and with every batch half real,
  half synthetic.

GeNIe-Ada judges its levels with the classifier that it is meant to improve, the one trained on the 5-shot images alone.
Everything lies in --work and is taken up again where it stopped; a contact sheet per method is there for the eye: a
line per class, its real images first, row ids beneath. Commit none of it: the photographs are for research alone.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from transformers import ResNetConfig
from transformers import ResNetForImageClassification as Network

from diffaug_datasets.core.identity import digest
from diffaug_datasets.models.backbone import preprocess
from diffaug_datasets.models.encoders import Encoder
from diffaug_datasets.release.read import load
from diffaug_datasets.run.assembly import Assembled
from diffaug_datasets.sources.real import read_real
from diffaug_datasets.train.builder import load_builder

SHARED = Path(__file__).resolve().parents[2] / "shared"
NOUNS = {"flowers": "flower", "birds": "bird"}
COLOURS = ("blue", "green", "black", "gray", "brown")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt2img": ("txt2img", {}),
    "img2img-L": ("img2img", {"strength": 0.3}),
    "img2img-H": ("img2img", {"strength": 0.7}),
    "genie": ("genie", {"ratio": 0.8}),
    "genie_ada": ("genieada", {}),
    "diff_ii": ("diffii", {"suffixes": [f"on a {colour} background" for colour in COLOURS]}),
}
CONCEPTS = {"rank": 8, "lr_lora": 5e-4, "lr_embedding": 2e-3, "checkpoint_every": 50}
BATCH, SHIFT, TILE = 32, 6, 72


@dataclass(frozen=True)
class Pictures:
    """Images [n 3 h w] in [-1, 1] and their class ids [n], or how much of each class they show [n C]."""

    pixels: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, rows: Any, side: int) -> "Pictures":
        """The images of a dataset, cropped to a square of that side."""
        pixels = [preprocess(image, "crop", side, side) for image in rows["image"]]
        return cls(torch.stack(pixels), torch.tensor(rows["label"]))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = [SHARED / "data" / "flowers12", SHARED / "data" / "birds20"]
    parser.add_argument("--data", type=Path, nargs="+", default=data, help="folders with train/ and test/")
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "photos64", help="in diffusers format")
    parser.add_argument("--work", type=Path, default=Path("runs") / "photos", help="run folders, sheets, results")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--per-image", type=float, default=2.0, help="synthetic images per real image")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--concept-steps", type=int, default=400, help="Diff-II: optimiser steps")
    parser.add_argument("--iterations", type=int, default=400, help="of every classifier")
    parser.add_argument("--seeds", type=int, default=3, help="classifiers a line")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def staged(data: Path, work: Path) -> Path:
    """The folder with class names as captions spell them: hyphens are spaces there, so they become underscores."""
    target = work / "images"
    for path in sorted(data.glob("t*/*/*.*")):
        split, name = path.parent.parent.name, path.parent.name.replace("-", "_")
        place = target / split / name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return target


def config(method: str, noun: str, given: argparse.Namespace, encoder: Path) -> dict[str, Any]:
    """The method's parameters: the model's captions, its guidance, modest numbers of steps."""
    slug, own = METHODS[method]
    shared: dict[str, Any] = {"num_inference_steps": given.steps, "guidance_scale": 5.0, **own}
    if slug == "diffii":
        template = f"a photo of a {{token}} {noun}".strip()
        learned = {**CONCEPTS, "steps": given.concept_steps, "prompt_template": template}
        return {**shared, "inversion_steps": given.steps, "concepts": learned}
    ada = {"encoder": str(encoder)} if slug == "genieada" else {}
    return {**shared, **ada, "prompt": f"a photo of a {{name}} {noun}".strip()}


def generate(method: str, source: Path, given: argparse.Namespace, encoder: Path) -> tuple[Path, Assembled]:
    """The finished run of a method over 5 images per class, and what it consists of."""
    noun = next((noun for stem, noun in NOUNS.items() if source.parent.name.startswith(stem)), "")
    settings = config(method, noun, given, encoder)
    name = f"{method}-{digest([settings, given.per_image, str(given.model)])[:8]}"
    builder = load_builder(
        f"imagefolder_5shot_{METHODS[method][0]}",
        source=str(source),
        backbone={"id": str(given.model), "dtype": "float32", "height": None, "width": None},
        run_dir=source.parent / name,
        workers=given.workers,
        device="cpu",
        per_image=given.per_image,
        shard_rows=40,
        config=settings,
    )
    return builder.run.folder, builder.finish()


def network(names: Sequence[str], seed: int) -> Network:
    """An untrained residual network of three stages, about 0.2 million weights."""
    torch.manual_seed(seed)
    labels = dict(enumerate(names))
    return Network(
        ResNetConfig(
            embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic",
            id2label=labels, label2id={name: i for i, name in labels.items()},
        )
    )  # fmt: skip


def learn(
    parts: Sequence[Pictures], names: Sequence[str], iterations: int, seed: int, shift: int | None = SHIFT
) -> Network:
    """Train from scratch on batches with as many images of each part.

    They are mirrored at random and shifted by up to `shift` pixels; neither with None.
    """
    torch.set_num_threads(1)
    model, draw = network(names, seed).train(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=iterations)
    for _ in range(iterations):
        chosen = [torch.randint(len(part.labels), (BATCH // len(parts),), generator=draw) for part in parts]
        pixels = torch.cat([part.pixels[rows] for part, rows in zip(parts, chosen, strict=True)])
        labels = torch.cat([part.labels[rows] for part, rows in zip(parts, chosen, strict=True)])
        optimiser.zero_grad()
        pixels = pixels if shift is None else _moved(pixels, shift, draw)
        F.cross_entropy(model(pixels).logits, labels, label_smoothing=0.1).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _moved(pixels: torch.Tensor, shift: int, draw: torch.Generator) -> torch.Tensor:
    flips = torch.rand(len(pixels), generator=draw) < 0.5
    pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
    padded, side = F.pad(pixels, (shift,) * 4, mode="reflect"), pixels.shape[-1]
    corners = torch.randint(2 * shift + 1, (len(pixels), 2), generator=draw).tolist()
    return torch.stack([x[:, i : i + side, j : j + side] for x, (i, j) in zip(padded, corners, strict=True)])


@torch.no_grad()
def accuracy(model: Network, test: Pictures) -> float:
    """Share of test images whose class the model names."""
    guesses = torch.cat([model(part).logits.argmax(1) for part in test.pixels.split(200)])
    return float((guesses == test.labels).float().mean())


def saved(model: Network, folder: Path, side: int) -> None:
    """Save the network below the classes as a transformers folder that `Encoder` and GeNIe-Ada read."""
    model.resnet.save_pretrained(folder)
    half, size = [0.5] * 3, {"height": side, "width": side}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def distance(made: Any, real: Any, encoder: Path) -> float:
    """Mean over the made images of 1 - cosine to the nearest real one."""
    look = Encoder.load(str(encoder))
    cosines = look.image_features(list(made["image"])) @ look.image_features(list(real["image"])).T
    return float((1 - cosines.max(1).values).mean())


def contact_sheet(rows: Any, names: Sequence[str], path: Path) -> None:
    """A line per class: its real images, a gap, the synthetic ones, each over the head of its row id."""
    counts, step = [0] * len(names), TILE + 26
    width = max(rows["label"].count(label) for label in range(len(names))) + 1
    sheet = Image.new("RGB", (width * TILE, len(names) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for label, name in enumerate(names):
        pen.text((2, label * step), name, fill="black", font=font)
    for row in rows:
        left, top = (counts[row["label"]] + row["is_synthetic"]) * TILE, row["label"] * step
        counts[row["label"]] += 1
        sheet.paste(row["image"].resize((TILE - 4, TILE - 4)), (left + 2, top + 13))
        pen.text((left + 4, top + TILE + 9), row["row_id"][:9], fill="gray", font=font)
    sheet.save(path)


def remembered(path: Path, key: Any, measure: Callable[[], Iterable[float]]) -> list[float]:
    """Numbers that are in a file already where it was written under the same key, else measured and written."""
    if path.exists() and (content := json.loads(path.read_text(encoding="utf-8")))["key"] == digest(key):
        return list(content["numbers"])
    numbers = list(measure())
    path.write_text(json.dumps({"key": digest(key), "numbers": numbers}), encoding="utf-8")
    return numbers


class Trial:
    """One dataset: its 5-shot images, its test split, the two networks that measure, and the runs."""

    def __init__(self, data: Path, given: argparse.Namespace) -> None:
        self.given, self.work = given, given.work.resolve() / data.name
        self.source = staged(data, self.work)
        # Any run holds the protocol's draw of real images; this one needs no network of ours.
        folder, first = generate("txt2img", self.source, given, self.work)
        rows, self.names = load(folder), first.class_names
        self.real = _only(rows, "real")
        self.side = int(rows[len(rows) - 1]["width"])
        self.few, self.test = Pictures.of(self.real, self.side), Pictures.of(load(folder, split="test"), self.side)
        self.settings = [given.iterations, self.side, self.real["source_ids"][:]]

    def whole(self) -> Pictures:
        """The whole real training split."""
        sources = read_real("imagefolder", str(self.source)).train.sources
        images = [Image.open(self.source / source.key) for source in sources]
        return Pictures.of({"image": images, "label": [source.label for source in sources]}, self.side)

    def trained(self, name: str) -> Path:
        """The folder of a network, trained at the first call: `whole` measures distances, `few` is GeNIe-Ada's."""
        folder = self.work / f"{name}-{digest(self.settings)[:8]}"
        if not (folder / "preprocessor_config.json").exists():
            pictures, longer = (self.whole(), 2) if name == "whole" else (self.few, 1)
            saved(learn([pictures], self.names, longer * self.given.iterations, 0), folder, self.side)
        return folder

    def accuracies(self, name: str, plan_id: str, *made: Pictures) -> list[float]:
        """Of classifiers on the 5-shot images and what was made beside them; one number a seed."""

        def measure() -> Iterator[float]:
            for seed in range(self.given.seeds):
                yield accuracy(learn([self.few, *made], self.names, self.given.iterations, seed), self.test)

        return remembered(self.work / f"accuracy-{name}.json", [*self.settings, plan_id, self.given.seeds], measure)

    def line(self, method: str) -> str:
        """Run one method and measure what it made."""
        folder, assembled = generate(method, self.source, self.given, self.trained("few"))
        rows = load(folder)
        made = _only(rows, "generated")
        contact_sheet(rows, self.names, self.work / f"{method}.png")
        [away] = remembered(
            self.work / f"distance-{method}.json",
            [*self.settings, assembled.plan_id],
            lambda: [distance(made, self.real, self.trained("whole"))],
        )
        alone = self.accuracies("real", "")
        beside = self.accuracies(method, assembled.plan_id, Pictures.of(made, self.side))
        return _columns(self.work.name, method, len(made), f"{assembled.seconds:.0f}", f"{away:.3f}", alone, beside)


def _only(rows: Any, origin: str) -> Any:
    return rows.select([i for i, one in enumerate(rows["origin"]) if one == origin])


def _columns(*cells: Any) -> str:
    texts = [spread(cell) if isinstance(cell, list) else str(cell) for cell in cells]
    widths = (-10, -10, 5, 8, 9, 14, 16)
    return " ".join(t.ljust(-w) if w < 0 else t.rjust(w) for t, w in zip(texts, widths, strict=True))


def spread(values: Sequence[float]) -> str:
    """`71.2 +- 1.3` in per cent; one value alone has no deviation."""
    return f"{100 * mean(values):.1f}" + (f" +- {100 * stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Print the table."""
    given = arguments()
    absent = [str(path) for path in (*given.data, given.model) if not path.is_dir()]
    if absent:
        raise SystemExit(f"{absent[0]}: no such folder; give --data (train/ and test/ of class folders) and --model.")
    print(_columns("dataset", "method", "rows", "seconds", "distance", "real alone, %", "with images, %"), flush=True)
    for data in given.data:
        trial = Trial(data.resolve(), given)
        for method in given.methods:
            print(trial.line(method), flush=True)


if __name__ == "__main__":
    main()

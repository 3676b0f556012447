"""Suites of the papers made small: two classes of tiny drawn pictures, tiny networks, two steps of learning.

What stays is what a suite decides: its sets with their methods, sources, filters and labels, its mixing and its lines.
"""

import random
from pathlib import Path

from PIL import Image, ImageDraw

from diffaug_datasets.core.protocols import Protocol, parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.suite import Bench, Entry, Network, Probe
from diffaug_datasets.planning.catalogue import config_recipe, merged

CLASSES = {"disc": (4, 6), "square": (4, 6)}  # name -> test and training pictures
SIDE = 32
STEPS = 10  # of denoising: the smallest strength, 0.1, is one of them
TINY = {"id": "tiny", "dtype": "float32", "height": SIDE, "width": SIDE, "revision": None}


def draw_pictures(folder: Path) -> Path:
    """An image folder of discs and squares, `train` and `test`, each picture another one."""
    rng = random.Random(0)
    for name, counts in CLASSES.items():
        for split, count in zip(("test", "train"), counts, strict=True):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randrange(90) for _ in range(3)))
                x, y = rng.randrange(2, 8), rng.randrange(2, 8)
                box, colour = (x, y, x + 20, y + 20), tuple(rng.randrange(160, 256) for _ in range(3))
                pen = ImageDraw.Draw(image)
                pen.ellipse(box, fill=colour) if name == "disc" else pen.rectangle(box, fill=colour)
                image.save(place / f"{number}.png")
    (folder / "confusion.csv").write_text("5,1\n1,5\n", encoding="utf-8")
    return folder


def shrunk_recipe(entry: Entry, pictures: Path, draw: int) -> Recipe:
    """A set of a suite over the drawn pictures, 2 images per class."""
    recipe = config_recipe(entry.set, **entry.changes)
    whole = recipe.model_dump(mode="json", by_alias=True)
    config = whole["config"]
    small: dict[str, object] = {key: STEPS for key in ("num_inference_steps", "inversion_steps") if key in config}
    small |= {key: "tiny" for key in ("encoder",) if key in config}
    if "concepts" in type(recipe.method_config).model_fields:
        small["concepts"] = {"steps": 2, "batch": 2}
    if recipe.method == "diff_ii":
        small["suffixes"] = ["on a table.", "in the dark."]
    if recipe.method == "diffusion_inversion":
        small["embeddings"] = {"vectors": 2, "steps": 2, "batch": 2, "group": 12}
    if recipe.method == "retrieval":
        small |= {"pool": "fashion", "encoder": "tiny"}
    if recipe.config.get("sources") == "confused":
        small["top_confused"] = 1
        whole["confusion"] = str(pictures / "confusion.csv")
    scores = {key: "tiny" if key == "encoder" else value for key, value in whole["scores"].items() if value}
    changes = {
        "builder": "imagefolder",
        "source": str(pictures),
        "protocol": _shrunk_protocol(parse_protocol(recipe.protocol), draw).name,
        "config": small,
        "per_class": 2,
        "batch_size": 2,
    }
    return Recipe.from_dict({**merged(whole, changes), "backbone": TINY, "scores": scores})


def shrunk(bench: Bench, runs: list[Path], network: str) -> Bench:
    """The bench on finished runs: its probe on the packaged encoder, or a small network of its kind for an epoch.

    `network`: a small model of transformers, or `small_resnet`.
    """
    (classifier,) = bench.classifiers
    if isinstance(classifier, Probe):
        small: Probe | Network = classifier
    else:
        length = {"epochs": 1} if classifier.epochs else {"steps": 2}
        size = {**length, "batch_size": 4, "image_size": SIDE}
        name = "small_resnet" if classifier.kind == "scratch" else network
        small = classifier.model_copy(update={**size, "model": name})
    names = [entry.name for entry in bench.sets]
    mixings = [entry.mixing for entry in bench.sets]
    entries = tuple(
        Entry(set=str(run), name=names[place % len(names)], mixing=mixings[place % len(names)])
        for place, run in enumerate(runs)
    )
    changes = {"sets": entries, "encoders": ("tiny",), "classifiers": (small,), "count_bounds": (2, 1)}
    return bench.model_copy(
        update={**changes, "draws": (0,), "seeds": bench.seeds[:1], "more_real": (), "images_per_class": None}
    )


def _shrunk_protocol(protocol: Protocol, draw: int) -> Protocol:
    if protocol.kind == "shots":
        return Protocol("shots", 1 if protocol.ways else 2, draw, 2 if protocol.ways else 0)
    return Protocol(protocol.kind, {"full": 0, "long_tail": 2, "percent": 50}[protocol.kind], draw)

"""Suites of the papers made small: two classes of tiny drawn pictures, tiny networks, two steps of learning.

What stays is what a suite decides: its sets with their methods, sources, filters and labels, its mixing and its lines.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from diffaug_datasets.core.protocols import Protocol, parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.suite import Bench, Entry, Network, OtherTest, Probe
from diffaug_datasets.planning.catalogue import config_recipe, merged

CLASSES = ("disc", "square")
SPECIES = ("001.Black_footed_Albatross", "003.Sooty_Albatross")  # of CUB, for a bench that is tested on Waterbirds
COUNTS = {"test": 4, "train": 6}  # of each class
SIDE = 32
STEPS = 10  # of denoising: the smallest strength, 0.1, is one of them
TINY = {"id": "tiny", "dtype": "float32", "height": SIDE, "width": SIDE, "revision": None}


def draw_pictures(folder: Path, names: Sequence[str] = CLASSES) -> Path:
    """An image folder of discs and squares, `train` and `test`, each picture another one."""
    rng = random.Random(0)
    for name in names:
        for split, count in COUNTS.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                _picture(rng, name == names[0], rng.randrange(90)).save(place / f"{number}.png")
    (folder / "confusion.csv").write_text("5,1\n1,5\n", encoding="utf-8")
    return folder


def draw_waterbirds(folder: Path) -> Path:
    """Waterbirds in its own layout, discs and squares for birds: two of each species over land and two over water."""
    rng = random.Random(1)
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for kind, name in enumerate(SPECIES):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            place, split = number % 2, 0 if number > 3 else 2
            _picture(rng, kind == 0, 20 + 60 * place).save(folder / name / f"{number}.jpg")
            lines.append(f"{len(lines)},{name}/{number}.jpg,{kind},{split},{place},/x.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _picture(rng: random.Random, is_disc: bool, ground: int) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (ground, *(rng.randrange(90) for _ in range(2))))
    x, y = rng.randrange(2, 8), rng.randrange(2, 8)
    box, colour = (x, y, x + 20, y + 20), tuple(rng.randrange(160, 256) for _ in range(3))
    pen = ImageDraw.Draw(image)
    pen.ellipse(box, fill=colour) if is_disc else pen.rectangle(box, fill=colour)
    return image


def shrunk_recipe(entry: Entry, pictures: Path, draw: int) -> Recipe:
    """A set of a suite over the drawn pictures, 2 images per class."""
    recipe = config_recipe(entry.set, **entry.changes)
    whole = recipe.model_dump(mode="json", by_alias=True)
    config = whole["config"]
    steps = [key for key in ("num_inference_steps", "inversion_steps") if key in config]
    small: dict[str, object] = {key: STEPS for key in steps if key not in recipe.method_config.idle()}
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


def shrunk(bench: Bench, runs: list[Path], network: str, waterbirds: Path | None = None) -> Bench:
    """The bench on finished runs: its probe on the packaged encoder, or a small network of its kind for an epoch.

    `network`: a small model of transformers, or `small_resnet`. `waterbirds`: where those lie, if it is tested on them.
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
    test = None if bench.test is None else OtherTest(builder=bench.test.builder, source=str(waterbirds), partial=True)
    changes = {"sets": entries, "test": test, "encoders": ("tiny",), "classifiers": (small,), "count_bounds": (2, 1)}
    return bench.model_copy(
        update={**changes, "draws": (0,), "seeds": bench.seeds[:1], "more_real": (), "images_per_class": None}
    )


def _shrunk_protocol(protocol: Protocol, draw: int) -> Protocol:
    if protocol.kind == "shots":
        return Protocol("shots", 1 if protocol.ways else 2, draw, 2 if protocol.ways else 0)
    return Protocol(protocol.kind, {"full": 0, "long_tail": 2, "percent": 50}[protocol.kind], draw)

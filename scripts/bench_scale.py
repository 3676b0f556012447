"""What planning costs as sets grow: CPU seconds, peak memory, and how they grow, over generated folders of tiny images.

    python scripts/bench_scale.py [--rows 1000 10000 100000] [--methods txt2img genie diff_ii retrieval] [--drawn]
        [--json FILE]

Every size is a folder of its own: a tenth as many images as rows, in classes of 100. Every plan is drawn, priced and
written by a process of its own, whose CPU time (user and system, import included) and peak resident memory are those of
the operating system; `wall` is what a clock shows, beside whatever else the machine does. `again`: the same plan into
the same folder. Cost a row: CPU microseconds without those of the import. Exponent: log of the ratio of CPU seconds,
without those of the import, by log of the ratio of rows; 1 is linear.

`--drawn`: as many images that are no files take their places, so that what is measured is the plan itself: every row
drawn, sorted, hashed, priced, written, and opened again; not the reading and copying of images, which costs the same
for each of them. `again` is the opening then.
"""

import argparse
import hashlib
import io
import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

PER_IMAGE = 10
CLASS_IMAGES = 100
METHODS = ("txt2img", "genie", "diff_ii", "retrieval")
HEADINGS = ("method", "rows", "CPU s", "wall s", "again", "peak MB", "us a row", "exponent")
SECONDS = ("seconds", "wall_seconds", "import_seconds")

Cost = dict[str, Any]
"""Of `Measured`: its seconds but for `again_seconds`, and its peak memory."""


@dataclass(frozen=True)
class Measured:
    """One plan in a process of its own; `import_seconds` are part of `seconds`. Seconds of CPU but for `wall_seconds`,
    MB of 10^6 bytes.
    """

    method: str
    rows: int
    seconds: float
    wall_seconds: float
    import_seconds: float
    peak_mb: float
    plan_id: str
    again_seconds: float
    exponent: float | None = None

    @property
    def row_cost(self) -> float:
        """CPU microseconds a row, without those of the import."""
        return (self.seconds - self.import_seconds) / self.rows * 1e6


def write_images(folder: Path, count: int) -> Path:
    """So many different PNG files of 2 x 2 pixels, 100 a class, unless they are there."""
    if folder.exists():
        return folder
    for i in range(count):
        image = Image.new("RGB", (2, 2), (i >> 16, i >> 8 & 255, i & 255))
        path = folder / "train" / f"class {i // CLASS_IMAGES:05d}" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        path.write_bytes(encoded.getvalue())
    return folder


def recipe(method: str, images: Path, pool: Path) -> dict[str, Any]:
    """What is planned: ten rows an image, no scores."""
    config: dict[str, Any] = {"pool": str(pool), "encoder": "tiny", "query": "image"} if method == "retrieval" else {}
    if method == "diff_ii":
        config = {"suffixes": ["in the rain", "at night"]}
    content = {"builder": "imagefolder", "source": str(images), "protocol": "full", "method": method, "config": config}
    content |= {"per_image": PER_IMAGE, "include_test": False, "shard_rows": 1000, "batch_size": 16}
    return content | {"backbone": {"id": "tiny", "height": 32, "width": 32}, "scores": {"encoder": None, "judge": None}}


def plan_once(content: dict[str, Any], folder: Path) -> tuple[Cost, str]:
    """In a process of its own: what it costs, and the plan id."""
    begun = time.monotonic()
    from diffaug_datasets import Recipe, plan

    imported = time.process_time()
    warnings.simplefilter("ignore")  # of names such as `class 00000`
    run = plan(Recipe.model_validate(content), folder)
    return cost_since(begun, imported), run.plan.id


def cost_since(begun: float, imported: float) -> Cost:
    """What this process took until now, and its wall time since `begun`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.process_time(), time.monotonic() - begun, imported
    return {**dict(zip(SECONDS, (round(each, 2) for each in seconds), strict=True)), "peak_mb": round(peak / 1e6, 1)}


def draw_once(content: dict[str, Any], folder: Path, count: int) -> tuple[Cost, str, float]:
    """The same on stand-ins for so many images, and the CPU seconds of opening the run."""
    begun = time.monotonic()
    from diffaug_datasets import Recipe
    from diffaug_datasets.core.sources import Source, SourceTable
    from diffaug_datasets.planning.prepare import prepare
    from diffaug_datasets.planning.price import Photos, price
    from diffaug_datasets.run.store import Run
    from diffaug_datasets.sources.real import RealSet, recipe_facts

    imported = time.process_time()
    names = tuple(f"class {label:05d}" for label in range(-(-count // CLASS_IMAGES)))
    ids = (hashlib.sha256(str(i).encode()).hexdigest() for i in range(count))
    sources = tuple(Source(one, i // CLASS_IMAGES, str(i), size=75) for i, one in enumerate(ids))
    recipe = Recipe.model_validate({**content, "source": None})
    table = SourceTable("imagefolder", "train", names, names, "", sources)
    prepared = prepare(recipe, stand_ins=RealSet(table, None, lambda _split, _index: b"", recipe_facts(recipe)))
    price(prepared, folder, Photos(count, 75 * count, 75, 4 * count, 4))
    folder.mkdir(parents=True)
    Run(folder).write_plan(prepared.recipe, prepared.plan)
    cost, written = cost_since(begun, imported), time.process_time()
    opened = Run.open(folder).plan
    if opened.id != prepared.plan.id or len(opened.rows) != len(prepared.plan.rows):
        raise SystemExit(f"{folder}: another plan was read than was written")
    return cost, opened.id, round(time.process_time() - written, 2)


def draw(method: str, rows: int, work: Path) -> Measured:
    """Draw once."""
    count, pool = max(2 * CLASS_IMAGES, rows // PER_IMAGE), write_images(work / "pool", 1000)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as one:
        given = (recipe(method, pool, pool), work / f"{method}-{rows}", count)
        cost, plan_id, opened = one.apply(draw_once, given)
    return Measured(method, rows, **cost, plan_id=plan_id, again_seconds=opened)


def measure(method: str, rows: int, work: Path) -> Measured:
    """Plan twice."""
    images = write_images(work / f"images-{rows}", max(2 * CLASS_IMAGES, rows // PER_IMAGE))
    content, folder = recipe(method, images, images), work / f"{method}-{rows}"
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        cost, plan_id = pool.apply(plan_once, (content, folder))
    with context.Pool(1, maxtasksperchild=1) as pool:
        again, same = pool.apply(plan_once, (content, folder))
    if same != plan_id:
        raise SystemExit(f"{method}: planned again, {plan_id} became {same}")
    return Measured(method, rows, **cost, plan_id=plan_id, again_seconds=again["seconds"])


def line(one: Measured) -> str:
    """A row of the table."""
    exponent = "" if one.exponent is None else f"{one.exponent:.2f}"
    numbers = f"{one.seconds:>9.2f} {one.wall_seconds:>9.2f} {one.again_seconds:>9.2f} {one.peak_mb:>9.1f}"
    return f"{one.method:>9} {one.rows:>9,} {numbers} {one.row_cost:>9.1f} {exponent:>9}".rstrip()


def main() -> None:
    """Measure and print a table; with --json write it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as work:
        print(" ".join(f"{name:>9}" for name in HEADINGS), flush=True)
        for method in given.methods:
            before: Measured | None = None
            for rows in sorted(given.rows):
                one = (draw if given.drawn else measure)(method, rows, Path(work))
                if before:
                    grown = math.log(one.row_cost / before.row_cost) / math.log(one.rows / before.rows)
                    one = replace(one, exponent=round(1 + grown, 2))
                found.append(one)
                before = one
                print(line(one), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

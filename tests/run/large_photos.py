"""Plans and generates with large photographs in this process and prints what it held: `large_photos.py FOLDER METHOD`.

Memory is the anonymous part of the resident set: mapped files are given back to whoever needs the room. The bounds are
set low, so that a few hundred megabytes of photographs are far beyond them.
"""

import json
import os
import re
import sys
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

from PIL import Image

PHOTOS, SIDE = 18, 2_400
BOUND = 48 << 20


def anonymous() -> int:
    """Bytes of memory that are this process's own."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


class Peak:
    """The most that this process held while a block ran."""

    def __enter__(self) -> "Peak":
        self.bytes, self._over = 0, Event()
        self._watch = Thread(target=self._sample)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _sample(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, anonymous())
            sleep(0.002)


def photos(folder: Path) -> Path:
    """Uncompressed pictures of 17 MB, no two alike: sparse files, so that they cost no disk."""
    whole = folder / "whole.bmp"
    Image.new("RGB", (SIDE, SIDE)).save(whole)
    head, size = whole.read_bytes()[:64], whole.stat().st_size
    whole.unlink()
    for number in range(PHOTOS):
        path = folder / "photos" / "ab"[number % 2] / f"{number:02}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(head)
            file.seek(size - 8)
            file.write((number + 1).to_bytes(8, "little"))
    return folder / "photos"


def main(folder: Path, method: str) -> dict[str, Any]:
    """Plan, then generate, in one process."""
    from diffaug_datasets.core import memory
    from diffaug_datasets.core import plan as planning
    from diffaug_datasets.planning import prepare
    from diffaug_datasets.run import context, shards

    planning.SHARD_BYTES = 4 * BOUND
    memory.WINDOW_BYTES = context.SOURCE_BYTES = BOUND
    shards.BATCH_BYTES = BOUND // 2
    from small_runs import small_run

    from diffaug_datasets.planning.catalogue import config_recipe
    from diffaug_datasets.planning.price import LIBRARY_BYTES, PLANNING_BYTES, price
    from diffaug_datasets.run.assembly import assemble
    from diffaug_datasets.run.worker import Worker

    backbone = {"id": "tiny", "height": 32, "width": 32, "dtype": "float32"}
    small = {"per_class": 9, "batch_size": 2, "include_test": False, "config": {"num_inference_steps": 2}}
    recipe = config_recipe(f"imagefolder_full_{method}", source=str(photos(folder)), backbone=backbone, **small)
    shards.features(())  # loads `datasets`, which whoever writes a shard holds
    before = anonymous()
    with Peak() as to_plan:
        prepared = prepare.prepare(recipe)
        quote = price(prepared, folder / "run")
        run = prepare.write_run(prepared, folder / "run")
    warm = Worker(small_run(folder / "warm", "realmix"))  # loads what every worker holds
    warm.work()
    warmed = anonymous()
    with Peak() as of_worker:
        worker = Worker(run)
        worker.work()
        assemble(run)
    written = sum(path.stat().st_size for path in (folder / "run" / "shards").iterdir())
    sizes = {"real": [len(shard.rows) for shard in run.plan.real_shards()], "written": written}
    grown = {"plan": to_plan.bytes - before, "worker": of_worker.bytes - warmed, "libraries": warmed}
    said = {"said_plan": quote.memory_to_plan - PLANNING_BYTES, "said_worker": quote.memory_per_worker - LIBRARY_BYTES}
    return {**sizes, **grown, **said, "said_disk": quote.bytes_needed, "name": os.fspath(run.folder)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))

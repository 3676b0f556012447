"""What a shard's end costs: how long no batch is made between two shards, where an image takes its encoder 30 ms.

    python scripts/measure_shard_end.py [--milliseconds 30]

Makes rows of the packaged images in exact and in fast, with an encoder that sleeps, and reads the run's own events: the
time from a shard's last batch to the beginning of the next shard, as a share of the time from shard to shard. PASS:
under 3 % in fast.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffaug_datasets.core.rows import Row
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run import worker
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.worker import WorkerOptions

MOST = 0.03
encode = worker.made_rows


def shares(folder: Path, profile: str) -> list[float]:
    """By shard but the last: the share of its time in which nothing was made, before the next one begins."""
    settings = {"per_class": 4, "batch_size": 8, "shard_rows": 8, "profile": profile, "include_test": False}
    scores = {"scores": {"encoder": None, "judge": None}, "filters": []}
    recipe = config_recipe("fashion_2shot_txt2img", config={"num_inference_steps": 12}, **scores, **settings)
    run = write_run(prepare(recipe), folder / profile)
    execute(run, WorkerOptions(device="cpu"), workers=1)
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text("utf-8").splitlines()]
    last = {event["unit"]: event["time"] for event in events if event["event"] == "batch"}
    begun = {event["unit"]: event["time"] for event in events if event["event"] == "start"}
    names = sorted(begun, key=lambda name: begun[name])
    pairs = list(pairwise(names))[1:]  # the first shard has the loading of the model in it
    return [(begun[after] - last[name]) / (begun[after] - begun[name]) for name, after in pairs]


def main() -> None:
    """Measure both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milliseconds", type=float, default=30)
    pause = parser.parse_args().milliseconds / 1000

    def slowly(made: Sequence[Any], *rest: Any) -> list[Row]:
        time.sleep(pause * len(made))
        return encode(made, *rest)

    worker.made_rows = slowly  # type: ignore[attr-defined]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for profile in ("exact", "fast"):
            found[profile] = statistics.median(shares(Path(name), profile))
            print(f"{profile}: nothing is made for {found[profile]:.1%} of a shard's time, at its end", flush=True)
    print("PASS" if found["fast"] < MOST else "FAIL")
    raise SystemExit(found["fast"] >= MOST)


if __name__ == "__main__":
    main()

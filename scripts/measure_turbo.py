"""What turbo costs in labels: the share of images that the packaged judge takes for their class, against exact.

    python scripts/measure_turbo.py [--method txt2img] [--per-class 20] [--steps 24] [--interval 2]

Makes the same rows of the packaged images in both profiles and prints their U-Net evaluations, what was left out, and
label accuracy. PASS: accuracy within two points of exact at half the evaluations, which are those planned. Of an odd
number of steps, which many rows of genie have, the larger half is computed.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pyarrow.compute as pc

from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.work import shard_evaluations
from diffaug_datasets.run.worker import WorkerOptions

MOST_POINTS = 2.0


def made(folder: Path, given: argparse.Namespace, profile: dict[str, object]) -> tuple[float, int, int, int]:
    """(accuracy in percent, evaluations, those planned, those left out) of a run in a profile."""
    config = {"num_inference_steps": given.steps}
    settings = {"per_class": given.per_class, "config": config, "include_test": False, "profile": profile}
    batches = {"batch_size": 10, "shard_rows": 10 * given.per_class}
    prepared = prepare(config_recipe(f"fashion_5shot_{given.method}", **settings, **batches))
    run = write_run(prepared, folder / str(profile["name"]))
    execute(run, WorkerOptions(device="cpu"), workers=1)
    run = Run.open(run.folder)
    shards = run.plan.shards()
    tables = [run.table(shard) for shard in shards]
    right = sum(pc.sum(pc.equal(t.column("label"), t.column("judge_label"))).as_py() for t in tables)
    receipts = [json.loads(run.receipt_path(shard.name).read_text("utf-8")) for shard in shards]
    left_out = sum(receipt["measured"].get("evaluations_skipped", 0) for receipt in receipts)
    planned = sum(computed for computed, _ in shard_evaluations(run.recipe, run.plan).values())
    accuracy = 100 * right / sum(len(table) for table in tables)
    return accuracy, sum(receipt["evaluations"] for receipt in receipts), planned, left_out


def main() -> None:
    """Make, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="txt2img")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--interval", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        exact = made(Path(name), given, {"name": "exact"})
        turbo = made(Path(name), given, {"name": "turbo", "interval": given.interval})
    print(f"{given.method}, {10 * given.per_class} images of Fashion, {given.steps} steps")
    for word, (accuracy, count, planned, left_out) in (("exact", exact), (f"turbo {given.interval}", turbo)):
        counts = f"{count:,} evaluations ({planned:,} planned, {left_out:,} left out)"
        print(f"{word}: {counts}, {accuracy:.1f} % show their class")
    odd = 2 * 10 * given.per_class  # one step more of both branches, at most
    fine = turbo[0] >= exact[0] - MOST_POINTS and 2 * turbo[1] <= exact[1] + odd and turbo[1] == turbo[2]
    print("PASS" if fine else "FAIL")
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()

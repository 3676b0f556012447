"""How many evaluations of a plan are idle: rows that wait in a batch for a later start step, or only fill it up.

    python scripts/measure_idle.py [--rows 600] [--batch 16] [--shard 256]

Counted from plans on the packaged images, for methods whose rows differ in strength, in exact (shards of rows in their
order) and in fast (shards of rows of like work). PASS: at most 5 % in fast.
"""

import argparse

from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.run.work import shard_evaluations

METHODS = {"dafusion": "da_fusion", "diffmix": "diff_mix"}
MOST = 0.05


def idle_share(slug: str, rows: int, batch: int, shard: int, profile: str) -> tuple[int, float]:
    """(evaluations, share of them that is idle) of a plan of so many rows."""
    given = {"per_class": rows // 10, "batch_size": batch, "shard_rows": shard, "profile": profile}
    given["include_test"] = False
    prepared = prepare(config_recipe(f"fashion_5shot_{slug}", **given))
    counts = shard_evaluations(prepared.recipe, prepared.plan).values()
    computed, idle = (sum(part) for part in zip(*counts, strict=True))
    return computed, idle / computed


def main() -> None:
    """Plan and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard", type=int, default=256)
    given = parser.parse_args()
    fine = True
    print(f"{given.rows} rows in batches of {given.batch}, shards of {given.shard}")
    for slug, name in METHODS.items():
        shares = {p: idle_share(slug, given.rows, given.batch, given.shard, p) for p in ("exact", "fast")}
        words = [f"{profile} {idle:.1%} of {count:,} evaluations" for profile, (count, idle) in shares.items()]
        print(f"{name}: idle in {', in '.join(words)}")
        fine = fine and shares["fast"][1] <= MOST
    print("PASS" if fine else "FAIL")
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()

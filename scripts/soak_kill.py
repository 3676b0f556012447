"""Kill a generating process 100 times at random moments; every resumed run must end at the same bytes.

python scripts/soak_kill.py [--kills 100] [--seed 1]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "run"))

from kills import Planned, kill_at_random
from small_runs import small_run


def main() -> None:
    """Plan a small Diff-II run, measure it, kill it, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small_run(Path(folder) / "run", "diffii")
        planned = Planned.measure(Path(folder) / "run")
        begin = time.monotonic()
        hit = kill_at_random(planned, given.kills, given.seed)
    print(
        f"{given.kills} kills (seed {given.seed}), {hit} while at work, over runs of {planned.seconds:.1f} s: "
        f"all resumed to the same bytes in {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()

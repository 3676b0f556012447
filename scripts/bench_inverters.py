"""Does it change what a classifier learns which way Diff-II inverts? A bench of photographs, one set per inverter.

    python scripts/bench_inverters.py DATA [--model DIR] [--noun flower] [--draws 3] [--out DIR]     resumable

DATA and MODEL are as `bench_photos.py` has them; tokens start at the classes' names, which MODEL should know. The
sets differ in `inverter` alone, so that in a draw all have the same real images, concepts, pairs, turns and suffixes.
After the bench's table it prints for every inverter how its inversions are (means over draws of what a run measures
of its real images) and, for every classifier, the accuracy and its paired difference to `ddim` and to the real images
alone, with Student's 95 % intervals.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import bench_photos
import numpy as np

from diffaug_datasets.cli import main as diffaug
from diffaug_datasets.evaluate.record import KeptBench, read_bench
from diffaug_datasets.evaluate.runs import planned_runs
from diffaug_datasets.evaluate.statistics import paired_difference
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.release.provenance import INVERSIONS
from diffaug_datasets.run.execute import generate
from diffaug_datasets.run.scores import measured_rows
from diffaug_datasets.run.store import Run

INVERTERS = ("ddim", "midpoint", "bdia", "edict")
REAL = "real"
HEADS = ("PSNR, dB", "norm", "kurtosis", "self-interpolation, dB")


def spec(given: argparse.Namespace) -> Bench:
    """The bench of `bench_photos.py` with Diff-II alone, once for each inverter."""
    whole = bench_photos.spec(given)
    (plain,) = (entry for entry in whole.sets if entry.name == "diffii")
    config = {**plain.changes["config"], "concepts": {**plain.changes["config"]["concepts"], "init": "{name}"}}
    sets = tuple(
        plain.model_copy(update={"name": name, "changes": {"config": {**config, "inverter": name}}})
        for name in given.inverters
    )
    title = f"{whole.title}, Diff-II's inverters"
    return whole.model_copy(update={"title": title, "sets": sets, "more_real": (), "controls": (REAL,)})


def make(bench: Bench, out: Path) -> None:
    """Make the runs that the bench will find finished: the concepts of a draw are learned once, for all inverters."""
    first: dict[int, Path] = {}
    for planned in planned_runs(bench, out):
        if not planned.is_finished and planned.drawn:
            planned.folder.parent.mkdir(parents=True, exist_ok=True)
            run = replace(planned.drawn, folder=planned.folder).write()
            shared = [first[planned.trial]] if planned.trial in first else []
            generate(run, workers=1, device="cpu", fits_from=shared, progress=sys.stderr)
        first.setdefault(planned.trial, planned.folder)


def inversions(kept: KeptBench) -> Iterator[Sequence[str]]:
    """A line for every set: what was measured of its inverted real images, mean and deviation over images."""
    yield ("inverter", *HEADS, "images")
    for name in kept.lines:
        found: dict[str, list[float]] = defaultdict(list)
        for line in kept.record.lines:
            rows = measured_rows(Run.open(line.place)) if line.name == name else {}
            for scores in rows.values():
                told = {key: getattr(scores, key) for key in INVERSIONS}
                for key, value in told.items():
                    if value is not None:
                        found[key].append(value)
        cells = [f"{fmean(found[key]):.3f} +- {stdev(found[key]):.3f}" for key in INVERSIONS]
        yield (name, *cells, str(len(found[INVERSIONS[0]])))


def accuracies(kept: KeptBench) -> Iterator[Sequence[str]]:
    """A line for every set and classifier."""
    yield ("classifier", "inverter", "accuracy, %", "over ddim", "over real")
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in sorted(kept.results, key=lambda one: kept.draws.index(one.receipt.cell.draw)):
        cell = result.receipt.cell
        values[cell.classifier, cell.line][cell.draw].append(result.receipt.accuracy)
    for classifier in dict.fromkeys(name for name, _ in values):
        of = {line: np.array([fmean(v) for v in by.values()]) for (c, line), by in values.items() if c == classifier}
        for line in kept.lines:
            told = [against(of[line], of[base]) if base in of and base != line else "" for base in ("ddim", REAL)]
            yield (classifier, line, f"{100 * of[line].mean():.1f}", *told)


def against(ours: np.ndarray, base: np.ndarray) -> str:
    """`+1.3 (-0.2 to +2.8)`, '' of a single draw."""
    if len(ours) < 2:
        return ""
    apart = paired_difference(ours, base)
    return f"{100 * apart.value:+.1f} ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"


def show(lines: Sequence[Sequence[str]]) -> None:
    """In columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main() -> None:
    """Write the bench, make what it lacks, print the tables."""
    given = arguments()
    bench_photos.check(given)
    out = given.out or Path("runs") / f"bench-inverters-{given.data.name}"
    bench = spec(given)
    path = bench_photos.write(bench, out)
    make(bench, out)
    try:
        diffaug(["bench", str(path), "--out", str(out)])
    except SystemExit as end:  # the command line ends so, well or not
        if end.code:
            raise
    kept = read_bench(out)
    for table in (inversions, accuracies):
        print()
        show(list(table(kept)))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = bench_photos.parser(__doc__)
    parser.add_argument("--inverters", nargs="+", choices=INVERTERS, default=list(INVERTERS))
    parser.set_defaults(draws=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()

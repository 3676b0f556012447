"""Why is a line of a finished bench below the real images alone: its images, or how they are mixed?

    python scripts/explain_bench.py BENCH_FOLDER [--encoder NAME] [--csv FILE]

Every set is given once more to the first classifier on frozen features, in four ways that differ in one thing each from
what the bench did:

- `confirmed`: only the images in which the run's oracle (for Fashion the packaged judge) sees their label;
- `quarter`: as much mass of real images as with p = 0.25, so that the synthetic ones count half as much;
- `hard`: their hard labels, where the method gives soft ones;
- `as benched`: nothing changed, which must give the bench's own numbers.

Printed are means over the draws of the accuracy in percent and, in brackets, of the paired difference to real alone
with Student's 95 % interval, in a long tail to `rebalanced`, real images in the place of the synthetic ones;
`agreement` is the share of images that the judge gives their own label. What rises above real with `confirmed` was
kept down by wrong images; what rises with `quarter` by the mixing; what does neither shows its classes and teaches
nothing that the real images do not.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffaug_datasets.evaluate.bench import load_encoders
from diffaug_datasets.evaluate.classifiers import fit
from diffaug_datasets.evaluate.draws import Draw, Line, read_set
from diffaug_datasets.evaluate.features import places_by_origin
from diffaug_datasets.evaluate.frozen import Features
from diffaug_datasets.evaluate.record import KeptBench, read_bench
from diffaug_datasets.evaluate.statistics import paired_difference
from diffaug_datasets.evaluate.suite import Mixing, Probe
from diffaug_datasets.evaluate.training_sets import TrainingSet
from diffaug_datasets.release.leakage import Looks
from diffaug_datasets.release.read import load

WAYS = ("as benched", "confirmed", "quarter", "hard")


@dataclass
class Explained:
    """A set under an encoder: shares of images that show their class, and accuracies by way, a value per draw."""

    agreement: list[float] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def printed(self, encoder: str, line: str, control: str, real: Sequence[float]) -> dict[str, str]:
        """As a row of text. `control`: what `real`, its accuracies, is called."""
        told = {"encoder": encoder.split("@")[0], "line": line, control: f"{100 * np.mean(real):.1f}"}
        told["agreement"] = f"{100 * np.mean(self.agreement):.1f}" if self.agreement else ""
        return told | {way: against(self.accuracy.get(way, ()), real) for way in WAYS}


def judged_right(folder: Path) -> NDArray[np.bool_] | None:
    """For each synthetic image of a run, in the order of its rows, whether the oracle sees its label [n].

    None for a run at which none has looked.
    """
    rows = load(str(folder), None, "train")
    columns = {name: rows[name][:] for name in ("row_id", "label", "judge_label")}
    if not any(seen is not None for seen in columns["judge_label"]):
        if not (folder / "quality.parquet").is_file():
            return None
        quality = pq.read_table(folder / "quality.parquet", columns=["row_id", "seen_label"]).to_pydict()
        of_row = dict(zip(quality["row_id"], quality["seen_label"], strict=True))
        columns["judge_label"] = [of_row.get(row_id) for row_id in columns["row_id"]]
    _, made = places_by_origin(rows, str(folder))
    if all(columns["judge_label"][place] is None for place in made):
        return None
    return np.array([columns["judge_label"][place] == columns["label"][place] for place in made])


def ways(draw: Draw, line: Line, mixing: Mixing, right: NDArray[np.bool_] | None) -> Iterator[tuple[str, TrainingSet]]:
    """The line as the bench had it, and with one thing changed each."""
    whole = TrainingSet(line.name, draw.real, float(len(draw.real)), line.synthetic, mixing)
    yield "as benched", whole
    if right is not None and right.any():
        yield "confirmed", replace(whole, synthetic=line.synthetic.select(np.flatnonzero(right).tolist()))
    yield "quarter", replace(whole, mixing=mixing.model_copy(update={"probability": mixing.probability / 2}))
    if (line.synthetic.labelled.soft.max(1) < 1).any():
        yield "hard", replace(whole, mixing=mixing.model_copy(update={"soft_labels": False}))


def rule_of(kept: KeptBench) -> Mixing:
    """The mixing of the bench with its rule, as its cells state it."""
    mixing = kept.spec.mixing
    if mixing.rule:
        return mixing
    is_long_tail = any("lt_inverse" in result.receipt.cell.setting for result in kept.results)
    return mixing.model_copy(update={"rule": "lt_inverse" if is_long_tail else "class"})


def explained(kept: KeptBench, only: str | None = None) -> Iterator[dict[str, str]]:
    """One row per encoder and set. `only`: the encoder whose name begins so."""
    looks = Looks()
    probe, mixing = next(one for one in kept.spec.classifiers if isinstance(one, Probe)), rule_of(kept)
    penalty = probe.penalty if isinstance(probe.penalty, float) else 1.0
    control = "rebalanced" if mixing.rule == "lt_inverse" else "real"
    for encoder in load_encoders(kept.spec, "cpu"):
        if not encoder.name.startswith(only or ""):
            continue
        features, real = Features(encoder, kept.folder), []
        found: dict[str, Explained] = defaultdict(Explained)
        for key in kept.draws:
            places = {line.name: Path(line.place) for line in kept.record.lines if line.draw == key}
            read = {name: read_set(str(place), looks=looks) for name, place in places.items()}
            draw = next(iter(read.values()))[0]
            features.prepare([draw.real, draw.test, *(line.synthetic for _, line in read.values())])

            def accuracy(learned: TrainingSet, draw: Draw = draw, features: Features = features) -> float:
                classifier = fit(probe.kind, learned.examples(features), penalty)
                return classifier.accuracy(features(draw.test), draw.test.labelled.labels.tolist())

            stand_ins = draw.real if control == "rebalanced" else None
            real.append(accuracy(TrainingSet(control, draw.real, float(len(draw.real)), stand_ins, mixing)))
            for name, (_, line) in read.items():
                right = judged_right(places[name])
                if right is not None:
                    found[name].agreement.append(float(right.mean()))
                for way, learned in ways(draw, line, mixing, right):
                    found[name].accuracy[way].append(accuracy(learned))
        yield from (one.printed(encoder.name, name, control, real) for name, one in found.items())


def against(values: Sequence[float], real: Sequence[float]) -> str:
    """`81.2 (+1.3, +0.2 to +2.4)`, '' where there is none."""
    if not values:
        return ""
    apart = paired_difference(np.array(values), np.array(real))
    low, high = 100 * apart.low, 100 * apart.high
    return f"{100 * np.mean(values):.1f} ({100 * apart.value:+.1f}, {low:+.1f} to {high:+.1f})"


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of a finished bench, its runs beside it")
    parser.add_argument("--encoder", metavar="NAME", help="only this one of the bench's")
    parser.add_argument("--csv", type=Path, help="where the rows are written too")
    given = parser.parse_args()
    rows = list(explained(read_bench(given.bench), given.encoder))
    if not rows:
        parser.error(f"--encoder: got {given.encoder!r}, which the bench does not have")
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in rows[0]}, *rows]:
        print("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

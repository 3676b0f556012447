"""What each method's images do to a small classifier: 5-shot and long-tail Fashion-MNIST, the same budget for all.

    python scripts/bench_methods.py NAME [NAME ...]     some lines, e.g. real classic diffii genie; resumable
    python scripts/bench_methods.py --table             print what is known and write it to docs/bench_methods.csv
    python scripts/bench_methods.py NAME --confirmed    why is a line low? with those images that the judge confirms
    python scripts/bench_methods.py NAME --without WORD the same with those whose prompts lack some words
    python scripts/bench_methods.py NAME --iterations N the same with another number of iterations

A line is a baseline or a method (its name in config names): `real` = the real images alone, `duplicated` = half of
every batch are copies of them, `classic` = mirrored and shifted by up to 4 of 32 pixels at random; a method has half
of every batch from its 5 images per real image. The classifier (ResNet, 0.2 million weights) learns from scratch for
400 iterations, from soft labels where a method gives such, nothing is tuned, and the last iteration is measured on the
packaged 1,000 test images. `label accuracy` is the share of synthetic images that the packaged judge (91.8 % on real
images) gives their own label. After --minutes a command stops; the same command goes on.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from try_photos import Pictures, accuracy, learn, spread

from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.read import load
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.store import Run

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "bench_methods.csv"
PROTOCOLS = {"5shot": 5, "lt100": 3}
BASELINES = ("real", "duplicated", "classic")
SIDE, SHIFT, ITERATIONS = 32, 4, 400


class Cell(NamedTuple):
    """One line of one trial: what the classifier reached, how many synthetic labels the judge confirms, and when."""

    accuracy: float
    label_accuracy: float
    commit: str


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    slugs = sorted(method.SLUG for method in discover_methods().values())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BASELINES, *slugs, []], metavar="NAME")
    parser.add_argument("--table", action="store_true", help="print and write what is known")
    parser.add_argument("--work", type=Path, default=Path("runs") / "bench_methods", help="run folders and results")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--trials", type=int, help="instead of 5 for 5-shot and 3 for the long tail")
    parser.add_argument("--per-image", type=float, default=5.0, help="synthetic images per real image")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of every classifier")
    parser.add_argument("--confirmed", action="store_true", help="only images whose label the judge confirms")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="only images without it in the prompt")
    parser.add_argument("--minutes", type=float, default=9.0, help="start nothing more after this time")
    return parser.parse_args()


def trials(given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(protocol, seed) of every trial."""
    for protocol in given.protocols:
        yield from ((protocol, seed) for seed in range(given.trials or PROTOCOLS[protocol]))


def planned(slug: str, protocol: str, seed: int, given: argparse.Namespace) -> Run:
    """The run folder of a method in a trial."""
    drawn = f"{protocol}_seed{seed}" if seed else protocol
    recipe = config_recipe(f"fashion_{drawn}_{slug}", per_image=given.per_image)
    return write_run(prepare(recipe), given.work / f"{protocol}-{seed}-{slug}")


def generated(run: Run, end: float) -> bool:
    """Whether a run is finished; if not, works on it until `end`."""
    if finished(run):
        return True
    line = [sys.executable, "-m", "diffaug_datasets", "generate", str(run.folder)]
    try:
        subprocess.run(line, check=True, timeout=max(1.0, end - time.monotonic()), stdout=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False
    return True


def real_pictures(run: Run, split: str) -> Pictures:
    """The real images of a split."""
    rows = load(run.folder, split=split)
    return Pictures.of(rows.select([i for i, origin in enumerate(rows["origin"]) if origin == "real"]), SIDE)


def made_rows(run: Run, given: argparse.Namespace) -> Any:
    """What the method put beside them, or the part of it that is asked for."""
    rows = load(run.folder, augmented_only=True)
    keep = [not given.confirmed or a == b for a, b in zip(rows["label"], rows["judge_label"], strict=True)]
    for column in ("prompt", "prompt_first"):
        told = [str(prompt).lower() for prompt in rows[column]]
        keep = [kept and not any(word in text for word in given.without) for kept, text in zip(keep, told, strict=True)]
    return rows.select([i for i, kept in enumerate(keep) if kept])


def made_pictures(rows: Any, classes: int) -> Pictures:
    """Images and labels, soft ones where the method gives such."""
    found = Pictures.of(rows, SIDE)
    if all(len(soft["class"]) == 1 for soft in rows["soft_label"]):
        return found
    return replace(found, labels=soft_labels(rows["soft_label"], classes))


def soft_labels(told: Sequence[dict[str, Any]], classes: int) -> torch.Tensor:
    """How much of each class the images show [n C]."""
    shares = torch.zeros(len(told), classes)
    for row, soft in zip(shares, told, strict=True):
        row[soft["class"]] = torch.tensor(soft["weight"])
    return shares


def measured(name: str, run: Run, seed: int, given: argparse.Namespace) -> Cell:
    """Train and test one line of a trial; `run` holds the trial's real images too."""
    real, names = real_pictures(run, "train"), run.plan.header.class_names
    parts = {"real": [real], "classic": [real], "duplicated": [real, real]}.get(name)
    confirmed = 1.0
    if parts is None:
        rows = made_rows(run, given)
        parts = [real, made_pictures(rows, len(names))]
        if parts[1].labels.ndim == 2:
            parts[0] = replace(real, labels=F.one_hot(real.labels, len(names)).float())
        confirmed = mean(float(a == b) for a, b in zip(rows["label"], rows["judge_label"], strict=True))
    model = learn(parts, names, given.iterations, seed, SHIFT if name == "classic" else None)
    return Cell(accuracy(model, real_pictures(run, "test")), confirmed, commit())


def commit() -> str:
    """The commit that is at work."""
    line = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def known(name: str, protocol: str, seed: int, given: argparse.Namespace) -> Path:
    """The file of a cell; one of a part of the images, or of other iterations, is no cell of the table."""
    part = [given.confirmed, given.without, given.iterations]
    if part == [False, [], ITERATIONS]:
        return Path(given.work) / "cells" / f"{protocol}-{seed}-{name}.json"
    return Path(given.work) / "parts" / f"{protocol}-{seed}-{name}-{digest(part)[:8]}.json"


def remembered(path: Path, key: Any, measure: Callable[[], Cell]) -> Cell:
    """The cell that is in a file already where it was written under the same key, else measured and written."""
    if path.exists() and (content := json.loads(path.read_text(encoding="utf-8")))["key"] == digest(key):
        return Cell(**content["cell"])
    cell = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": digest(key), "cell": cell._asdict()}), encoding="utf-8")
    return cell


def work_on(name: str, given: argparse.Namespace, end: float) -> bool:
    """All trials of a line; False where the time is over before they are done."""
    for protocol, seed in trials(given):
        run = planned("txt2img" if name in BASELINES else name, protocol, seed, given)
        if time.monotonic() > end or not generated(run, end):
            return False
        path = known(name, protocol, seed, given)
        cell = remembered(path, [run.plan.id, given.iterations], lambda: measured(name, run, seed, given))  # noqa: B023
        print(f"{name} {protocol} trial {seed}: {100 * cell[0]:.1f} %, labels {100 * cell[1]:.1f} %", flush=True)
    return True


def lines(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is known of every line and protocol."""
    slugs = sorted(method.SLUG for method in discover_methods().values())
    for protocol in given.protocols:
        for name in (*BASELINES, *slugs):
            paths = sorted((given.work / "cells").glob(f"{protocol}-*-{name}.json"))
            cells = [Cell(**json.loads(path.read_text(encoding="utf-8"))["cell"]) for path in paths]
            if cells:
                label = "-" if name in BASELINES else f"{100 * mean(c.label_accuracy for c in cells):.1f}"
                made = " ".join(dict.fromkeys(c.commit for c in cells))
                found = {"accuracy, %": spread([c.accuracy for c in cells]), "label accuracy, %": label}
                yield {"protocol": protocol, "line": name, "trials": len(cells), **found, "commit": made}


def write_table(given: argparse.Namespace, path: Path = TABLE) -> None:
    """Print the table and write it as CSV."""
    found = list(lines(given))
    if not found:
        raise SystemExit("nothing is known yet; name some lines first, e.g. real classic genie.")
    widths = {key: max(len(key), *(len(str(line[key])) for line in found)) + 2 for key in found[0]}
    for line in [{key: key for key in widths}, *found]:
        print("".join(str(line[key]).ljust(width) for key, width in widths.items()).rstrip())
    with path.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, list(widths), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def main() -> None:
    """Work on the named lines, or print the table."""
    given = arguments()
    end = time.monotonic() + 60 * given.minutes
    if given.table:
        write_table(given)
        return
    for name in given.names:
        if not work_on(name, given, end):
            raise SystemExit(f"{name}: not done yet after {given.minutes:g} minutes; the same command goes on.")


if __name__ == "__main__":
    main()

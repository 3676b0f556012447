"""Write the tables of finished benches for the documentation: `python scripts/write_results.py BENCH_FOLDER...`

`docs/bench_methods.csv` has every line of every bench in numbers; `docs/bench/NAME-CLASSIFIER.csv` has one classifier's
table in words, as `diffaug bench table` prints it, with the share of images that show their class and, where a bench
has groups, the gain in each. The folder's name is the bench's.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from diffaug_datasets.evaluate import words
from diffaug_datasets.evaluate.groups import table_of
from diffaug_datasets.evaluate.record import KeptBench, read_bench
from diffaug_datasets.evaluate.table import Judge, TableRow, by_judge

DOCS = Path(__file__).resolve().parents[1] / "docs"
LEFT_OUT = ("txt2img_corrected", "over_txt2img", "setting", "seeds", "evaluations", "steps")


def shown(kept: KeptBench) -> Mapping[str, float]:
    """Line -> share of its images that show their class to the oracle of their run, mean over draws."""
    found: dict[str, list[float]] = {}
    for line in kept.record.lines:
        place = Path(line.place) / "run.json"
        told = json.loads(place.read_text(encoding="utf-8")).get("shown") if place.is_file() else None
        classes = told["classes"] if told else []
        if judged := sum(one["images"] for one in classes):
            found.setdefault(line.name, []).append(sum(one["shown"] for one in classes) / judged)
    return {name: mean(values) for name, values in found.items()}


def stem(bench: str, judge: Judge) -> str:
    """`fashion_5shot-logistic-tiny`: the file of one classifier's table."""
    encoder, classifier, _ = judge
    short = encoder.split("@")[0].removeprefix("diffaug-").removesuffix("-encoder")
    return "-".join([bench, classifier, *([short] if short != classifier else [])]).replace(" ", "_").replace("/", "_")


def in_words(rows: Sequence[TableRow], agreement: Mapping[str, float]) -> Iterable[Sequence[str]]:
    """Head and lines of one classifier: all test images, then the gain in each group of them."""
    whole = [row for row in rows if not row.group]
    groups = list(dict.fromkeys(row.group for row in rows if row.group))
    gains = {(row.group, row.line): words.difference(row.gain) for row in rows}
    head, lines = words.columns(whole)
    yield [*head, "shows its class, %", *(f"gain, {group}" for group in groups)]
    for row, line in zip(whole, lines, strict=True):
        seen = agreement.get(row.line)
        yield [*line, "" if seen is None else f"{100 * seen:.1f}", *(gains[group, row.line] for group in groups)]


def write(path: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV file and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    print(path.relative_to(DOCS.parent))


def main(folders: Sequence[Path]) -> None:
    """Write what the module's text says."""
    numbers: list[dict[str, object]] = []
    for folder in folders:
        kept = read_bench(folder)
        agreement, rows = shown(kept), table_of(kept.answer, kept.spec)
        for judge, of_judge in by_judge(rows).items():
            write(DOCS / "bench" / f"{stem(folder.name, judge)}.csv", in_words(of_judge, agreement))
        for row in rows:
            flat = {name: value for name, value in row.flat().items() if not name.startswith(LEFT_OUT)}
            rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in flat.items()}
            numbers.append({"bench": folder.name} | rounded | {"shows_its_class": rounded_share(agreement, row)})
    write(DOCS / "bench_methods.csv", [list(numbers[0]), *(list(one.values()) for one in numbers)])


def rounded_share(agreement: Mapping[str, float], row: TableRow) -> float | None:
    """Of a line of all test images."""
    found = None if row.group else agreement.get(row.line)
    return None if found is None else round(found, 4)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])

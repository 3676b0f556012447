"""Answers of benches whose truth is known, with predictions, and folders that hold them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.files import write_atomically, write_text
from diffaug_datasets.evaluate.bench import Answer
from diffaug_datasets.evaluate.cells import Cell, CellReceipt, Result
from diffaug_datasets.evaluate.draws import Draw, Images, Labelled, Line
from diffaug_datasets.evaluate.record import keep_answer
from diffaug_datasets.evaluate.suite import Bench

NAMES = ("cat", "dog", "fox")


def result(folder: Path, draw: str, line: str, predicted: np.ndarray, seed: int = 0, **told) -> Result:
    """A cell on disk. Test image i has the label i % 3 and the name of its place for a digest."""
    labels = np.arange(len(predicted)) % len(NAMES)
    kind = {"encoder": "tiny@1", "classifier": "logistic", "setting": "p 0.5", **told.pop("kind", {})}
    cell = Cell(draw=draw, line=line, content="", seed=seed, stack="", **kind)
    keys = [f"{draw if told.pop('own_images', False) else ''}{place}" for place in range(len(labels))]
    table = pa.table({"pixel_sha256": keys, "label": labels, "predicted": predicted})
    done = write_atomically(folder / "cells" / f"{cell.key}.parquet", lambda path: pq.write_table(table, path))
    correct = labels == predicted
    told = {"images": 10, "mass": 5.0, "seconds": 0.5, **told}
    receipt = CellReceipt(cell=cell, predictions=done, accuracy=float(correct.mean()), **told)
    write_text(folder / "cells" / f"{cell.key}.json", receipt.model_dump_json())
    return Result(receipt, correct, table)


def guesses(rng: np.random.Generator, accuracy: float, images: int = 300) -> np.ndarray:
    """Predictions of which such a share is right."""
    labels = np.arange(images) % len(NAMES)
    return np.where(rng.random(images) < accuracy, labels, (labels + 1) % len(NAMES))


def simulated(
    folder: Path, lines: Mapping[str, float], draws: int = 5, seeds: Sequence[int] = (0,), rng_seed: int = 0, **told
) -> Answer:
    """Lines with a true gain over `real`, whose accuracy is 0.7."""
    rng = np.random.default_rng(rng_seed)
    results = [
        result(folder, str(draw), line, guesses(rng, 0.7 + gain + rng.normal(0, 0.005)), seed, **told)
        for draw in range(draws)
        for line, gain in {"real": 0.0, **lines}.items()
        for seed in seeds
    ]
    return Answer(tuple(map(str, range(draws))), (), tuple(results))


def nothing(classes: int) -> Images:
    """No image."""
    return Images(Labelled.hard([], classes), (), lambda _: None)  # type: ignore[arg-type, return-value]


def kept(folder: Path, answer: Answer, names: Sequence[str] = NAMES, place: str = "gone/set", **of_line) -> None:
    """Write what makes a folder of an answer a finished bench; its sets lie nowhere."""
    real = Images(Labelled.hard([0, 1, 2], len(names)), ("a", "b", "c"), lambda _: None)  # type: ignore[arg-type, return-value]
    draws = [Draw(key, tuple(names), real, nothing(len(names))) for key in answer.draws]
    named = dict.fromkeys(one.receipt.cell.line for one in answer.results if one.receipt.cell.line != "real")
    lines = [(d.key, Line(place, name, nothing(len(names)), of_line.get("leaks", ()))) for d in draws for name in named]
    keep_answer(folder, Bench.from_dict({"sets": [place]}), draws, lines, answer.results)

"""A bench's folder as it is read again: `bench.yaml`, `answer.json`, and the cells with their predictions.

`answer.json` says which cells are the answer of the last bench there, and where its sets lie, so that tables, pages and
cards need the folder alone, and pictures the sets as well. It is the same whoever made the cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from diffaug_datasets.core.errors import DiffAugError, RunError, one_line, shown
from diffaug_datasets.core.files import dump_yaml, read_text, sha256_file, write_text
from diffaug_datasets.evaluate.cells import CellReceipt, Result
from diffaug_datasets.evaluate.draws import Draw, Line
from diffaug_datasets.evaluate.suite import Bench
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.assembly import Assembled, finished

if TYPE_CHECKING:
    from diffaug_datasets.evaluate.bench import Answer

BENCH, ANSWER, CELLS = "bench.yaml", "answer.json", "cells"
SCHEMA = 1
MOST_BYTES = 1 << 28  # of answer.json
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")]


class KeptDraw(BaseModel):
    """A draw: its key, the names of its classes in label order, and how many real images each has."""

    model_config = ConfigDict(frozen=True)

    key: str
    class_names: tuple[str, ...]
    real: tuple[int, ...]


class KeptLine(BaseModel):
    """A set of a draw: its name in the table, where it lies, a sentence for each way in which it shows test images.

    `place`: without passwords; `seconds`: of workers that made all of it, None where the set does not say.
    """

    model_config = ConfigDict(frozen=True)

    draw: str
    name: str
    place: str
    config: str | None = None
    with_real: str | None = None
    leaks: tuple[str, ...] = ()
    seconds: float | None = None


class Record(BaseModel):
    """`answer.json`. `cells`: keys of all that the answer consists of; `notes`: what was left out, and why."""

    model_config = ConfigDict(frozen=True)

    schema_: int = Field(default=SCHEMA, alias="schema", le=SCHEMA)
    draws: tuple[KeptDraw, ...]
    lines: tuple[KeptLine, ...]
    cells: tuple[Key, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptBench:
    """A finished bench, from its folder alone."""

    folder: Path
    spec: Bench
    record: Record
    results: tuple[Result, ...]

    @property
    def draws(self) -> tuple[str, ...]:
        """Keys of the draws, in the order of the sets."""
        return tuple(draw.key for draw in self.record.draws)

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """Names of the sets in the table, in their order."""
        return tuple(dict.fromkeys(line.name for line in self.record.lines))

    @property
    def answer(self) -> "Answer":
        """The same as `bench` gave it, without the images of the sets."""
        from diffaug_datasets.evaluate.bench import Answer, bracket

        more_real = {bracket(count): count for count in self.spec.more_real if isinstance(count, int)}
        return Answer(self.draws, (), self.results, self.record.notes, more_real)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the first draw."""
        return self.record.draws[0].class_names

    @property
    def leaks(self) -> tuple[str, ...]:
        """A sentence for every way in which a set shows test images."""
        return tuple(f"{line.place}: {sentence}" for line in self.record.lines for sentence in line.leaks)


def keep_answer(
    folder: Path,
    spec: Bench,
    draws: Sequence[Draw],
    lines: Sequence[tuple[str, Line]],
    results: Sequence[Result],
    notes: Sequence[str] = (),
) -> None:
    """Write `bench.yaml` and `answer.json`. `lines`: with the key of their draw; `notes`: on what is left out.

    Raises:
        RunError: the folder cannot be written.
    """
    entries = {entry.set: entry for entry in spec.sets}
    kept = []
    for draw, line in lines:
        entry = entries.get(line.where)
        config, with_real = (entry.config, entry.with_real) if entry else (None, None)
        kept.append(
            KeptLine(
                draw=draw,
                name=line.name,
                place=_place(line.where),
                config=config,
                with_real=_place(with_real) if with_real else None,
                leaks=line.leaks,
                seconds=_seconds(line.where, config),
            )
        )
    record = Record(
        draws=tuple(
            KeptDraw(
                key=draw.key,
                class_names=draw.class_names,
                real=tuple((draw.real.labelled.labels == label).sum() for label in range(len(draw.class_names))),
            )
            for draw in draws
        ),
        lines=tuple(kept),
        cells=tuple(sorted(result.receipt.cell.key for result in results)),
        notes=tuple(notes),
    )
    keep_spec(folder, spec)
    write_text(folder / ANSWER, record.model_dump_json(indent=1, by_alias=True) + "\n")


def keep_spec(folder: Path, spec: Bench) -> None:
    """Write `bench.yaml`; addresses are without their passwords.

    Raises:
        RunError: the folder cannot be written.
    """
    content = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for entry in content["sets"]:
        entry |= {key: shown(entry[key]) for key in ("set", "with_real") if "://" in (entry.get(key) or "")}
    write_text(folder / BENCH, dump_yaml(content))


def read_bench(folder: Path) -> KeptBench:
    """The last bench of a folder, with the predictions of all its cells.

    Raises:
        RunError: no bench was finished there, or a file is not what it should be.
        RecipeError: `bench.yaml` cannot be read.
    """
    path = folder / ANSWER
    if not path.is_file():
        raise RunError(
            f"{folder}: holds no finished bench (no {ANSWER}); `diffaug bench SET... --out {folder}` makes one."
        )
    try:
        record = Record.model_validate_json(read_text(path, MOST_BYTES))
        if not record.draws or not record.cells:
            raise ValueError("names no draw or no cell")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({one_line(error)}); run the same bench again.") from None
    results = tuple(_result(folder / CELLS, key, record) for key in record.cells)
    return KeptBench(folder, Bench.from_yaml(folder / BENCH), record, results)


def _result(cells: Path, key: str, record: Record) -> Result:
    path = cells / f"{key}.json"
    try:
        receipt = CellReceipt.model_validate_json(read_text(path))
        file = cells / f"{key}.parquet"
        if receipt.cell.key != key or receipt.predictions.file != file.name:
            raise ValueError("speaks of another cell")
        if sha256_file(file) != receipt.predictions.sha256:
            raise ValueError("has other predictions beside it than it states")
        table = pq.read_table(file)
        labels, predicted = (table[name].to_numpy() for name in ("label", "predicted"))
        classes = {draw.key: len(draw.class_names) for draw in record.draws}.get(receipt.cell.draw)
        if classes is None or not len(labels) or min(labels.min(), predicted.min()) < 0:
            raise ValueError("has a draw or a label that is not there")
        if max(labels.max(), predicted.max()) >= classes:
            raise ValueError("has a label that no class has")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = one_line(error)
        raise RunError(f"{path}: is not a finished cell ({reason}); the same bench again makes it anew.") from None
    return Result(receipt, labels == predicted, table)


def _place(where: str) -> str:
    """Where a set lies, from whatever folder it is looked for; an address without its secrets."""
    path = Path(where)
    return str(path.absolute()) if "://" not in where and path.exists() else shown(where)


def _seconds(where: str, config: str | None) -> float | None:
    try:
        if (Path(where) / "plan.json").is_file():
            return Assembled.model_validate_json(read_text(Path(where) / "run.json", MOST_BYTES)).seconds
        if run := run_at(where):  # at an address
            done = finished(run)
            return done.seconds if done else None
        if "://" in where or re.fullmatch(r"[\w.-]+/[\w.-]+", where) or (Path(where) / "README.md").is_file():
            return Repository.open(where).release(config).seconds
    except (DiffAugError, OSError, ValueError):
        return None  # the set says nothing of its cost
    return None

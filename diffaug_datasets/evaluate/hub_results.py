"""A bench for others: the section of a card, and `.eval_results` of a model repository.

The section holds every line with its intervals, what could have been seen, and how to read it; nothing in it names a
place of the publisher's machine.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.files import dump_yaml
from diffaug_datasets.core.identity import __version__
from diffaug_datasets.evaluate.frame import CELLS_PARQUET, TABLE, cells_table, table_csv
from diffaug_datasets.evaluate.record import KeptBench
from diffaug_datasets.evaluate.table import TableRow, by_judge
from diffaug_datasets.evaluate.words import columns, difference, heading, what_could_be_seen, what_was_seen
from diffaug_datasets.release.bench_files import BenchFiles
from diffaug_datasets.release.card import markdown
from diffaug_datasets.release.publishing import HUB_NAME
from diffaug_datasets.release.targets import Retry

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

PLACE = re.compile(r"(?:^|[\s(@])(?:/|~|[A-Za-z]:\\)|://")  # a path or an address in a name
DATASET_URL = "https://huggingface.co/datasets/"


def bench_files(kept: KeptBench, rows: Sequence[TableRow]) -> BenchFiles:
    """What goes out of a bench; `rows`: its table, groups included.

    Raises:
        PublishError: a line or an encoder is named after a place of this machine.
    """
    for name in {name for row in rows for name in (row.line, row.encoder)}:
        if PLACE.search(name):
            raise PublishError(
                f"{kept.folder}: {name!r} names a place of this machine; give the set a `name` in the bench file, or "
                "the encoder by its Hub id, and run the bench again."
            )
    cells = BytesIO()
    pq.write_table(cells_table(kept.results), cells)
    tables = {TABLE: table_csv(rows).encode(), CELLS_PARQUET: cells.getvalue()}
    return BenchFiles(section(kept, rows), tables)


def section(kept: KeptBench, rows: Sequence[TableRow]) -> str:
    """Markdown: a table per classifier and group, with 95 % intervals, and what it rests on."""
    parts = [
        "## Does it help a classifier?",
        f"Classifiers with and without the synthetic images, at the same budget: {what_was_seen(rows)}. Gains are in "
        "points of accuracy on real test images, paired by draw. A verdict is that of a test at 5 %, corrected for the "
        f"number of lines (Holm). Made by `diffaug bench` of diffaug-datasets {__version__}; `bench/{CELLS_PARQUET}` "
        "has every single result.",
    ]
    parts += [f"**Leak**: {markdown(_placeless(sentence))}" for sentence in kept.leaks]
    for group in dict.fromkeys(row.group for row in rows):
        for of_judge in by_judge([row for row in rows if row.group == group]).values():
            head, cells = columns(of_judge)
            lines = [head, ["---"] * len(head), *cells]
            parts.append(f"### {markdown(heading(of_judge[0]))}")
            parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
            if sentence := what_could_be_seen(of_judge):
                parts.append(markdown(sentence))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text if text == "---" else markdown(text)


def _placeless(sentence: str) -> str:
    """A warning without the place of the set, which stands before its first colon and blank."""
    return sentence.partition(": ")[2]


@dataclass(frozen=True)
class Trained:
    """A trained classifier of a bench: its model repository, the line that it learned, and its kind.

    `classifier`: None where the bench has one kind only.
    """

    model: str
    line: str
    classifier: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """Where a model was tested: a dataset on the Hub, the task in its `eval.yaml` and its commit. `date`: ISO 8601."""

    dataset: str
    task: str
    revision: str
    date: str


def eval_result(rows: Sequence[TableRow], trained: Trained, benchmark: Benchmark) -> "EvalResultEntry":
    """A classifier's result as the Hub takes it: top-1 accuracy in percent, with its interval and gain in the notes.

    Raises:
        PublishError: the bench has no such line, or several classifiers and none was named; or huggingface_hub is older
            than these results.
    """
    try:
        from huggingface_hub import EvalResultEntry
    except ImportError:
        raise PublishError("huggingface_hub is older than .eval_results; update it.") from None
    row = row_of(rows, trained)
    low, high = row.interval
    notes = [
        f"top-1 accuracy in percent, 95 % interval {100 * low:.2f} to {100 * high:.2f}",
        what_was_seen([row]),
        heading(row),
        f"line {row.line}",
    ]
    if row.gain is not None:
        notes.append(f"gain over the real images alone {difference(row.gain)} points: {row.verdict}")
    return EvalResultEntry(
        dataset_id=benchmark.dataset,
        task_id=benchmark.task,
        value=round(100 * row.accuracy, 2),
        dataset_revision=benchmark.revision,
        date=benchmark.date,
        source_url=f"{DATASET_URL}{benchmark.dataset}",
        source_name="diffaug bench",
        notes="; ".join(notes),
    )


def row_of(rows: Sequence[TableRow], trained: Trained) -> TableRow:
    """The row of a trained classifier, over all test images.

    Raises:
        PublishError: its repository can have no such name, or the bench has no such line or several such classifiers.
    """
    if not HUB_NAME.fullmatch(trained.model):
        raise PublishError(f"--model: got {trained.model!r}, expected org/name of a model repository on the Hub.")
    whole = [row for row in rows if not row.group]
    of_line = [row for row in whole if row.line == trained.line]
    if not of_line:
        known = ", ".join(dict.fromkeys(row.line for row in whole))
        raise PublishError(f"--line: got {trained.line!r}, expected one of {known}.")
    of_kind = [row for row in of_line if trained.classifier in (None, row.classifier)]
    if len(of_kind) != 1:
        known = ", ".join(dict.fromkeys(row.classifier for row in of_line))
        raise PublishError(f"--classifier: say which one of the bench the model is: one of {known}.")
    return of_kind[0]


def results_file(entry: "EvalResultEntry") -> tuple[str, str]:
    """Path in a model repository, and the YAML of a result."""
    from huggingface_hub import eval_result_entries_to_yaml

    name = re.sub(r"[^\w.-]", "-", f"{entry.dataset_id}-{entry.task_id}")
    return f".eval_results/{name}.yaml", dump_yaml(eval_result_entries_to_yaml([entry]))


def send_result(entry: "EvalResultEntry", model: str, retry: Retry | None = None) -> str:
    """Put a result into a model repository; the same result is not sent again. Returns the commit that holds it.

    Raises:
        PublishError: no such repository, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    path, text = results_file(entry)
    api = HfApi(library_name="diffaug-datasets", library_version=__version__)

    def step() -> str:
        try:
            head = api.repo_info(model, repo_type="model").sha or ""
        except RepositoryNotFoundError:
            head = None  # refused below, so that it is not told as the Hub's refusal
        if head is None:
            raise PublishError(f"{model}: no such model repository on the Hub; push the classifier first.")
        with suppress(EntryNotFoundError):
            there = Path(hf_hub_download(model, path, repo_type="model", revision=head))
            if there.read_bytes() == text.encode():
                return head
        done = api.create_commit(
            model,
            [CommitOperationAdd(path, text.encode())],
            commit_message=f"Result on {entry.dataset_id}",
            repo_type="model",
            parent_commit=head,
        )
        return str(done.oid)

    return (retry or Retry()).until_done(model, step)

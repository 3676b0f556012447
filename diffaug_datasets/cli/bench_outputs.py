"""What a bench leaves behind, from its folder alone: `bench table`, `bench report`, `bench publish`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from diffaug_datasets.cli.screen import note, say, say_json, say_table
from diffaug_datasets.core.errors import PublishError, RecipeError
from diffaug_datasets.evaluate.bench import Answer
from diffaug_datasets.evaluate.frame import write_tables
from diffaug_datasets.evaluate.groups import table_of
from diffaug_datasets.evaluate.record import KeptBench, read_bench
from diffaug_datasets.evaluate.table import Judge, TableRow, by_judge
from diffaug_datasets.evaluate.words import columns, heading, what_could_be_seen, what_was_seen
from diffaug_datasets.evaluate.worth import worths

if TYPE_CHECKING:
    from diffaug_datasets.evaluate.hub_results import Trained
    from diffaug_datasets.release.bench_files import BenchPublished

PLACES = {"table": ("FOLDER",), "report": ("FOLDER",), "publish": ("FOLDER", "TARGET")}
OPTIONS = {  # by the names of the verb's parameters
    "table": {"json"},
    "report": {"out"},
    "publish": {"dry_run", "json", "model", "line", "classifier", "config"},
}


@dataclass(frozen=True)
class OutputOptions:
    """What a person typed beside the folder; `given`: parameters that were typed at all."""

    given: frozenset[str]
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    model: str | None = None
    line: str | None = None
    classifiers: Sequence[str] = ()
    config: str | None = None


def run_output(words: Sequence[str], options: OutputOptions) -> None:
    """Do what `bench table|report|publish` asks for.

    Raises:
        DiffAugError: too few or too many words, an option of another one, no bench, or a place that refuses.
    """
    word, *places = words
    wanted = PLACES[word]
    if len(places) != len(wanted):
        raise RecipeError(
            f"bench {word}: got {len(places)} places, expected {' '.join(wanted)}; a set that is called {word!r} is "
            f"reached as ./{word}."
        )
    if unused := sorted(options.given - OPTIONS[word]):
        raise RecipeError(f"--{unused[0].replace('_', '-')}: is not for `bench {word}`; leave it out.")
    kept = read_bench(Path(places[0]))
    if word == "table":
        print_bench(kept, options.as_json)
    elif word == "report":
        report_bench(kept, options.out)
    else:
        publish_bench(kept, places[1], options)


def say_bench(answer: Answer, rows: Sequence[TableRow]) -> None:
    """Print what was left out, and the tables of a bench, one per classifier and group, with what each could show."""
    for sentence in answer.notes:
        note(f"note: {sentence}")
    say(what_was_seen(rows))
    for group in dict.fromkeys(row.group for row in rows):
        for of_judge in by_judge([row for row in rows if row.group == group]).values():
            say(f"\n{heading(of_judge[0])}")
            say_table(*columns(of_judge))
            if sentence := what_could_be_seen(of_judge):
                say(sentence)
    by_classifier: dict[Judge, list[str]] = {}
    for worth in worths(answer):
        by_classifier.setdefault(worth.judge, []).append(worth.sentence)
    for judge, sentences in by_classifier.items():
        say(f"\n{judge[1]} on {judge[0]}:")
        for sentence in sentences:
            say(f"  {sentence}")


def bench_json(answer: Answer, rows: Sequence[TableRow], warnings: Sequence[str]) -> dict[str, object]:
    """The same as JSON-like values."""
    return {
        "rows": [row.flat() for row in rows],
        "worth": [asdict(worth) for worth in worths(answer)],
        "warnings": list(warnings),
        "notes": list(answer.notes),
    }


def print_bench(kept: KeptBench, as_json: bool) -> None:
    """Print the tables of a finished bench, and write them into its folder again."""
    rows = table_of(kept.answer, kept.spec)
    path = write_tables(kept.folder, rows, kept.results)
    if as_json:
        say_json(bench_json(kept.answer, rows, kept.leaks))
        return
    for sentence in kept.leaks:
        note(f"warning: {sentence}")
    say_bench(kept.answer, rows)
    say(f"\ntable: {path}")


def report_bench(kept: KeptBench, out: Path | None) -> None:
    """Write the page of a finished bench."""
    from diffaug_datasets.evaluate.bench_page import write_page

    _warn(kept)
    say(f"page: {write_page(kept, table_of(kept.answer, kept.spec), out or kept.folder / 'report.html')}")


def publish_bench(kept: KeptBench, target: str, options: OutputOptions) -> None:
    """Put a finished bench beside a published set, and its result into a trained classifier's repository."""
    from diffaug_datasets.evaluate.hub_results import Trained, bench_files, row_of
    from diffaug_datasets.release.bench_files import send_bench

    if (options.model is None) != (options.line is None):
        raise RecipeError("--model and --line belong together: the repository of a classifier, and what it learned.")
    rows = table_of(kept.answer, kept.spec)
    trained = None
    if options.model and options.line:
        trained = Trained(options.model, options.line, options.classifiers[0] if options.classifiers else None)
        row_of(rows, trained)
    files = bench_files(kept, rows)
    done = send_bench(files, target, options.dry_run)
    _warn(kept)
    told: dict[str, object] = {
        "target": done.target,
        "commit": done.commit,
        "files": [{"path": item.path, "size": item.size, "sha256": item.sha256} for item in done.items],
    }
    if trained:
        told["result"] = _publish_result(rows, trained, done, options)
    if options.as_json:
        say_json({**told, "dry_run": options.dry_run})
        return
    if options.dry_run:
        say(files.section)
        say()
    for item in done.items:
        say(f"{decimal(item.size):>10}  {item.path}")
    if "result" in told:
        say(str(told["result"]))
    if options.dry_run:
        note(f"nothing was sent to {done.target} (--dry-run)")
    else:
        sent = f"{len(done.items)} files" if done.items else "everything was there already, nothing was sent"
        say(f"published: {done.target}, {sent}" + (f", commit {done.commit[:12]}" if done.commit else ""))


def _publish_result(
    rows: Sequence[TableRow], trained: "Trained", bench: "BenchPublished", options: OutputOptions
) -> str:
    """Send the result of a classifier, or only make it; returns its file as text."""
    from diffaug_datasets.evaluate.hub_results import Benchmark, eval_result, results_file, send_result
    from diffaug_datasets.release.bench_files import configs_with_test
    from diffaug_datasets.release.layout import README, split_card
    from diffaug_datasets.release.repository import Repository

    if not bench.commit:
        raise PublishError(
            f"{bench.target}: results of a model name a dataset on the Hub; give org/name as the target."
        )
    card = Repository.open(bench.target, bench.commit).files.local(README).read_text(encoding="utf-8")
    tasks = configs_with_test(split_card(card)[0])
    if not tasks:
        raise PublishError(f"{bench.target}: no config there has a test split, so no result can be stated on it.")
    task = options.config or tasks[0]
    if task not in tasks:
        raise PublishError(f"--config: got {task!r}, expected a config with a test split: {', '.join(tasks)}.")
    today = datetime.now(UTC).date().isoformat()
    entry = eval_result(rows, trained, Benchmark(bench.target, task, bench.commit, today))
    if not options.dry_run:
        send_result(entry, trained.model)
    path, text = results_file(entry)
    return f"{trained.model}, {path}:\n{text}".rstrip()


def _warn(kept: KeptBench) -> None:
    for sentence in kept.leaks:
        note(f"warning: {sentence}")
    for sentence in kept.record.notes:
        note(f"note: {sentence}")

"""The verb that trains classifiers on sets: `bench`."""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from diffaug_datasets.cli.bench_outputs import bench_json, say_bench
from diffaug_datasets.cli.make import changes_of
from diffaug_datasets.cli.measuring import check_options
from diffaug_datasets.cli.options import check_sets
from diffaug_datasets.cli.screen import note, say, say_facts, say_json, telling, waiting
from diffaug_datasets.core.errors import RecipeError, one_of
from diffaug_datasets.core.recipe import checked, read_mapping
from diffaug_datasets.evaluate.bench import bench, load_encoders
from diffaug_datasets.evaluate.draws import leak_warnings
from diffaug_datasets.evaluate.frame import write_tables
from diffaug_datasets.evaluate.groups import table_of
from diffaug_datasets.evaluate.outlook import outlook
from diffaug_datasets.evaluate.paper_suites import find_benches, suite_names
from diffaug_datasets.evaluate.runs import Doing, is_recipe
from diffaug_datasets.evaluate.sets import usual_encoder
from diffaug_datasets.evaluate.suite import MOST_DRAWS, Bench, Mixing, ProbeKind
from diffaug_datasets.planning.catalogue import merged
from diffaug_datasets.run.progress import clock
from diffaug_datasets.sources.real import here

UNFINISHED = 3
OPTION_OF = {
    "encoders": "--encoder",
    "classifiers": "--classifier",
    "more_real": "--more-real",
    "images_per_class": "--images-per-class",
    "draws": "--draws",
    "mixing": "--rule or -p",
    "changes": "--set",
    "test": "--test-source",
}


@dataclass(frozen=True)
class BenchOptions:
    """What a person typed beside the sets; None and empty ones were not given."""

    encoders: Sequence[str] = ()
    classifiers: Sequence[str] = ()
    rule: str | None = None
    probability: float | None = None
    draws: str | None = None
    images_per_class: int | None = None
    more_real: Sequence[float] = ()
    changes: Sequence[str] = ()
    config: str | None = None
    with_real: str | None = None
    test_source: str | None = None


def benches_of(words: Sequence[str], given: BenchOptions) -> Mapping[str, Bench]:
    """What a person typed: the benches of a shipped suite by their names, else one, of a file or of sets, named ''.

    Options win over a file or a suite, and it is said.

    Raises:
        RecipeError: a name, a file or an option that cannot be.
    """
    if len(words) == 1 and words[0].partition("@")[0] in suite_names():
        benches = {
            name: bench.model_dump(by_alias=True, exclude_unset=True) for name, bench in find_benches(words[0]).items()
        }
        return {name: _bench_of(words, content, given) for name, content in benches.items()}
    return {"": _bench_of(words, _written_bench(words), given)}


def _bench_of(words: Sequence[str], from_file: Mapping[str, object] | None, given: BenchOptions) -> Bench:
    content = dict(from_file or {"sets": list(words)})
    told = _told(given, content.get("mixing"), content.get("changes"))
    if given.test_source:
        if not isinstance(test := content.get("test"), Mapping):
            raise RecipeError(
                "--test-source: is for a bench that names other test images (`test.builder` of a bench file), and this "
                "one is tested on those of its sets; leave it out."
            )
        told["test"] = {**test, "source": here(given.test_source)}
    if from_file is not None:
        for key in sorted(told.keys() & from_file.keys()):
            note(f"{OPTION_OF[key]} wins over `{key}` of {words[0]}.")
    if from_file is None and "encoders" not in told:
        told["encoders"] = [usual_encoder(words[0], given.config)]
    spec = Bench.from_dict({**content, **told})
    places = {key: value for key, value in (("config", given.config), ("with_real", given.with_real)) if value}
    if not places:
        return spec
    check_options([entry.set for entry in spec.sets], given.config, given.with_real)
    return spec.model_copy(update={"sets": tuple(entry.model_copy(update=places) for entry in spec.sets)})


def _written_bench(words: Sequence[str]) -> dict[str, object] | None:
    """The keys of a bench's file; None where sets were typed."""
    if len(words) != 1 or Path(words[0]).suffix not in (".yaml", ".yml"):
        return None
    content = read_mapping(Path(words[0]), "bench")
    return Bench.placed(content, Path(words[0]).parent) if "sets" in content else None


def _told(given: BenchOptions, mixing: object, changes: object) -> dict[str, object]:
    """Keys of a bench that options stand for."""
    known = (*get_args(ProbeKind), "scratch")  # others need a model, which a bench file names
    for name in given.classifiers:
        if name not in known:
            raise RecipeError(f"--classifier: got {name!r}, {one_of(name, known)}")
    rule = {
        key: value for key, value in (("rule", given.rule), ("probability", given.probability)) if value is not None
    }
    checked(Mixing, rule, where="--")
    told: dict[str, object] = {
        "encoders": list(given.encoders),
        "classifiers": list(given.classifiers),
        "more_real": [int(one) if one.is_integer() else one for one in given.more_real],
        "images_per_class": given.images_per_class,
        "draws": draws_of(given.draws) if given.draws else None,
        "mixing": {**(mixing if isinstance(mixing, dict) else {}), **rule} if rule else None,
    }
    if given.changes:
        told["changes"] = merged(changes if isinstance(changes, dict) else {}, changes_of(given.changes, None))
    return {key: value for key, value in told.items() if value}


def draws_of(text: str) -> list[int]:
    """`5` for the first five, `0,2,7` or `10-19` for those.

    Raises:
        RecipeError: something else.
    """
    if re.fullmatch(r"[0-9]{1,5}", text) and int(text):
        return list(range(int(text)))
    if match := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text):
        first, last = int(match[1]), int(match[2])
        if first <= last < first + MOST_DRAWS:
            return list(range(first, last + 1))
    elif re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})+", text):
        return [int(word) for word in text.split(",")]
    raise RecipeError(
        f"--draws: got {text!r}, expected a number (5: the first five), a list (0,2,7) or a span (10-19)."
    )


def price_bench(spec: Bench, folder: Path, device: str, as_json: bool) -> None:
    """Say what a bench would take; write nothing.

    Raises:
        DiffAugError: a set or an encoder cannot be had.
    """
    encoders = load_encoders(spec, device)
    with waiting("looking at the sets"):
        found = outlook(spec, encoders, folder, Doing(device=device))
    if as_json:
        say_json(asdict(found))
        return
    seconds = None if found.cell_seconds is None else found.generation_seconds + found.cell_seconds
    say_facts(
        {
            "draws": f"{found.draws:,}",
            "images": f"{found.images:,} to make in {found.runs:,} runs, {found.evaluations:,} U-Net evaluations, "
            f"about {clock(found.generation_seconds)} here",
            "cells": f"{found.cells:,}: {found.done:,} done, {found.cells - found.done:,} left",
            "steps": f"{found.steps:,} of optimisers",
            "time": f"about {clock(seconds)}"
            if seconds is not None
            else "not known: no cell of such a kind is done here",
        }
    )
    for sentence in found.notes:
        note(f"note: {sentence}")
    say("nothing written (--dry-run)")


def run_bench(spec: Bench, folder: Path, *, device: str, workers: int, minutes: float | None, as_json: bool) -> int:
    """Judge sets by classifiers; print the table, and write it beside the cells. 3 where the time was over before.

    Raises:
        DiffAugError: a set or an encoder cannot be had, an option is not for these sets, or the folder is read-only.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    progress = None if as_json else sys.stderr
    check_sets([entry.set for entry in spec.sets if not is_recipe(entry.set)])
    with telling(f"loading {' and '.join(spec.encoders) or 'what is trained'}", as_json):
        encoders = load_encoders(spec, device)
    with waiting(f"training on {len(spec.sets)} sets") if progress is None else nullcontext():
        answer = bench(spec, encoders, folder, doing=Doing(until, workers, device, progress))
    if answer.left:
        what = f"{answer.left.runs:,} runs" if answer.left.runs else f"{answer.left.cells:,} cells"
        note(f"diffaug: the time is over (--minutes) and {what} are left; the same command goes on.")
        return UNFINISHED
    rows = table_of(answer, spec)
    path = write_tables(folder, rows, answer.results)
    if as_json:
        say_json(bench_json(answer, rows, leak_warnings(answer.lines)))
        return 0
    for sentence in leak_warnings(answer.lines):
        note(f"warning: {sentence}")
    say_bench(answer, rows)
    say(f"\ntable: {path}")
    return 0


def help_bench(folder: Path, device: str, cache: str, parent: int) -> None:
    """Make cells of a bench that another process leads, as long as that lives."""
    spec = Bench.model_validate_json(sys.stdin.buffer.read())
    doing = Doing(device=device, parent=parent)
    bench(spec, load_encoders(spec, device), folder, cache=Path(cache) if cache else None, doing=doing)

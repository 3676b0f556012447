"""The verb that trains classifiers on a set."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from diffaug_datasets.cli.measuring import check_options
from diffaug_datasets.cli.screen import note, say, say_json, say_table, waiting
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.recipe import checked
from diffaug_datasets.evaluate.bench import Answer, bench
from diffaug_datasets.evaluate.suite import Bench, Mixing, ProbeKind
from diffaug_datasets.evaluate.table import TableRow, table


def bench_of(sets: Sequence[str], encoders: Sequence[str], classifiers: Sequence[str], mixing: Mixing) -> Bench:
    """A bench of what a person typed.

    Raises:
        RecipeError: a classifier that is not known.
    """
    for name in classifiers:
        if name not in get_args(ProbeKind):
            raise RecipeError(f"--classifier: got {name!r}, expected one of {', '.join(get_args(ProbeKind))}.")
    return Bench.from_dict(
        {"sets": list(sets), "encoders": list(encoders), "classifiers": list(classifiers), "mixing": mixing}
    )


def mixing_of(rule: str | None, probability: float) -> Mixing:
    """How sets are mixed, of what a person typed.

    Raises:
        RecipeError: a rule that is not known, or a probability outside [0, 1].
    """
    return checked(Mixing, {"rule": rule, "probability": probability}, where="--")


def run_bench(
    spec: Bench, folder: Path, *, config: str | None, with_real: str | None, device: str, as_json: bool
) -> None:
    """Judge sets by classifiers on frozen features; print the table, and write it beside the cells.

    Raises:
        DiffAugError: a set or an encoder cannot be had, an option is not for these sets, or the folder is read-only.
    """
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.run.execute import resolve_device

    check_options([entry.set for entry in spec.sets], config, with_real)
    told = {key: value for key, value in (("config", config), ("with_real", with_real)) if value is not None}
    spec = spec.model_copy(update={"sets": tuple(entry.model_copy(update=told) for entry in spec.sets)})
    encoders = [Encoder.load(name, resolve_device(device)) for name in spec.encoders]
    with waiting(f"training on {len(spec.sets)} sets"):
        answer = bench(spec, encoders, folder / "cells")
    rows = table(answer)
    path = folder / "table.csv"
    write_atomically(path, lambda unfinished: _write_csv(unfinished, rows))
    if as_json:
        say_json([row.flat() for row in rows])
        return
    _say_leaks(answer)
    draws = len(answer.draws)
    test_images = max(len(result.correct) for result in answer.results)
    say(f"{draws} draw{'s' * (draws > 1)} of the real images, {test_images:,} test images")
    for encoder_name, classifier, setting in dict.fromkeys((r.encoder, r.classifier, r.setting) for r in rows):
        say(f"\n{classifier} on {encoder_name} ({setting})")
        chosen = [r for r in rows if (r.encoder, r.classifier, r.setting) == (encoder_name, classifier, setting)]
        compared = sum(row.gain is not None for row in chosen)
        verdict = f"verdict (Holm, {compared} lines)" if compared > 1 else "verdict"
        head = ("line", "accuracy", "gain over real (95 %)", verdict, "images")
        say_table(head, [_bench_cells(row) for row in chosen])
    if draws == 1:
        note("one draw: intervals are over test images alone; another draw of the real images may differ by more.")
    say(f"\ntable: {path}")


def _say_leaks(answer: Answer) -> None:
    for line in answer.lines:
        if line.leaks:
            note(
                f"warning: {line.where}: {len(line.leaks)} of its synthetic images are test images (first: "
                f"{line.leaks[0][:12]}), so what follows flatters it."
            )


def _bench_cells(row: TableRow) -> tuple[str, str, str, str, str]:
    spread = f" +- {100 * row.deviation:.1f}" if row.deviation is not None else ""
    gain = ""
    if row.gain is not None:
        gain = f"{100 * row.gain.value:+.1f} ({100 * row.gain.low:+.1f} to {100 * row.gain.high:+.1f})"
    is_open = row.verdict == "no difference seen" and row.needed is not None
    verdict = f"{row.verdict}; {row.needed:,} draws might show it" if is_open else row.verdict
    return row.line, f"{100 * row.accuracy:.1f}{spread}", gain, verdict, f"{row.images:,}"


def _write_csv(path: Path, rows: Sequence[TableRow]) -> None:
    flat = [row.flat() for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)

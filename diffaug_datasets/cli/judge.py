"""The verbs that judge a set: measure its images, train classifiers on it."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from diffaug_datasets.cli.screen import note, say, say_facts, say_json, say_table, waiting
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.recipe import checked
from diffaug_datasets.evaluate.bench import Answer, bench
from diffaug_datasets.evaluate.measure import Measure, Measured, measure
from diffaug_datasets.evaluate.suite import Bench, Mixing, ProbeKind
from diffaug_datasets.evaluate.table import TableRow, table

# Name of a measure -> its title, and where better lies: up, down, or neither (compare it with the floor).
TITLES = {
    "frechet": "Frechet distance (down)",
    "precision": "precision (up)",
    "recall": "recall (up)",
    "density": "density (up)",
    "coverage": "coverage (up)",
    "kernel": "kernel distance (down)",
    "two_sample_accuracy": "linear classifier, synthetic or real (.5 = cannot tell)",
    "vendi": "Vendi score: effective number of images",
    "mean_pairwise_distance": "mean distance of pairs",
    "authenticity": "authenticity: farther from real than real from real (up)",
    "memorisation_ratio": "distance to the nearest real / of that to its nearest",
    "exact_copies": "exact copies of real images (0)",
    "clip_score": "CLIP score (up)",
    "clip_margin": "CLIP margin to the next class (up)",
    "judge_agreement": "label accuracy by the judge (up)",
    "probe_agreement": "label accuracy by a probe of real test images (up)",
}


def run_measure(
    sets: Sequence[str],
    encoders: Sequence[str],
    *,
    config: str | None,
    with_real: str | None,
    by_class: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure every set with every encoder and print the numbers.

    Raises:
        DiffAugError: a set or an encoder cannot be had, or an option is not for these sets.
    """
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.run.execute import resolve_device

    _check_options(sets, config, with_real)
    everything: list[Measured] = []
    for name in encoders:
        encoder = Encoder.load(name, resolve_device(device))
        for where in sets:
            with waiting(f"measuring {where}"):
                measured = measure(where, encoder, config=config, with_real=with_real, by_class=by_class or as_json)
            everything.append(measured)
            if not as_json:
                _say_measured(measured, by_class)
    if as_json:
        say_json([measured.json() for measured in everything])


def _check_options(sets: Sequence[str], config: str | None, with_real: str | None) -> None:
    """Raises RecipeError where options of published sets are given and all sets are run folders."""
    if all((Path(where) / "plan.json").is_file() for where in sets):
        given = {"--config": config, "--with-real": with_real}
        if unused := next((name for name, value in given.items() if value is not None), None):
            raise RecipeError(f"{unused}: is for published sets, and {sets[0]} is a run folder; leave it out.")


def _say_measured(measured: Measured, by_class: bool) -> None:
    say_facts(
        {
            "set": measured.where,
            "images": f"{measured.synthetic:,} synthetic beside {measured.reference}",
            "encoder": measured.encoder,
        }
    )
    say()
    shown = [m for m in measured.measures if m.of is None]
    head = ("measure", "value", "95 % interval", "real beside real at the same n")
    say_table(head, [(TITLES[m.name], *_cells(m)) for m in shown])
    say()
    if by_class:
        shown = [m for m in measured.measures if m.of is not None and m.value is not None]
        say_table(("class", *head), [(str(m.of), TITLES[m.name], *_cells(m)) for m in shown])
        say()


def _cells(m: Measure) -> tuple[str, str, str]:
    if m.value is None:
        return "withheld", "", m.withheld
    interval = f"{m.interval[0]:.3g} to {m.interval[1]:.3g}" if m.interval else ""
    floor = f"{m.floor.value:.3g} ({m.floor.low:.3g} to {m.floor.high:.3g})" if m.floor else ""
    return f"{m.value:.4g}", interval, floor


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

    _check_options([entry.set for entry in spec.sets], config, with_real)
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

"""The verb that measures the images of a set."""

from collections.abc import Sequence
from pathlib import Path

from diffaug_datasets.cli.screen import note, say, say_facts, say_json, say_table, telling
from diffaug_datasets.core.errors import RecipeError, RunError
from diffaug_datasets.core.files import write_text
from diffaug_datasets.evaluate.measure import measure
from diffaug_datasets.evaluate.sets import set_facts, usual_encoder
from diffaug_datasets.release.measures import (
    MEASURES_FILE,
    TITLES,
    Measured,
    MeasuresFile,
    cells,
    keep_measures,
    read_measures,
)
from diffaug_datasets.release.places import is_run
from diffaug_datasets.run.store import Run


def run_measure(
    sets: Sequence[str],
    encoders: Sequence[str],
    *,
    config: str | None,
    with_real: str | None,
    by_class: bool,
    device: str,
    as_json: bool,
    out: Path | None = None,
) -> None:
    """Measure every set with every encoder, print leaks, then numbers, and keep them in run folders or in `out`.

    Without `encoders` each with its own, see `usual_encoder`.

    Raises:
        DiffAugError: a set or an encoder cannot be had, or an option is not for these sets.
    """
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.run.execute import resolve_device

    check_options(sets, config, with_real)
    if out is not None and len(sets) > 1:
        raise RecipeError(f"--out: got {len(sets)} sets, and a file is of one; measure them one by one.")
    found: list[tuple[str, Measured]] = []
    usual = {} if encoders else {where: usual_encoder(where, config) for where in sets}
    for name in encoders or dict.fromkeys(usual.values()):
        with telling(f"loading the encoder {name}", as_json):
            encoder = Encoder.load(name, resolve_device(device))
        for where in (where for where in sets if usual.get(where, name) == name):
            with telling(f"reading the images of {where}", as_json) as tell:
                measured = measure(
                    where, encoder, config=config, with_real=with_real, by_class=by_class or as_json, tell=tell
                )
            found.append((where, measured))
            _say_leaks(measured)
            if not as_json:
                _say_measured(measured, by_class)
    if as_json:
        say_json([measured.model_dump(mode="json") for _, measured in found])
    if out is not None:
        facts = set_facts(sets[0], config)
        named = tuple(measured.model_copy(update={"where": facts.name}) for _, measured in found)
        write_text(out, MeasuresFile(plan_id=facts.plan_id, selection=facts.selection, measured=named).text())
        note(f"measures: {out}")
        return
    for where, measured in found:
        if is_run(where):
            _keep(Run.open(where), measured)


def check_options(sets: Sequence[str], config: str | None, with_real: str | None) -> None:
    """Raises RecipeError where options of published sets are given and all sets are run folders."""
    if all(map(is_run, sets)):
        given = {"--config": config, "--with-real": with_real}
        if unused := next((name for name, value in given.items() if value is not None), None):
            raise RecipeError(f"{unused}: is for published sets, and {sets[0]} is a run folder; leave it out.")


def _keep(run: Run, measured: Measured) -> None:
    """Into the run folder, for its report and its card; what lies there of other rows is named and replaced."""
    if stale := read_measures(run).note:
        note(stale)
    try:
        keep_measures(run, measured)
    except RunError as error:  # the numbers are on the screen already; another's folder may be read-only
        note(f"not kept for report and card: {error}")
    else:
        note(f"measures: {run.where}/{MEASURES_FILE}, for report and publish")


def _say_leaks(measured: Measured) -> None:
    for sentence in measured.warnings:
        note(f"warning: {measured.where}: {sentence}")
    for sentence in measured.notes:
        note(f"note: {sentence}")


def _say_measured(measured: Measured, by_class: bool) -> None:
    facts = {
        "set": measured.where,
        "images": f"{measured.synthetic:,} synthetic beside {measured.reference}",
        "encoder": measured.encoder,
        "judge": measured.judge,
    }
    say_facts({name: text for name, text in facts.items() if text})
    say()
    shown = [m for m in measured.measures if m.of is None]
    head = ("measure", "value", "95 % interval", "real beside real at the same n")
    say_table(head, [(TITLES[m.name], *cells(m)) for m in shown])
    say()
    if by_class:
        shown = [m for m in measured.measures if m.of is not None and m.value is not None]
        say_table(("class", *head), [(str(m.of), TITLES[m.name], *cells(m)) for m in shown])
        say()

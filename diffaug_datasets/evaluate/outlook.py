"""What a bench will cost before anything is made: runs, U-Net rows, cells, steps, time. Nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.evaluate.bench import jobs_of, rebalances
from diffaug_datasets.evaluate.cells import Cell, CellFolder
from diffaug_datasets.evaluate.contest import PLANNED_CONTROLS, Contest, gather
from diffaug_datasets.evaluate.frozen import Features
from diffaug_datasets.evaluate.runs import Doing, PlannedRun, planned_control
from diffaug_datasets.evaluate.suite import Bench, Mixing, Network
from diffaug_datasets.sources.real import SeenSources

if TYPE_CHECKING:
    from diffaug_datasets.models.encoders import Encoder


@dataclass(frozen=True)
class Outlook:
    """The price of a bench. Seconds are estimates of this machine: of images as `plan` gives them, of cells from those
    that were made before in this folder, None where there is none.

    `runs`: those that lack images; `images` and `evaluations`: what these will have and take. `steps`: of the optimiser
    in the cells that are left.
    """

    draws: int
    runs: int
    images: int
    evaluations: int
    generation_seconds: float
    cells: int
    done: int
    steps: int
    cell_seconds: float | None
    notes: tuple[str, ...]


def outlook(spec: Bench, encoders: "Sequence[Encoder]", folder: Path, doing: Doing) -> Outlook:
    """Look at what is there and count what is missing.

    Raises:
        DiffAugError: as `bench`, for whatever can be known before.
    """
    contest = gather(spec, folder, Doing(until=0, device=doing.device, runs=doing.runs, only_price=True))
    seen = [Features(encoder, folder) for encoder in encoders]
    cells = [job.cell for draw in contest.draws.values() for job in jobs_of(spec, contest, draw, seen)]
    finished = CellFolder.at(folder / "cells")
    left = [cell for cell in cells if finished is None or finished.result(cell) is None]
    waiting, more_cells, more_draws = _not_there(spec, contest, encoders, folder, doing)
    prices = [run.price for run in waiting]
    measured = {} if finished is None else finished.seconds()
    return Outlook(
        draws=len(contest.draws) + more_draws,
        runs=len(waiting),
        images=sum(price.rows for price in prices),
        evaluations=sum(price.evaluations + price.fit_evaluations for price in prices),
        generation_seconds=sum(price.seconds_cpu for price in prices),
        cells=len(cells) + more_cells,
        done=len(cells) - len(left),
        steps=_steps(spec, left, more_cells, len(encoders)),
        cell_seconds=_seconds(left, more_cells, measured),
        notes=contest.notes,
    )


def cells_of_line(spec: Bench, encoders: int, alone: bool) -> int:
    """How many cells a line with synthetic images has in a draw; `alone`: it also stands without real images."""
    lines = 2 if alone and "synthetic_only" in spec.controls else 1
    return lines * len(spec.seeds) * sum(1 if isinstance(one, Network) else encoders for one in spec.classifiers)


def cells_of_draw(spec: Bench, encoders: "Sequence[Encoder]", mixing: Mixing) -> int:
    """How many cells a draw has without any synthetic image."""
    plain = sum(name in spec.controls for name in ("duplicate", "classic", "randaugment_cutmix"))
    plain += rebalances(spec, mixing)
    lines = 1 + plain + len(spec.more_real)
    probes = sum(not isinstance(one, Network) for one in spec.classifiers)
    networks = len(spec.classifiers) - probes
    texts = sum(1 for one in encoders if one.has_text) if probes and "zero_shot" in spec.controls else 0
    trained = lines * probes * len(encoders) + (lines + len(spec.baselines)) * networks
    return trained * len(spec.seeds) + texts


def _not_there(
    spec: Bench, contest: Contest, encoders: "Sequence[Encoder]", folder: Path, doing: Doing
) -> tuple[list[PlannedRun], int, int]:
    """Runs that lack images, the cells of their lines, and how many draws are not among those that were read."""
    waiting = list(contest.waiting)
    sets = [run for run in waiting if run.entry.set not in PLANNED_CONTROLS]
    trials = {run.trial for run in sets} - contest.trials
    cells = sum(cells_of_line(spec, len(encoders), run in sets) for run in waiting)
    cells += len(trials) * cells_of_draw(spec, encoders, contest.mixing)
    seen = SeenSources()
    for trial in trials:
        of_trial = [run for run in sets if run.trial == trial]
        recipe = of_trial[0].recipe
        methods = {run.recipe.method for run in of_trial}
        for control in PLANNED_CONTROLS:
            if control in spec.controls and control not in methods:
                run = planned_control(control, recipe, folder, doing.runs, spec.affordable, seen)
                if isinstance(run, PlannedRun):
                    cells += cells_of_line(spec, len(encoders), False)
                    waiting += [] if run.is_finished else [run.light()]
    return waiting, cells, len(trials)


def _steps(spec: Bench, left: Sequence[Cell], more: int, encoders: int) -> int:
    """Optimiser steps of what is left; cells that are not known yet count by their share."""
    from diffaug_datasets.models.image_networks import network_name

    trained = [one for one in spec.classifiers if isinstance(one, Network)]
    networks: dict[tuple[str, str], int] = {(network_name(one.model), one.kind): one.steps for one in trained}
    known = sum(networks.get((cell.encoder, cell.classifier), 0) for cell in left)
    each = sum(1 if isinstance(one, Network) else encoders for one in spec.classifiers)
    return known + round(more * sum(networks.values()) / max(1, each))


def _seconds(left: Sequence[Cell], more: int, measured: dict[tuple[str, str], list[float]]) -> float | None:
    """From the mean of cells of the same encoder and classifier; None where some kind was never made here."""
    means = {kind: sum(taken) / len(taken) for kind, taken in measured.items()}
    kinds = [(cell.encoder, cell.classifier) for cell in left]
    if any(kind not in means for kind in kinds) or (more and not means):
        return None
    average = sum(means.values()) / len(means) if means else 0.0
    return sum(means[kind] for kind in kinds) + more * average

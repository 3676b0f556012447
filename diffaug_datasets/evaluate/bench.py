"""`bench`: does a set help a classifier? Lines with and without its images, on the same draws and the same budget.

`contest` gathers the draws and lines, and makes the images of config names first; here every line under every
classifier becomes a cell (`cells`): made once, by whichever process comes first.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.bench_workers import helping
from diffaug_datasets.evaluate.cells import Cell, CellFolder, Fitted, Result, code_version
from diffaug_datasets.evaluate.classifiers import fit_best, unit
from diffaug_datasets.evaluate.contest import Contest, gather
from diffaug_datasets.evaluate.draws import Draw, Images, Line
from diffaug_datasets.evaluate.frozen import Features
from diffaug_datasets.evaluate.record import keep_answer, keep_spec
from diffaug_datasets.evaluate.runs import Doing, check_recipes, is_recipe
from diffaug_datasets.evaluate.seen import SourceDataset, dataset_of, seen_by, source_dataset
from diffaug_datasets.evaluate.suite import Bench, Mixing, Network, Probe
from diffaug_datasets.evaluate.training_sets import TrainingSet, View
from diffaug_datasets.planning.new_run import find_recipe

if TYPE_CHECKING:
    import pandas

    from diffaug_datasets.models.encoders import Encoder

CONTROLS = ("real", "duplicate", "zero_shot")
PROMPT = "a photo of a {name}"
VIEWS: tuple[View, ...] = ("classic", "randaugment_cutmix")
LIBRARIES = ("scikit-learn", "numpy", "scipy", "torch", "transformers", "pillow")  # whose versions a cell is known by
MOST_IMAGES = 20_000  # after which no draw more is taken on: their features are in memory together


@dataclass(frozen=True)
class Left:
    """What is not done yet: runs that lack images, and cells. Where runs are left, their cells are not counted."""

    runs: int = 0
    cells: int = 0

    def __bool__(self) -> bool:
        return bool(self.runs or self.cells)


@dataclass(frozen=True)
class Answer:
    """All results of a bench. `draws`: their keys, in the order of the sets. `notes`: sentences on what is left out.

    `more_real`: line -> how many more real images per class it has. `left`: what is not done, as the time was over.
    """

    draws: tuple[str, ...]
    lines: tuple[Line, ...]
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    more_real: Mapping[str, int] | None = None
    left: Left = Left()

    def frame(self) -> "pandas.DataFrame":
        """One row per cell, see `frame.cells_frame`."""
        from diffaug_datasets.evaluate.frame import cells_frame

        return cells_frame(self.results)


@dataclass(frozen=True)
class Job:
    """A cell, what makes it, and the draw whose test images it predicts; `images()`: whose features it needs."""

    cell: Cell
    make: Callable[[], Fitted]
    draw: Draw
    images: Callable[[], Sequence[Images]] = tuple


def compare(spec: Bench, folder: str | os.PathLike[str], *, doing: Doing | None = None) -> Answer:
    """`bench` with the encoders that `spec` names, on the device of `doing`.

    >>> from diffaug_datasets.evaluate import Bench, compare
    >>> bench = Bench.from_dict({"sets": ["runs/shirts"], "controls": ["real", "duplicate"]})
    >>> len(compare(bench, "runs/bench").draws)
    1
    """
    doing = doing or Doing()
    return bench(spec, load_encoders(spec, doing.device), folder, doing=doing)


def load_encoders(spec: Bench, device: str) -> "list[Encoder]":
    """The encoders of the probes of a bench; none where there is no probe.

    Raises:
        BackboneError: one cannot be reached or read.
    """
    from diffaug_datasets.models.encoders import Encoder
    from diffaug_datasets.run.execute import resolve_device

    if not any(isinstance(one, Probe) for one in spec.classifiers):
        return []
    return [Encoder.load(name, resolve_device(device)) for name in spec.encoders]


def bench(
    spec: Bench,
    encoders: "Sequence[Encoder]",
    folder: str | os.PathLike[str],
    *,
    cache: Path | None = None,
    poll: float = 0.2,
    doing: Doing | None = None,
) -> Answer:
    """Make what `folder` lacks: the images of config names, then every line of every draw, trained and tested.

    Killed at any point, the same call goes on where it was; several calls, processes or machines share one folder.

    Args:
        spec: what is compared.
        encoders: those that `spec` names, loaded.
        folder: the bench's own; made if it is missing.
        cache: of features; default: the user's.
        poll: seconds between looks at cells that other processes hold.
        doing: until when, by how many processes, on which device.

    Returns:
        All results; where the time was over, what is done and what is left.

    Raises:
        DiffAugError: a set cannot be had or lacks images, budgets differ, or `folder` cannot be written.

    >>> from diffaug_datasets.evaluate.bench import bench
    >>> from diffaug_datasets.evaluate.suite import Bench
    >>> from diffaug_datasets.evaluate.table import table
    >>> from diffaug_datasets.models.encoders import Encoder
    >>> spec = Bench.from_dict({"sets": ["runs/shirts"], "controls": ["real", "duplicate"]})
    >>> answer = bench(spec, [Encoder.load("tiny")], "runs/bench")
    >>> sorted(row.line for row in table(answer))
    ['duplicate', 'real', 'txt2img']
    """
    doing, place = doing or Doing(), Path(folder)
    check_recipes(spec)
    cells = CellFolder(place / "cells")
    keep_spec(place, spec)
    contest = gather(spec, place, doing)
    if contest.waiting:
        return Answer((), (), (), contest.notes, left=Left(runs=len(contest.waiting)))
    seen = [Features(encoder, cells.folder, cache, poll) for encoder in encoders]
    jobs = [job for draw in contest.draws.values() for job in jobs_of(spec, contest, draw, seen, doing.device, cache)]
    with helping(spec, place, doing, cache, sum(cells.result(job.cell) is None for job in jobs)):
        results = _made(jobs, cells, seen, doing, poll)
    order = {draw: place for place, draw in enumerate(contest.draws)}
    results.sort(key=lambda one: (order[one.receipt.cell.draw], *_sorting(one.receipt.cell)))
    notes = (*contest.notes, *what_was_seen_before(spec, encoders))
    if len(results) == len(jobs):
        keep_answer(place, spec, list(contest.draws.values()), contest.lines, results, notes)
    return Answer(
        draws=tuple(contest.draws),
        lines=tuple(line for _, line in contest.lines),
        results=tuple(results),
        notes=notes,
        more_real={bracket(count): count for count in spec.more_real if isinstance(count, int)},
        left=Left(cells=len(jobs) - len(results)),
    )


def what_was_seen_before(spec: Bench, encoders: "Sequence[Encoder]") -> tuple[str, ...]:
    """A sentence for every encoder whose card says, or does not say, that it has seen the images of a set."""
    datasets: dict[SourceDataset, None] = {}
    for entry in spec.sets:
        if is_recipe(entry.set):
            datasets[source_dataset(find_recipe(entry.set))] = None
        else:
            with suppress(DiffAugError):  # a set without its recipe names no dataset
                datasets[dataset_of(entry.set, entry.config)] = None
    found = [seen_by(encoder, one, "encoder") for one in datasets for encoder in encoders]
    return tuple(dict.fromkeys(one.sentence for one in found if one is not None))


def bracket(amount: int | float) -> str:
    """The name of the line with so many more real images per class, or with a share in (0, 1) of all real images.

    >>> bracket(5), bracket(0.2)
    ('real + 5', 'real at 20 %')
    """
    return f"real + {amount}" if isinstance(amount, int) else f"real at {100 * amount:g} %"


def _sorting(cell: Cell) -> tuple[str | int, ...]:
    return cell.encoder, cell.classifier, cell.setting, cell.line, cell.seed


def _made(jobs: Sequence[Job], cells: CellFolder, seen: Sequence[Features], doing: Doing, poll: float) -> list[Result]:
    """Results of all jobs; those that are to be made, block after block, so that the features of one are in memory."""
    results: list[Result] = []
    waiting: list[Job] = []
    for job in jobs:
        if done := cells.result(job.cell):
            results.append(done)
        else:
            waiting.append(job)
    doing.tell(f"{len(waiting):,} of {len(jobs):,} classifiers to train and test ...")
    for block, images in _blocks(waiting):
        if doing.is_over:
            break
        for features in seen:
            needed = images.get(features.encoder.name, ())
            known = {key for one in needed for key in one.keys}
            doing.tell(f"encoding {len(known):,} images with {features.encoder.name}, but for those done before ...")
            features.prepare(needed)
        left = block
        while left and not doing.is_over:
            left, tried = [], left
            for job in tried:
                result = None if doing.is_over else cells.make(job.cell, job.make, job.draw.tested)
                if result is None:
                    left.append(job)
                else:
                    results.append(result)
            if left and not doing.is_over:
                time.sleep(poll)  # another process holds them
    return results


def _blocks(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], dict[str, list[Images]]]]:
    """The jobs of whole draws, until they have `MOST_IMAGES` different images; images by encoder."""
    by_draw: dict[str, list[Job]] = {}
    for job in jobs:
        by_draw.setdefault(job.draw.key, []).append(job)
    block: list[Job] = []
    images: dict[str, list[Images]] = {}
    keys: set[str] = set()
    for of_draw in by_draw.values():
        for job in of_draw:
            needed = job.images()
            images.setdefault(job.cell.encoder, []).extend(needed)
            keys.update(key for one in needed for key in one.keys)
        block += of_draw
        if len(keys) >= MOST_IMAGES:
            yield block, images
            block, images, keys = [], {}, set()
    if block:
        yield block, images


def training_sets(spec: Bench, contest: Contest, draw: Draw, classifier: Probe | Network) -> Iterator[TrainingSet]:
    """What a classifier learns in a draw, the controls first; classes that no image shows have none to learn."""
    real, mass = draw.real, float(len(draw.real))
    free = not contest.mixing.same_mass
    yield TrainingSet("real", real, mass)
    if "duplicate" in spec.controls:
        yield TrainingSet("duplicate", real + real, 2 * mass if free else mass)
    if rebalances(spec, contest.mixing):
        yield TrainingSet("rebalanced", real, mass, real, contest.mixing)
    copies = spec.views_per_image if isinstance(classifier, Probe) else 1
    for view in VIEWS:
        if view in spec.controls:
            yield TrainingSet(view, real, copies * mass if free else mass, views=view, copies=copies)
    if isinstance(classifier, Network):
        for baseline in spec.baselines:
            yield TrainingSet(baseline, real, mass, baseline=baseline)
    for count in spec.more_real:
        if more := contest.more_real(draw, count, spec.val_per_class):
            yield TrainingSet(bracket(count), real + more, mass + len(more) if free else mass)
    for line in contest.of(draw):
        made, took = line.synthetic, None if line.making is None else line.making.cost(len(line.synthetic))
        mixing = mixing_of(contest, line)
        is_added = mixing.rule == "concatenate" and not mixing.same_mass
        of_line = mass + mixing.weight * len(made) if is_added else mass
        yield TrainingSet(line.name, real, of_line, made, mixing, evaluations=took)
        is_alone = "synthetic_only" in spec.controls and not line.is_control
        if is_alone and len(set(made.labelled.labels.tolist())) > 1:
            yield TrainingSet(f"{line.name} alone", made, float(len(made)) if free else mass, evaluations=took)


def rebalances(spec: Bench, mixing: Mixing) -> bool:
    """Whether real images stand in for real ones as synthetic ones would: where that changes how much classes count."""
    return "rebalanced" in spec.controls and mixing.rule == "lt_inverse"


def mixing_of(contest: Contest, line: Line) -> Mixing:
    """How the images of a line are mixed with the real ones."""
    if line.mixing is None:
        return contest.mixing
    return line.mixing if line.mixing.rule else line.mixing.model_copy(update={"rule": contest.mixing.rule})


def jobs_of(
    spec: Bench,
    contest: Contest,
    draw: Draw,
    seen: Sequence[Features],
    device: str = "cpu",
    cache: Path | None = None,
) -> Iterator[Job]:
    """Every cell of a draw. `seen`: features of the encoders that probes look through; `device`: of networks.

    Raises:
        RecipeError: a classifier that cannot be.
    """
    held_out = contest.held_out(draw, spec.val_per_class)
    for classifier in spec.classifiers:
        for training_set in training_sets(spec, contest, draw, classifier):
            for seed in spec.seeds:
                if isinstance(classifier, Network):
                    yield _network_job(classifier, training_set, draw, contest, held_out, seed, device, cache)
                    continue
                for features in seen:
                    yield _probe_job(classifier, training_set, draw, contest, held_out, seed, features)
    if "zero_shot" in spec.controls and any(isinstance(one, Probe) for one in spec.classifiers):
        for features in seen:
            if features.encoder.has_text:
                cell = _cell(draw, "zero_shot", features.encoder.name, "text", PROMPT)
                yield Job(cell, partial(_zero_shot, draw, features), draw, lambda: (draw.test,))


def _cell(
    draw: Draw,
    learned: TrainingSet | str,
    encoder: str,
    classifier: str,
    setting: str,
    seed: int = 0,
    chosen_on: Images | None = None,
    libraries: str = "",
) -> Cell:
    """`learned`: what is trained on; or the name of a line that is trained on the names of the classes alone."""
    return Cell(
        draw=draw.key,
        line=learned if isinstance(learned, str) else learned.name,
        content=digest(draw.class_names) if isinstance(learned, str) else learned.content,
        encoder=encoder,
        classifier=classifier,
        setting=setting,
        seed=seed,
        stack=libraries or stack(),
        held_out=chosen_on.identity if chosen_on else "",
        code=code_version(),
    )


def stack() -> str:
    """The libraries that decide a prediction, with their versions."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return " ".join(found)


def _probe_job(
    probe: Probe,
    training_set: TrainingSet,
    draw: Draw,
    contest: Contest,
    held_out: Images | None,
    seed: int,
    features: Features,
) -> Job:
    chosen_on = held_out if isinstance(probe.penalty, tuple) and len(probe.penalty) > 1 else None
    setting = f"{_words(contest.mixing)}, {_penalty(probe)}"
    cell = _cell(draw, training_set, features.encoder.name, probe.kind, setting, seed, chosen_on)

    def images() -> Sequence[Images]:
        needed = (training_set.seen(seed), training_set.synthetic, draw.test, chosen_on)
        return [one for one in needed if one is not None]

    return Job(cell, partial(_probed, probe, training_set, draw, chosen_on, features, seed), draw, images)


def _words(mixing: Mixing) -> str:
    rule = "concatenate" if mixing.rule == "concatenate" else f"{mixing.rule}, p {mixing.probability:g}"
    weight = f", weight {mixing.weight:g}" if mixing.weight != 1 else ""
    parts = ("" if mixing.soft_labels else ", hard labels", "" if mixing.same_mass else ", every image counts 1")
    return f"{rule}{weight}{''.join(parts)}"


def _penalty(probe: Probe) -> str:
    grid = probe.penalty if isinstance(probe.penalty, tuple) else (probe.penalty,)
    return f"C {' or '.join(f'{one:g}' for one in grid)}"


def _probed(
    probe: Probe, training_set: TrainingSet, draw: Draw, held_out: Images | None, features: Features, seed: int
) -> Fitted:
    """Train on features, choose C on held-out images where several are given, and predict."""
    begin = time.perf_counter()
    examples = training_set.examples(features, seed)
    val = None if held_out is None else (features(held_out), held_out.labelled.labels.tolist())
    fitted = fit_best(probe.kind, examples, probe.penalty, val, seed)
    return Fitted(
        predicted=fitted.predict(features(draw.test)),
        images=int((examples.targets.sum(1) > 0).sum()),
        mass=examples.mass,
        seconds=time.perf_counter() - begin,
        evaluations=training_set.evaluations,
        chosen=f"C {fitted.penalty:g}" if held_out is not None and fitted.penalty is not None else "",
    )


def _network_job(
    network: Network,
    training_set: TrainingSet,
    draw: Draw,
    contest: Contest,
    held_out: Images | None,
    seed: int,
    device: str,
    cache: Path | None,
) -> Job:
    from diffaug_datasets.evaluate import networks
    from diffaug_datasets.models.image_networks import network_name

    network = network.of_draw(len(draw.real))
    chosen_on = held_out if network.select == "val" else None
    name, setting = network_name(network.model), networks.described(network, contest.mixing)
    cell = _cell(draw, training_set, name, network.kind, setting, seed, chosen_on, networks.stack(device))

    def make() -> Fitted:
        fitted = networks.train(network, training_set, draw.test, chosen_on, seed=seed, device=device, cache=cache)
        return replace(fitted, evaluations=training_set.evaluations)

    return Job(cell, make, draw)


def _zero_shot(draw: Draw, features: Features) -> Fitted:
    begin = time.perf_counter()
    texts = features.encoder.text_features([PROMPT.format(name=name) for name in draw.class_names]).double().numpy()
    predicted = (features(draw.test) @ unit(texts).T).argmax(1)
    return Fitted(predicted, 0, 0.0, time.perf_counter() - begin)

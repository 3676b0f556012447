"""`bench`: does a set help a classifier? Lines with and without its images, on the same draws and the same budget.

Beside the sets stand the controls of every draw, which need none: the real images alone, the same ones twice, the
classes' names alone where the encoder reads text. Every line under every classifier is a cell (`cells`): made once, by
whichever process comes first.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.cells import Cell, CellFolder, Fitted, Result
from diffaug_datasets.evaluate.classifiers import Array, fit_best, unit
from diffaug_datasets.evaluate.draws import Draw, Images, Line, named_apart, read_set
from diffaug_datasets.evaluate.features import cached_features
from diffaug_datasets.evaluate.suite import Bench, Mixing, Probe
from diffaug_datasets.evaluate.training_sets import TrainingSet

if TYPE_CHECKING:
    from diffaug_datasets.models.encoders import Encoder

CONTROLS = ("real", "duplicate", "zero_shot")
PROMPT = "a photo of a {name}"


@dataclass(frozen=True)
class Answer:
    """All results of a bench. `draws`: their keys, in the order of the sets."""

    draws: tuple[str, ...]
    lines: tuple[Line, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Job:
    """A cell, what makes it, and the draw whose test images it predicts."""

    cell: Cell
    make: partial[Fitted]
    draw: Draw


class Features:
    """Unit-norm features [n d] of images by one encoder, from the cache on disk, and kept while a bench runs."""

    def __init__(self, encoder: "Encoder", cache: Path | None = None) -> None:
        self.encoder, self._cache = encoder, cache
        self._known: dict[str, Array] = {}

    def __call__(self, images: Images) -> Array:
        key = digest(images.keys)
        if key not in self._known:
            self._known[key] = cached_features(self.encoder, images.keys, images.read, self._cache)
        return self._known[key]


def bench(
    spec: Bench, encoders: "Sequence[Encoder]", folder: Path, *, cache: Path | None = None, poll: float = 0.2
) -> Answer:
    """Train and test every line of every draw; what `folder` holds already is not made again.

    `encoders`: those that `spec` names, loaded. `cache`: of features. `poll`: seconds between looks at cells that other
    processes hold.

    Raises:
        DiffAugError: a set cannot be loaded, lacks its real, its synthetic or its test images, or has one class alone.
        RunError: `folder` cannot be written.
    """
    cells = CellFolder(folder)
    loaded = [read_set(entry.set, entry.config, entry.with_real) for entry in spec.sets]
    draws = {draw.key: draw for draw, _ in loaded}
    lines = named_apart([(draw.key, line) for draw, line in loaded], CONTROLS)
    waiting = [
        job
        for encoder in encoders
        for draw in draws.values()
        for job in _jobs(spec, draw, [line for key, line in lines if key == draw.key], Features(encoder, cache))
    ]
    device = str(encoders[0].device) if encoders else "cpu"
    for draw in draws.values():
        waiting += _network_jobs(spec, draw, [line for key, line in lines if key == draw.key], device, cache)
    results: list[Result] = []
    while waiting:
        left = []
        for job in waiting:
            result = cells.make(job.cell, job.make, job.draw.test.keys, job.draw.test.labelled.labels)
            if result is None:
                left.append(job)
            else:
                results.append(result)
        waiting = left
        if waiting:
            time.sleep(poll)  # another process holds them
    results.sort(key=lambda one: (list(draws).index(one.receipt.cell.draw), one.receipt.cell.line))
    return Answer(tuple(draws), tuple(line for _, line in lines), tuple(results))


def training_sets(spec: Bench, draw: Draw, lines: Sequence[Line]) -> Iterator[TrainingSet]:
    """What classifiers learn in a draw, the controls first."""
    real, mass = draw.real, float(len(draw.real))
    mixing = spec.mixing if spec.mixing.rule else spec.mixing.model_copy(update={"rule": "class"})
    if "real" in spec.controls:
        yield TrainingSet("real", real, mass)
    if "duplicate" in spec.controls:
        yield TrainingSet("duplicate", real + real, mass)
    for line in lines:
        made = line.synthetic.per_class(spec.images_per_class) if spec.images_per_class else line.synthetic
        yield TrainingSet(line.name, real, mass, made, mixing)
        if "synthetic_only" in spec.controls and len(set(made.labelled.labels.tolist())) > 1:
            yield TrainingSet(f"{line.name} alone", made, mass)


def _jobs(spec: Bench, draw: Draw, lines: Sequence[Line], features: Features) -> Iterator[Job]:
    stack = " ".join(f"{name} {version(name)}" for name in ("scikit-learn", "numpy", "scipy"))
    for classifier in spec.classifiers:
        if not isinstance(classifier, Probe):
            continue
        for training_set in training_sets(spec, draw, lines):
            for seed in spec.seeds:
                cell = Cell(
                    draw=draw.key,
                    line=training_set.name,
                    content=training_set.content,
                    encoder=features.encoder.name,
                    classifier=classifier.kind,
                    setting=_setting(classifier, spec.mixing),
                    seed=seed,
                    stack=stack,
                )
                yield Job(cell, partial(_probed, classifier, training_set, draw, features, seed), draw)
    if features.encoder.has_text and "zero_shot" in spec.controls:
        cell = Cell(
            draw=draw.key,
            line="zero_shot",
            content=digest(draw.class_names),
            encoder=features.encoder.name,
            classifier="text",
            setting=PROMPT,
            seed=0,
            stack=stack,
        )
        yield Job(cell, partial(_zero_shot, draw, features), draw)


def _network_jobs(spec: Bench, draw: Draw, lines: Sequence[Line], device: str, cache: Path | None) -> Iterator[Job]:
    """Cells of networks, which no encoder of the bench has a part in."""
    for classifier in spec.classifiers:
        if isinstance(classifier, Probe):
            continue
        from diffaug_datasets.evaluate.networks import described, stack, train
        from diffaug_datasets.models.image_networks import network_name

        name = network_name(classifier.model)
        for training_set in training_sets(spec, draw, lines):
            for seed in spec.seeds:
                cell = Cell(
                    draw=draw.key,
                    line=training_set.name,
                    content=training_set.content,
                    encoder=name,
                    classifier=classifier.kind,
                    setting=described(classifier, spec.mixing),
                    seed=seed,
                    stack=stack(device),
                )
                make = partial(train, classifier, training_set, draw.test, seed=seed, device=device, cache=cache)
                yield Job(cell, make, draw)


def _setting(classifier: Probe, mixing: Mixing) -> str:
    grid = classifier.penalty if isinstance(classifier.penalty, tuple) else (classifier.penalty,)
    return f"{mixing.rule or 'class'}, p {mixing.probability:g}, C {' or '.join(f'{c:g}' for c in grid)}"


def _probed(classifier: Probe, training_set: TrainingSet, draw: Draw, features: Features, seed: int) -> Fitted:
    begin = time.perf_counter()
    examples = training_set.examples(features)
    predicted = fit_best(classifier.kind, examples, classifier.penalty, None, seed).predict(features(draw.test))
    counts = int((examples.targets.sum(1) > 0).sum())
    return Fitted(predicted, counts, examples.mass, time.perf_counter() - begin)


def _zero_shot(draw: Draw, features: Features) -> Fitted:
    begin = time.perf_counter()
    texts = features.encoder.text_features([PROMPT.format(name=name) for name in draw.class_names]).double().numpy()
    predicted = (features(draw.test) @ unit(texts).T).argmax(1)
    return Fitted(predicted, 0, 0.0, time.perf_counter() - begin)

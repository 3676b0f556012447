"""`measure`: what the synthetic images of a set are like beside real ones, in all and by class.

Every distance stands beside its floor: what two random parts of the same real images are apart, at the same number of
images. Where there are too few images for a number the sentence that says so takes its place. Distances are to the
set's real test images where it carries them (the method never saw them), else to its real training images.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.evaluate import metrics
from diffaug_datasets.evaluate.classifiers import Examples, fit
from diffaug_datasets.evaluate.features import ImageEncoder, places_by_origin, row_features
from diffaug_datasets.evaluate.metrics import Distance, Interval
from diffaug_datasets.release.read import EmptySplit, load

if TYPE_CHECKING:
    import datasets

Array = NDArray[np.float64]

LEAST_FOR_PROBE = 2  # real images of every class that a probe needs


@dataclass(frozen=True)
class Measure:
    """One number of a set, or why there is none.

    `of`: a class, None for all. `floor`: mean, lowest and highest distance of real images to real images at the same n,
    for distances alone. `interval`: the ends of the 95 % interval, where it is known.
    """

    name: str
    of: str | None
    n: int
    value: float | None
    interval: tuple[float, float] | None = None
    floor: Interval | None = None
    withheld: str = ""


@dataclass(frozen=True)
class Measured:
    """All measures of a set by one encoder; `reference` says which real images they were compared with."""

    where: str
    encoder: str
    synthetic: int
    reference: str
    measures: tuple[Measure, ...]

    def json(self) -> dict[str, object]:
        """The same as JSON-like values."""
        return asdict(self)

    def get(self, name: str, of: str | None = None) -> Measure:
        """The measure of that name, of a class or of all.

        Raises:
            KeyError: there is none.
        """
        for measure in self.measures:
            if (measure.name, measure.of) == (name, of):
                return measure
        raise KeyError(name)


@dataclass(frozen=True)
class Images:
    """Features [n d] of some images, their class ids and pixel digests."""

    features: Array
    labels: NDArray[np.int64]
    digests: tuple[str, ...]

    def of(self, label: int) -> "Images":
        """Those of one class."""
        chosen = np.flatnonzero(self.labels == label)
        return Images(self.features[chosen], self.labels[chosen], tuple(self.digests[i] for i in chosen))

    def __len__(self) -> int:
        return len(self.digests)


def measure(
    where: str | Path,
    encoder: ImageEncoder,
    *,
    config: str | None = None,
    with_real: str | Path | None = None,
    by_class: bool = True,
    cache: Path | None = None,
    seed: int = 0,
) -> Measured:
    """Measure a run folder, a published set or an address (`config`, `with_real`: as `load` takes them).

    `cache`: a folder for features, see `evaluate.features`. `seed` chooses the random parts of floors and folds.

    Raises:
        DiffAugError: it cannot be loaded, or has no synthetic or no real image.
    """
    train = load(where, config, "train", with_real=with_real)
    real_rows, made_rows = places_by_origin(train, where)
    if not made_rows:
        raise RunError(f"{where}: holds no synthetic image, expected some to measure; choose another config or run.")
    test = _test_split(where, config, with_real)
    if not real_rows and test is None:
        raise RunError(
            f"{where}: carries no real image to compare with; choose another config, or give your copy of the real "
            "images (--with-real)."
        )
    made = train.select(made_rows)
    synthetic = _images(made, encoder, cache)
    shown = _images(train.select(real_rows), encoder, cache) if real_rows else None
    held_out = _images(test, encoder, cache) if test is not None else None
    reference = held_out or shown
    assert reference is not None
    kind = "test" if held_out else "training"
    names = train.features["label"].names
    measures = [*_set_measures(None, synthetic, reference, shown, seed), *_row_measures(None, made, range(len(made)))]
    measures += _probe(None, synthetic, held_out, len(names))
    if by_class:
        places = defaultdict(list)
        for place, label in enumerate(synthetic.labels):
            places[int(label)].append(place)
        for label in sorted(places):
            part, beside = synthetic.of(label), reference.of(label)
            own = shown.of(label) if shown else None
            measures += _set_measures(names[label], part, beside, own, seed)
            measures += _row_measures(names[label], made, places[label])
    described = f"{len(reference):,} real {kind} images"
    return Measured(str(where), encoder.name, len(synthetic), described, tuple(measures))


def _test_split(where: str | Path, config: str | None, with_real: str | Path | None) -> "datasets.Dataset | None":
    try:
        return load(where, config, "test", with_real=with_real)
    except EmptySplit:
        return None  # `reference` says which images stand in


def _images(rows: "datasets.Dataset", encoder: ImageEncoder, cache: Path | None) -> Images:
    features, digests = row_features(rows, encoder, cache)
    return Images(features, np.asarray(rows["label"], dtype=np.int64), digests)


def _set_measures(
    of: str | None, synthetic: Images, reference: Images, shown: Images | None, seed: int
) -> Iterator[Measure]:
    """Distances to the reference with their floors, then what the synthetic images are among themselves."""
    n, width = len(synthetic), synthetic.features.shape[1]
    size = min(n, len(reference) // 2)
    distances: dict[str, Distance] = {"frechet": metrics.frechet_distance}
    distances |= {name: partial(_neighbours, i) for i, name in enumerate(metrics.Manifold._fields)}
    for name, distance in distances.items():
        reason = metrics.withheld(name, size, width)
        if reason:
            yield Measure(name, of, n, None, withheld=reason)
        else:
            beside_floor = metrics.compared(distance, synthetic.features, reference.features, seed)
            yield Measure(name, of, n, beside_floor.distance.value, None, beside_floor.floor)
    with_interval: dict[str, Callable[[Array, Array], Interval]] = {
        "kernel": metrics.kernel_distance,
        "two_sample_accuracy": partial(metrics.two_sample_accuracy, seed=seed),
    }
    for name, test in with_interval.items():
        if reason := metrics.withheld(name, size, width):
            yield Measure(name, of, n, None, withheld=reason)
        else:
            value, low, high = test(synthetic.features, reference.features)
            beside = metrics.compared(partial(_value, test), synthetic.features, reference.features, seed)
            yield Measure(name, of, n, value, (low, high), beside.floor)
    for name, number in (("vendi", metrics.vendi_score), ("mean_pairwise_distance", metrics.mean_pairwise_distance)):
        reason = metrics.withheld(name, n, width)
        can_draw = not reason and len(reference) >= n
        floor = metrics.at_size(number, reference.features, n, seed) if can_draw else None
        yield Measure(name, of, n, None if reason else number(synthetic.features), floor=floor, withheld=reason)
    if shown is not None:
        reason = metrics.withheld("copies", min(n, len(shown)), width)
        copies = None if reason else metrics.copies(shown.features, synthetic.features)
        yield Measure("authenticity", of, n, copies and copies.authenticity, withheld=reason)
        yield Measure("memorisation_ratio", of, n, copies and copies.ratio, withheld=reason)
    known = set(reference.digests) | set(shown.digests if shown else ())
    yield Measure("exact_copies", of, n, float(sum(name in known for name in synthetic.digests)))


def _neighbours(field: int, real: Array, synthetic: Array) -> float:
    return metrics.manifold(real, synthetic)[field]


def _value(test: Callable[[Array, Array], Interval], a: Array, b: Array) -> float:
    return test(a, b).value


def _row_measures(of: str | None, made: "datasets.Dataset", places: Sequence[int]) -> Iterator[Measure]:
    """Means of what was measured per row when it was made: CLIP score and margin, and how often the judge agrees."""
    n = len(places)
    for name in ("clip_score", "clip_margin"):
        values = [value for value in _column(made, name, places) if value is not None]
        if values:
            yield Measure(name, of, n, float(np.mean(np.asarray(values, dtype=np.float64))))
    seen = _column(made, "judge_label", places)
    planned = _column(made, "label", places) if seen else []
    judged = [a == b for a, b in zip(planned, seen, strict=True) if b is not None]
    if judged:
        agreed = metrics.share(sum(judged), len(judged))
        yield Measure("judge_agreement", of, n, agreed.value, (agreed.low, agreed.high))


def _column(rows: "datasets.Dataset", name: str, places: Sequence[int]) -> list[float | None]:
    if name not in rows.column_names:
        return []
    values = rows[name]
    return [values[i] for i in places]


def _probe(of: str | None, synthetic: Images, held_out: Images | None, classes: int) -> Iterator[Measure]:
    """Label accuracy by a logistic regression that learned from the real test images alone."""
    if held_out is None:
        yield Measure("probe_agreement", of, len(synthetic), None, withheld="no real test images to fit a probe on")
        return
    if classes < 2:
        yield Measure("probe_agreement", of, len(synthetic), None, withheld="one class, two are needed to tell apart")
        return
    counts = np.bincount(held_out.labels, minlength=classes)
    if counts.min() < LEAST_FOR_PROBE:
        reason = f"a class with {counts.min()} real test images, {LEAST_FOR_PROBE} are needed"
        yield Measure("probe_agreement", of, len(synthetic), None, withheld=reason)
        return
    probe = fit("logistic", Examples.of_labels(held_out.features, held_out.labels.tolist(), classes))
    agreed = probe.predict(synthetic.features) == synthetic.labels
    accuracy = metrics.share(int(agreed.sum()), len(agreed))
    yield Measure("probe_agreement", of, len(synthetic), accuracy.value, (accuracy.low, accuracy.high))

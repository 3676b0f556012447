"""`measure`: what the synthetic images of a set are like beside real ones, in all and by class.

Leaks are looked for first (`evaluate.leaks`). Every distance stands beside its floor: what two random parts of the same
real images are apart, at the same number of images; of memorisation, how near real test images lie to what the method
saw. Where there are too few images for a number the sentence that says
so takes its place. Distances are to the set's real test images where it carries them (the method never saw them), else
to its real training images. The probe of label accuracy learns from the real test images, for the same reason.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.evaluate import metrics
from diffaug_datasets.evaluate.classifiers import Examples, fit
from diffaug_datasets.evaluate.features import ImageEncoder, places_by_origin, row_features
from diffaug_datasets.evaluate.leaks import Leaks, leak_features, leaks_of
from diffaug_datasets.evaluate.seen import Known
from diffaug_datasets.evaluate.sets import SetFacts, set_facts
from diffaug_datasets.release.measures import Interval, Measure, Measured
from diffaug_datasets.release.read import EmptySplit, load

if TYPE_CHECKING:
    import datasets

Array = NDArray[np.float64]

LEAST_FOR_PROBE = 2  # real images of every class that a probe needs
NO_TEST = "no real test images"


class MeasuringEncoder(ImageEncoder, Known, Protocol):
    """An encoder whose card can be asked what it has seen."""


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


@dataclass(frozen=True)
class Subject:
    """What is measured: synthetic images, those they are compared with, the real training images where the set has any.

    `held_out`: those they are compared with are test images. `rows`: the synthetic rows. `probed`: class ids that a
    probe sees in them, or why there is none.
    """

    synthetic: Images
    reference: Images
    held_out: bool
    shown: Images | None
    rows: "datasets.Dataset"
    probed: "NDArray[np.int64] | str"
    leaks: Leaks
    facts: SetFacts
    seed: int


def measure(
    where: str | Path,
    encoder: MeasuringEncoder,
    *,
    config: str | None = None,
    with_real: str | Path | None = None,
    by_class: bool = True,
    cache: Path | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure a run folder, a published set or an address (`config`, `with_real`: as `load` takes them).

    `cache`: a folder for features, see `evaluate.features`. `seed` chooses the random parts of floors and folds.
    `tell` is told what is done next.

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
    facts, made = set_facts(where, config), train.select(made_rows)
    if test is not None:
        tell(f"looking for copies of {len(test):,} test images among {len(made):,} synthetic ones")
    leaks = leaks_of(
        where, train, test, [encoder],
        judges=facts.judges, dataset=facts.dataset, features=leak_features(encoder), cache=cache,
    )  # fmt: skip
    count = len(train) + len(test or ())
    tell(f"encoding {count:,} images with {encoder.name}, but for those that were encoded before")
    synthetic = _images(made, encoder, cache)
    shown = _images(train.select(real_rows), encoder, cache) if real_rows else None
    held_out = _images(test, encoder, cache) if test is not None else None
    reference = held_out if held_out is not None else shown
    assert reference is not None
    names = train.features["label"].names
    kind = "test" if held_out is not None else "training"
    tell(f"comparing {len(synthetic):,} synthetic images with {len(reference):,} real {kind} images")
    probed = _probed(synthetic, held_out, len(names))
    subject = Subject(synthetic, reference, held_out is not None, shown, made, probed, leaks, facts, seed)
    return Measured(
        where=str(where),
        encoder=encoder.name,
        judge=facts.judge,
        synthetic=len(synthetic),
        reference=f"{len(reference):,} real {'test' if held_out else 'training'} images",
        warnings=leaks.warnings,
        notes=leaks.notes,
        measures=tuple(_measures(subject, names if by_class else ())),
    )


def _measures(subject: Subject, names: Sequence[str]) -> Iterator[Measure]:
    """Every measure of all images, then of each class that has synthetic ones; of no class where there are no names."""
    synthetic = subject.synthetic
    yield from _of(subject, None, synthetic, subject.reference, subject.shown, range(len(synthetic)))
    yield from _inversions(subject, None, None)
    places = defaultdict(list)
    for place, label in enumerate(synthetic.labels if names else ()):
        places[int(label)].append(place)
    for label in sorted(places):
        own = subject.shown.of(label) if subject.shown else None
        beside = subject.reference.of(label)
        yield from _of(subject, names[label], synthetic.of(label), beside, own, places[label])
        yield from _inversions(subject, names[label], label)


def _of(
    subject: Subject, of: str | None, synthetic: Images, beside: Images, shown: Images | None, places: Sequence[int]
) -> Iterator[Measure]:
    yield from _copies(subject, of, synthetic)
    yield from _distances(of, synthetic, beside, subject.seed)
    yield from _diversity(of, synthetic, beside, subject.seed)
    yield from _memorised(of, synthetic, shown, beside if subject.held_out else None, subject.seed)
    yield from _row_means(of, subject.rows, places)
    yield from _agreement(subject, of, places)


def _test_split(where: str | Path, config: str | None, with_real: str | Path | None) -> "datasets.Dataset | None":
    try:
        return load(where, config, "test", with_real=with_real)
    except EmptySplit:
        return None  # `reference` says which images stand in


def _images(rows: "datasets.Dataset", encoder: ImageEncoder, cache: Path | None) -> Images:
    features, digests = row_features(rows, encoder, cache)
    return Images(features, np.asarray(rows["label"], dtype=np.int64), digests)


def _copies(subject: Subject, of: str | None, synthetic: Images) -> Iterator[Measure]:
    """How many synthetic images are, or look like, test images, or are any real image of the set."""
    n, leaks = len(synthetic), subject.leaks
    for name, found in (("test_copies", leaks.exact), ("near_test_copies", leaks.near)):
        if leaks.compared:
            yield Measure(name=name, of=of, n=n, value=sum(image in found for image in synthetic.digests))
        else:
            yield _none(name, of, n, NO_TEST)
    known = set(subject.reference.digests) | set(subject.shown.digests if subject.shown else ())
    yield Measure(name="exact_copies", of=of, n=n, value=sum(image in known for image in synthetic.digests))


def _distances(of: str | None, synthetic: Images, beside: Images, seed: int) -> Iterator[Measure]:
    """Distances to the reference, each with its floor."""
    n, width = len(synthetic), synthetic.features.shape[1]
    size = min(n, len(beside) // 2)
    near, far = synthetic.features, beside.features
    if reason := metrics.withheld("frechet", size, width):
        yield _none("frechet", of, n, reason)
    else:
        found = metrics.compared(metrics.frechet_distance, near, far, seed)
        yield Measure(name="frechet", of=of, n=n, value=found.distance.value, floor=found.floor)
    tests: dict[str, Callable[[Array, Array], Interval]] = {
        "kernel": metrics.kernel_distance,
        "two_sample_accuracy": partial(metrics.two_sample_accuracy, seed=seed),
    }
    for name, test in tests.items():
        if reason := metrics.withheld(name, size, width):
            yield _none(name, of, n, reason)
            continue
        value, low, high = test(near, far)
        floor = metrics.floor_of(partial(_value, test), far, size, seed)
        yield Measure(name=name, of=of, n=n, value=value, interval=(low, high), floor=floor)
    fields = metrics.Manifold._fields
    if reason := metrics.withheld(fields[0], size, width):
        yield from (_none(name, of, n, reason) for name in fields)
        return
    for name, found in zip(fields, metrics.compared_each(metrics.manifold, near, far, seed), strict=True):
        yield Measure(name=name, of=of, n=n, value=found.distance.value, floor=found.floor)


def _value(test: Callable[[Array, Array], Interval], a: Array, b: Array) -> float:
    return test(a, b).value


def _diversity(of: str | None, synthetic: Images, beside: Images, seed: int) -> Iterator[Measure]:
    """What the images are among themselves, beside as many real ones."""
    n, width = len(synthetic), synthetic.features.shape[1]
    for name, number in (("vendi", metrics.vendi_score), ("mean_pairwise_distance", metrics.mean_pairwise_distance)):
        if reason := metrics.withheld(name, n, width):
            yield _none(name, of, n, reason)
            continue
        floor = metrics.at_size(number, beside.features, n, seed) if len(beside) >= n else None
        yield Measure(name=name, of=of, n=n, value=number(synthetic.features), floor=floor)


def _memorised(
    of: str | None, synthetic: Images, shown: Images | None, unseen: Images | None, seed: int
) -> Iterator[Measure]:
    """How near the images are to the real ones that the method saw, beside as many real ones that it did not see."""
    n = len(synthetic)
    known = 0 if shown is None else len(shown)
    reason = metrics.withheld("copies", min(n, known), 0) if known else "no real training images"
    for place, name in enumerate(("authenticity", "memorisation_ratio")):
        if reason or shown is None:
            yield _none(name, of, n, reason)
            continue
        number = partial(_copied, place, shown.features)
        floor = metrics.at_size(number, unseen.features, n, seed) if unseen and len(unseen) >= n else None
        yield Measure(name=name, of=of, n=n, value=number(synthetic.features), floor=floor)


def _copied(place: int, real: Array, images: Array) -> float:
    return metrics.copies(real, images)[place]


def _row_means(of: str | None, rows: "datasets.Dataset", places: Sequence[int]) -> Iterator[Measure]:
    """Means of what an encoder measured of each row when it was made: CLIP score and margin."""
    for name in ("clip_score", "clip_margin"):
        values = [value for value in _column(rows, name, places) if value is not None]
        if values:
            yield Measure(name=name, of=of, n=len(values), value=float(np.mean(values)))
        else:
            yield _none(name, of, len(places), "no encoder of texts scored these rows (scores.encoder of the recipe)")


def _agreement(subject: Subject, of: str | None, places: Sequence[int]) -> Iterator[Measure]:
    """Label accuracy by the judge of the recipe, and by a probe of real test images."""
    planned = subject.synthetic.labels[list(places)].tolist()
    seen = _column(subject.rows, "judge_label", places)
    hits = [a == b for a, b in zip(planned, seen, strict=True) if b is not None]
    if hits:
        yield _share("judge_agreement", of, hits)
    else:
        yield _none("judge_agreement", of, len(places), "no judge looked at these rows (scores.judge of the recipe)")
    if isinstance(subject.probed, str):
        yield _none("probe_agreement", of, len(places), subject.probed)
    else:
        yield _share("probe_agreement", of, (subject.probed[list(places)] == planned).tolist())


def _share(name: str, of: str | None, hits: Sequence[bool]) -> Measure:
    """The share of hits with Wilson's interval."""
    value, low, high = metrics.share(sum(hits), len(hits))
    return Measure(name=name, of=of, n=len(hits), value=value, interval=(low, high))


def _inversions(subject: Subject, of: str | None, label: int | None) -> Iterator[Measure]:
    """How well the method's inversions of real images denoise to these images again."""
    inverted = subject.facts.inversions
    values = [v for key, of_class in inverted.items() if label in (None, key) for v in of_class]
    if values:
        yield Measure(name="inversion_psnr", of=of, n=len(values), value=float(np.mean(values)))
    else:
        which = "of this class " if inverted else ""
        yield _none("inversion_psnr", of, 0, f"no real image {which}was inverted and denoised again")


def _column(rows: "datasets.Dataset", name: str, places: Sequence[int]) -> list[float | None]:
    if name not in rows.column_names:
        return [None] * len(places)
    values = rows[name]
    return [values[i] for i in places]


def _none(name: str, of: str | None, n: int, reason: str) -> Measure:
    return Measure(name=name, of=of, n=n, value=None, withheld=reason)


def _probed(synthetic: Images, held_out: Images | None, classes: int) -> "NDArray[np.int64] | str":
    """Class ids by a logistic regression that learned from the real test images alone, or why there are none."""
    if held_out is None:
        return f"{NO_TEST} to fit a probe on"
    if classes < 2:
        return "one class, two are needed to tell apart"
    counts = np.bincount(held_out.labels, minlength=classes)
    if counts.min() < LEAST_FOR_PROBE:
        return f"a class with {counts.min()} real test images, {LEAST_FOR_PROBE} are needed"
    probe = fit("logistic", Examples.of_labels(held_out.features, held_out.labels.tolist(), classes))
    return probe.predict(synthetic.features)

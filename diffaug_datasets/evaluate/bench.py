"""`bench`: does a set help a classifier? Lines with and without its images, on the same draws and the same budget.

A *draw* is what a run may see of the real images, and the test images; sets with the same real and test images are
lines of one draw. Beside them stand the controls of every draw: the real images alone, the same ones twice, and the
classes' names alone where the encoder reads text.

While a classifier trains, `train.mixing.Replacer` puts a synthetic image in the place of a real one with probability p.
A classifier on frozen features sees all images at once, so it takes the mean of that over all epochs: a real image
counts 1 - p, and its share p goes to the synthetic images that might stand in for it. So every line of a draw has the
same mass, the number of its real images, however many synthetic ones it has.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import RecipeError, RunError
from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.cells import Cell, CellFolder, Fitted, Result
from diffaug_datasets.evaluate.classifiers import Array, Examples, Kind, fit, unit
from diffaug_datasets.evaluate.features import places_by_origin, row_features
from diffaug_datasets.release.read import EmptySplit, load

if TYPE_CHECKING:
    import datasets

    from diffaug_datasets.models.encoders import Encoder

Rule = Literal["class", "global", "index", "lt_inverse"]
CONTROLS = ("real", "duplicate", "zero_shot")
PROMPT = "a photo of a {name}"


class Suite(BaseModel):
    """How sets are judged: the rule and probability of mixing, classifiers, and what is fixed about them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classifiers: tuple[Kind, ...] = Field(default=("logistic",), min_length=1)
    rule: Rule = "class"
    probability: float = Field(default=0.5, ge=0, le=1, description="of a real image to be replaced")
    penalty: float = Field(default=1.0, gt=0, description="scikit-learn's C; larger = less regularised")
    synthetic_only: bool = Field(default=True, description="a line of the synthetic images alone for each set")
    seed: int = Field(default=0, ge=0)


DEFAULT_SUITE = Suite()


@dataclass(frozen=True)
class Labelled:
    """Images of a line: hard labels [n], soft ones [n C], and for each image the ids of the real images it is from."""

    labels: NDArray[np.int64]
    soft: Array
    source_ids: Sequence[Sequence[str]]

    @classmethod
    def hard(cls, labels: Sequence[int], classes: int, source_ids: Sequence[Sequence[str]] = ()) -> "Labelled":
        """All weight on one class."""
        ids = np.asarray(labels, dtype=np.int64)
        return cls(ids, np.eye(classes)[ids], source_ids or [()] * len(ids))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pictures:
    """Images of a line or a draw: unit-norm features [n d], labels, and pixel digests."""

    features: Array
    labelled: Labelled
    digests: tuple[str, ...]

    def identities(self) -> list[str]:
        """Per image a digest of all that a cell hangs on: pixels, soft label, and the real images it is from."""
        rows = zip(self.digests, self.labelled.soft.tolist(), self.labelled.source_ids, strict=True)
        return [digest([pixels, weights, list(sources)]) for pixels, weights, sources in rows]


@dataclass(frozen=True)
class Draw:
    """The real images that methods may see, and the test images."""

    key: str
    class_names: tuple[str, ...]
    real: Pictures
    test: Pictures


@dataclass(frozen=True)
class Line:
    """One set of a draw: where it came from, what its method is called, its synthetic images; `leaks`: test images."""

    where: str
    name: str
    synthetic: Pictures
    leaks: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """All results of a bench. `draws`: their keys, in the order of the sets."""

    draws: tuple[str, ...]
    lines: tuple[Line, ...]
    results: tuple[Result, ...]


Job = tuple[Cell, partial[Fitted], Draw]
"""A cell, what makes it, and the draw whose test images it predicts."""


def bench(
    sets: Sequence[str | Path],
    encoder: "Encoder",
    folder: Path,
    suite: Suite = DEFAULT_SUITE,
    *,
    config: str | None = None,
    with_real: str | Path | None = None,
    cache: Path | None = None,
) -> Answer:
    """Train and test on run folders, published sets or addresses; what `folder` holds already is not made again.

    Raises:
        DiffAugError: a set cannot be loaded, lacks its real, its synthetic or its test images, or has one class alone.
        RecipeError: the rule or the probability cannot be.
        RunError: `folder` cannot be written.
    """
    cells = CellFolder(folder)
    read = partial(_read, encoder=encoder, config=config, with_real=with_real, cache=cache)
    loaded = [read(where) for where in dict.fromkeys(map(str, sets))]
    draws = {draw.key: draw for draw, _ in loaded}
    lines = _named([(draw.key, line) for draw, line in loaded])
    results: list[Result] = []
    waiting = list(_jobs(draws, lines, encoder, suite))
    while waiting:
        left = []
        for cell, make, draw in waiting:
            result = cells.make(cell, make, draw.test.digests, draw.test.labelled.labels)
            if result is None:
                left.append((cell, make, draw))
            else:
                results.append(result)
        waiting = left
        if waiting:
            time.sleep(0.2)  # another process holds them
    results.sort(key=lambda one: (list(draws).index(one.receipt.cell.draw), one.receipt.cell.line))
    return Answer(tuple(draws), tuple(line for _, line in lines), tuple(results))


def shares(real: Labelled, synthetic: Labelled, rule: Rule, probability: float) -> tuple[Array, Array]:
    """How much each real [n] and each synthetic image [m] counts; both sum to n.

    A real image for which the rule has no synthetic one counts 1, as it always stays.

    Raises:
        RecipeError: the probability is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise RecipeError(f"probability: got {probability}, expected a number from 0 to 1.")
    of_real, of_synthetic = np.ones(len(real)), np.zeros(len(synthetic))
    for places, candidates in _stand_ins(real, synthetic, rule):
        of_real[places] -= probability
        for place, share in candidates.items():
            of_synthetic[place] += probability * share * len(places)
    return of_real, of_synthetic


def _stand_ins(real: Labelled, synthetic: Labelled, rule: Rule) -> Iterator[tuple[list[int], Mapping[int, float]]]:
    """(places of real images, synthetic image -> how often it is the one that stands in for each of them)."""
    by_class = _places(synthetic.labels.tolist())
    if rule == "global":
        everywhere = list(range(len(synthetic)))
        if everywhere:
            yield list(range(len(real))), _even(everywhere)
    elif rule == "lt_inverse":
        counts = np.bincount(real.labels, minlength=real.soft.shape[1])
        inverse = {label: 1 / (int(counts[label]) + 1) for label in by_class}
        total = sum(inverse.values())
        drawn = {p: inverse[c] / total / len(places) for c, places in by_class.items() for p in places}
        if drawn:
            yield list(range(len(real))), drawn
    elif rule == "class":
        for label, places in _places(real.labels.tolist()).items():
            if label in by_class:
                yield places, _even(by_class[label])
    else:
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for place, ids in enumerate(synthetic.source_ids):
            for source_id in dict.fromkeys(ids):
                by_source[source_id].append(place)
        for place, ids in enumerate(real.source_ids):
            if ids and ids[0] in by_source:
                yield [place], _even(by_source[ids[0]])


def _places(labels: Sequence[int]) -> dict[int, list[int]]:
    """Class id -> the places of its images."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    return dict(places)


def _even(places: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(places, 1 / len(places))


def _jobs(draws: dict[str, Draw], lines: Sequence[tuple[str, Line]], encoder: "Encoder", suite: Suite) -> Iterator[Job]:
    stack = " ".join(f"{name} {version(name)}" for name in ("scikit-learn", "numpy", "scipy"))
    setting = f"{suite.rule}, p {suite.probability:g}, C {suite.penalty:g}"
    for draw in draws.values():
        for classifier in suite.classifiers:
            for name, examples, content in _examples(draw, [line for key, line in lines if key == draw.key], suite):
                cell = Cell(
                    draw=draw.key,
                    line=name,
                    content=content,
                    encoder=encoder.name,
                    classifier=classifier,
                    setting=setting,
                    seed=suite.seed,
                    stack=stack,
                )
                yield cell, partial(_fitted, classifier, examples, draw, suite), draw
        if encoder.has_text:
            cell = Cell(
                draw=draw.key,
                line="zero_shot",
                content=digest(draw.class_names),
                encoder=encoder.name,
                classifier="text",
                setting=PROMPT,
                seed=0,
                stack=stack,
            )
            yield cell, partial(_zero_shot, encoder, draw), draw


def _examples(draw: Draw, lines: Sequence[Line], suite: Suite) -> Iterator[tuple[str, Examples, str]]:
    """(name, examples, digest of the synthetic images) of every line of a draw, the controls first."""
    real = draw.real
    alone = Examples(real.features, real.labelled.soft)
    yield "real", alone, ""
    twice = Examples(np.concatenate([real.features] * 2), np.concatenate([real.labelled.soft] * 2) / 2)
    yield "duplicate", twice, ""
    for line in lines:
        made = line.synthetic
        content = digest(made.identities())
        of_real, of_made = shares(real.labelled, made.labelled, suite.rule, suite.probability)
        targets = [real.labelled.soft * of_real[:, None], made.labelled.soft * of_made[:, None]]
        yield line.name, Examples(np.concatenate([real.features, made.features]), np.concatenate(targets)), content
        if suite.synthetic_only and len(set(made.labelled.labels.tolist())) > 1:
            yield f"{line.name} alone", Examples(made.features, made.labelled.soft).with_mass(alone.mass), content


def _fitted(kind: Kind, examples: Examples, draw: Draw, suite: Suite) -> Fitted:
    begin = time.perf_counter()
    predicted = fit(kind, examples, suite.penalty, suite.seed).predict(draw.test.features)
    counts = int((examples.targets.sum(1) > 0).sum())
    return Fitted(predicted, counts, examples.mass, time.perf_counter() - begin)


def _zero_shot(encoder: "Encoder", draw: Draw) -> Fitted:
    begin = time.perf_counter()
    texts = encoder.text_features([PROMPT.format(name=name) for name in draw.class_names]).double().numpy()
    predicted: NDArray[np.int64] = (draw.test.features @ unit(texts).T).argmax(1)
    return Fitted(predicted, 0, 0.0, time.perf_counter() - begin)


def _read(
    where: str, encoder: "Encoder", config: str | None, with_real: str | Path | None, cache: Path | None
) -> tuple[Draw, Line]:
    train = load(where, config, "train", with_real=with_real)
    real_rows, made_rows = places_by_origin(train, where)
    if not real_rows:
        raise RunError(
            f"{where}: holds no real training image, and a bench needs some; choose another run or config, or give "
            "your copy of the real images (--with-real)."
        )
    if not made_rows:
        raise RunError(f"{where}: holds no synthetic image, and a bench needs some; choose another run or config.")
    if len(set(train.select(real_rows)["label"])) < 2:
        raise RunError(f"{where}: its real images are of one class, and a bench needs two or more to tell apart.")
    try:
        test = load(where, config, "test", with_real=with_real)
    except EmptySplit:
        raise RunError(
            f"{where}: holds no test image, and a bench needs some; plan with include_test: true and a source that has "
            "a test split."
        ) from None
    names = tuple(train.features["label"].names)
    real, made, held_out = (
        _pictures(rows, len(names), encoder, cache) for rows in (train.select(real_rows), train.select(made_rows), test)
    )
    key = digest(["draw", sorted(real.identities()), held_out.identities(), list(names)])
    leaks = tuple(sorted(set(made.digests) & set(held_out.digests)))
    method = str(train[made_rows[0]]["method"])
    return Draw(key, names, real, held_out), Line(where, method, made, leaks)


def _pictures(rows: "datasets.Dataset", classes: int, encoder: "Encoder", cache: Path | None) -> Pictures:
    soft = np.zeros((len(rows), classes))
    for row, label in zip(soft, rows["soft_label"], strict=True):
        row[label["class"]] = label["weight"]
    labels = np.asarray(rows["label"], dtype=np.int64)
    features, digests = row_features(rows, encoder, cache)
    return Pictures(features, Labelled(labels, soft, list(rows["source_ids"])), digests)


def _named(lines: Sequence[tuple[str, Line]]) -> list[tuple[str, Line]]:
    """Lines of one method in one draw are told apart by the names of their folders or repositories.

    Where these are the same too, by the whole place.
    """
    methods = Counter((key, line.name) for key, line in lines)
    folders = Counter((key, line.name, Path(line.where).name) for key, line in lines)
    named = []
    for key, line in lines:
        name = line.name
        if methods[key, name] > 1 or name in CONTROLS:
            folder = Path(line.where).name
            name = f"{name} ({folder if folders[key, name, folder] == 1 else line.where})"
        named.append((key, replace(line, name=name)))
    return named

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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from diffaug_datasets.evaluate.features import cached_features
from diffaug_datasets.release.read import load

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

    from diffaug_datasets.models.encoders import Encoder

Rule = Literal["class", "global", "index", "lt_inverse"]
CONTROLS = ("real", "duplicate", "zero_shot")
PROMPT = "a photo of a {name}"


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
    found: defaultdict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        found[label].append(place)
    return dict(found)


def _even(places: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(places, 1 / len(places))


class Suite(BaseModel):
    """How sets are judged: the rule and probability of mixing, classifiers, and what is fixed about them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classifiers: tuple[Kind, ...] = Field(default=("logistic",), min_length=1)
    rule: Rule = "class"
    probability: float = Field(default=0.5, ge=0, le=1, description="of a real image to be replaced")
    penalty: float = Field(default=1.0, gt=0, description="scikit-learn's C; larger = less regularised")
    synthetic_only: bool = Field(default=True, description="a line of the synthetic images alone for each set")
    seed: int = Field(default=0, ge=0)


USUAL = Suite()


@dataclass(frozen=True)
class Pictures:
    """Images of a line or a draw: unit-norm features [n d], labels, and pixel digests."""

    features: Array
    labelled: Labelled
    digests: tuple[str, ...]


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


def bench(
    sets: Sequence[str | Path],
    encoder: "Encoder",
    folder: Path,
    suite: Suite = USUAL,
    *,
    config: str | None = None,
    with_real: str | Path | None = None,
    cache: Path | None = None,
) -> Answer:
    """Train and test on run folders, published sets or addresses; what `folder` holds already is not made again.

    Raises:
        DiffAugError: a set cannot be loaded, or lacks its real, its synthetic or its test images.
        RecipeError: the rule or the probability cannot be.
    """
    read = partial(_read, encoder=encoder, config=config, with_real=with_real, cache=cache)
    found = [read(where) for where in sets]
    draws = {draw.key: draw for draw, _ in found}
    lines = _named([(draw.key, line) for draw, line in found])
    cells = CellFolder(folder)
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


Job = tuple[Cell, partial[Fitted], Draw]


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
            yield cell, partial(_told_by_names, encoder, draw), draw


def _examples(draw: Draw, lines: Sequence[Line], suite: Suite) -> Iterator[tuple[str, Examples, str]]:
    """(name, examples, digest of the synthetic images) of every line of a draw, the controls first."""
    real = draw.real
    alone = Examples(real.features, real.labelled.soft)
    yield "real", alone, ""
    twice = Examples(np.concatenate([real.features] * 2), np.concatenate([real.labelled.soft] * 2) / 2)
    yield "duplicate", twice, ""
    for line in lines:
        made = line.synthetic
        content = digest([list(made.digests), made.labelled.soft.tolist()])
        of_real, of_made = shares(real.labelled, made.labelled, suite.rule, suite.probability)
        targets = [real.labelled.soft * of_real[:, None], made.labelled.soft * of_made[:, None]]
        yield line.name, Examples(np.concatenate([real.features, made.features]), np.concatenate(targets)), content
        if suite.synthetic_only:
            yield f"{line.name} alone", Examples(made.features, made.labelled.soft).with_mass(alone.mass), content


def _fitted(kind: Kind, examples: Examples, draw: Draw, suite: Suite) -> Fitted:
    begin = time.perf_counter()
    predicted = fit(kind, examples, suite.penalty, suite.seed).predict(draw.test.features)
    counts = int((examples.targets.sum(1) > 0).sum())
    return Fitted(predicted, counts, examples.mass, time.perf_counter() - begin)


def _told_by_names(encoder: "Encoder", draw: Draw) -> Fitted:
    begin = time.perf_counter()
    texts = encoder.text_features([PROMPT.format(name=name) for name in draw.class_names]).double().numpy()
    predicted: NDArray[np.int64] = (draw.test.features @ unit(texts).T).argmax(1)
    return Fitted(predicted, 0, 0.0, time.perf_counter() - begin)


def _read(
    where: str | Path, encoder: "Encoder", config: str | None, with_real: str | Path | None, cache: Path | None
) -> tuple[Draw, Line]:
    train = load(where, config, "train", with_real=with_real)
    test = load(where, config, "test", with_real=with_real)
    names = tuple(train.features["label"].names)
    origins = train["origin"]
    parts = [[i for i, o in enumerate(origins) if (o == "real") == is_real] for is_real in (True, False)]
    for places, what in zip(parts, ("real training", "synthetic"), strict=True):
        if not places:
            raise RunError(f"{where}: holds no {what} image, and a bench needs some; choose another run or config.")
    real, made, held_out = (
        _pictures(rows, len(names), encoder, cache) for rows in (train.select(parts[0]), train.select(parts[1]), test)
    )
    key = digest(["draw", sorted(real.digests), list(held_out.digests), list(names)])
    leaks = tuple(sorted(set(made.digests) & set(held_out.digests)))
    method = str(train[parts[1][0]]["method"])
    return Draw(key, names, real, held_out), Line(str(where), method, made, leaks)


def _pictures(rows: "datasets.Dataset", classes: int, encoder: "Encoder", cache: Path | None) -> Pictures:
    digests = list(rows["pixel_sha256"])

    def read(place: int) -> "Image":
        picture: Image = rows[place]["image"]
        return picture.convert("RGB")

    soft = np.zeros((len(rows), classes))
    for row, label in zip(soft, rows["soft_label"], strict=True):
        row[label["class"]] = label["weight"]
    labels = np.asarray(rows["label"], dtype=np.int64)
    features = cached_features(encoder, digests, read, cache)
    return Pictures(features, Labelled(labels, soft, list(rows["source_ids"])), tuple(digests))


def _named(found: Sequence[tuple[str, Line]]) -> list[tuple[str, Line]]:
    """Lines of one method in one draw are told apart by their folder's or repository's name."""
    taken = [(key, line.name) for key, line in found]
    named = []
    for key, line in found:
        is_alone = taken.count((key, line.name)) == 1 and line.name not in CONTROLS
        name = line.name if is_alone else f"{line.name} ({Path(line.where).name})"
        named.append((key, Line(line.where, name, line.synthetic, line.leaks)))
    return named

"""What a bench reads of its sets: the real images of a draw, its test images, and the synthetic ones of a line.

A *draw* is what a run may see of the real images, and the test images; sets with the same real and test images are
lines of one draw. Images are opened when they are looked at, one by one.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffaug_datasets.core.errors import RecipeError, RunError
from diffaug_datasets.core.identity import digest
from diffaug_datasets.evaluate.cells import Tested
from diffaug_datasets.evaluate.classifiers import Array
from diffaug_datasets.evaluate.features import places_by_origin
from diffaug_datasets.evaluate.leaks import leaks_of
from diffaug_datasets.evaluate.making import Making, making_of
from diffaug_datasets.evaluate.suite import Mixing
from diffaug_datasets.release.leakage import Looks
from diffaug_datasets.release.read import EmptySplit, load

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

    from diffaug_datasets.evaluate.other_tests import TestsOf


@dataclass(frozen=True)
class Labelled:
    """Labels of images: hard ones [n], soft ones [n C], and for each image the ids of the real images it is from."""

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

    def select(self, places: Sequence[int]) -> "Labelled":
        """Those of some images, in that order."""
        return Labelled(self.labels[places], self.soft[places], [self.source_ids[i] for i in places])

    def hardened(self) -> "Labelled":
        """The same with all weight on the hard label."""
        return Labelled.hard(self.labels.tolist(), self.soft.shape[1], self.source_ids)


@dataclass(frozen=True)
class Images:
    """Images of a draw or a line. `keys`: what each looks like (its pixel digest, and what was done to it since).

    `read(i)` opens the i-th as RGB.
    """

    labelled: Labelled
    keys: tuple[str, ...]
    read: "Callable[[int], Image]"

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def identity(self) -> str:
        """Digest of all that a cell hangs on, in order: looks, soft labels, and the real images they are from."""
        return digest(self._rows)

    @cached_property
    def identity_of_any_order(self) -> str:
        """The same for another order of the images."""
        return digest(sorted(map(digest, self._rows)))

    @property
    def _rows(self) -> list[object]:
        rows = zip(self.keys, self.labelled.soft.tolist(), self.labelled.source_ids, strict=True)
        return [[key, weights, list(sources)] for key, weights, sources in rows]

    def select(self, places: Sequence[int]) -> "Images":
        """Some of them, in that order."""
        chosen, read = list(places), self.read
        return Images(self.labelled.select(chosen), tuple(self.keys[i] for i in chosen), lambda i: read(chosen[i]))

    def __add__(self, other: "Images") -> "Images":
        first, second = self.labelled, other.labelled
        labelled = Labelled(
            np.concatenate([first.labels, second.labels]),
            np.concatenate([first.soft, second.soft]),
            [*first.source_ids, *second.source_ids],
        )
        n, of_first, of_second = len(self), self.read, other.read
        return Images(labelled, self.keys + other.keys, lambda i: of_first(i) if i < n else of_second(i - n))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of every class there are."""
        labelled = self.labelled
        return tuple(np.bincount(labelled.labels, minlength=labelled.soft.shape[1]).tolist())

    def per_class(self, most: "int | Sequence[int]") -> "Images":
        """The first `most` of every class, in their order; a sequence says it for each class."""
        seen: Counter[int] = Counter()
        kept = []
        for place, label in enumerate(self.labelled.labels.tolist()):
            seen[label] += 1
            if seen[label] <= (most if isinstance(most, int) else most[label]):
                kept.append(place)
        return self.select(kept)


@dataclass(frozen=True)
class Draw:
    """The real images that methods may see, and the test images.

    `kinds`, `places`: what groups of test images are told by (the columns `kind` and `place` of a set), '' where that
    is not known.
    """

    key: str
    class_names: tuple[str, ...]
    real: Images
    test: Images
    places: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def tested(self) -> Tested:
        """The test images as they stand beside predictions."""
        labels = self.test.labelled.labels
        counts = np.asarray(self.real.counts, dtype=np.int64)[labels]
        return Tested(self.test.keys, labels, counts, self.places or [""] * len(labels), self.kinds)


@dataclass(frozen=True)
class Line:
    """One set of a draw: where it came from, what it is called, its synthetic images; `leaks`: a sentence each.

    `mixing`: where it differs from the bench's. `making`: how it was made, where the set says so. `is_control`: the
    bench added it, and it follows the first set of the draw. `told_by`: what tells it from others of its name; default:
    where it came from.
    """

    where: str
    name: str
    synthetic: Images
    leaks: tuple[str, ...]
    mixing: Mixing | None = None
    making: Making | None = None
    is_control: bool = False
    told_by: str = ""


def leak_warnings(lines: Sequence[Line]) -> tuple[str, ...]:
    """A sentence for every way in which a set shows test images."""
    return tuple(f"{line.where}: {sentence}" for line in lines for sentence in line.leaks)


def read_set(
    where: str,
    config: str | None = None,
    with_real: str | Path | None = None,
    tests_of: "TestsOf | None" = None,
    looks: Looks | None = None,
) -> tuple[Draw, Line]:
    """A run folder, published set or address as a draw and a line of it, named after its method.

    `tests_of`: gives test images in the place of the set's own. `looks`: of test images, from sets before.

    Raises:
        DiffAugError: it cannot be loaded, lacks its real, its synthetic or its test images, or has one class alone.
    """
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
    names = tuple(train.features["label"].names)
    test = tests_of(names) if tests_of else _own_tests(where, config, with_real)
    real, made, held_out = (
        images_of(rows, len(names)) for rows in (train.select(real_rows), train.select(made_rows), test)
    )
    key = digest(["draw", real.identity_of_any_order, held_out.identity, list(names)])
    leaks = leaks_of(where, train, test, looks=looks).warnings
    places, kinds = (_texts(test, column) for column in ("place", "kind"))
    method, making = str(train[made_rows[0]]["method"]), making_of(where, config)
    return Draw(key, names, real, held_out, places, kinds), Line(where, method, made, leaks, making=making)


def _own_tests(where: str, config: str | None, with_real: str | Path | None) -> "datasets.Dataset":
    try:
        return load(where, config, "test", with_real=with_real)
    except EmptySplit:
        raise RunError(
            f"{where}: holds no test image, and a bench needs some; plan with include_test: true and a source that has "
            "a test split."
        ) from None


def _texts(rows: "datasets.Dataset", column: str) -> tuple[str, ...]:
    return tuple(value or "" for value in rows[column][:]) if column in rows.column_names else ()


def images_of(rows: "datasets.Dataset", classes: int) -> Images:
    """The images of a loaded set, in their order."""
    soft = np.zeros((len(rows), classes))
    columns = {name: rows[name][:] for name in ("soft_label", "label", "source_ids", "pixel_sha256")}  # not row by row
    for row, label in zip(soft, columns["soft_label"], strict=True):
        row[label["class"]] = label["weight"]
    labels, pictures = np.asarray(columns["label"], dtype=np.int64), rows.select_columns("image")

    def read(place: int) -> "Image":
        picture: Image = pictures[place]["image"]
        return picture.convert("RGB")

    return Images(Labelled(labels, soft, columns["source_ids"]), tuple(columns["pixel_sha256"]), read)


def named_apart(lines: Sequence[tuple[str, Line]], taken: Sequence[str]) -> list[tuple[str, Line]]:
    """(draw, line) with names of their own: lines of one name in one draw are told apart by their places' last part.

    Where these are the same too, by the whole place. `taken`: names of other lines.

    Raises:
        RecipeError: two lines of a draw would have one name all the same.
    """
    short = [line.told_by or Path(line.where).name for _, line in lines]
    names = Counter((key, line.name) for key, line in lines)
    ends = Counter((key, line.name, end) for (key, line), end in zip(lines, short, strict=True))
    named = []
    for (key, line), end in zip(lines, short, strict=True):
        name = line.name
        if names[key, name] > 1 or name in taken:
            name = f"{name} ({end if ends[key, name, end] == 1 else line.told_by or line.where})"
        named.append((key, replace(line, name=name)))
    repeated = [name for (_, name), count in Counter((key, line.name) for key, line in named).items() if count > 1]
    if repeated:
        raise RecipeError(f"sets: two lines of one draw are called {repeated[0]!r}; give each a name of its own.")
    return named

"""Test images that are not those of the sets: what a classifier of one dataset is worth on another.

As in a test of robustness: a classifier learns CUB's birds and is asked about Waterbirds'. Classes go by their names.
The images lie beside the cells as one Arrow file, whose rows are those of any published test split.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RecipeError, SourceError, few
from diffaug_datasets.core.identity import digest
from diffaug_datasets.core.plan import real_rows
from diffaug_datasets.core.rows import Row
from diffaug_datasets.core.sources import SourceTable
from diffaug_datasets.evaluate.suite import OtherTest
from diffaug_datasets.run.shards import real_row, write_arrow
from diffaug_datasets.sources.real import RealSet, read_real

if TYPE_CHECKING:
    import datasets

FOLDER = "test"

TestsOf = Callable[[tuple[str, ...]], "datasets.Dataset"]
"""Names of classes -> the test images of these, labelled by their places in the names."""


def other_tests(asked: OtherTest | None, folder: Path) -> TestsOf | None:
    """The test images that a bench in `folder` asks for, read at most once; None where it asks for the sets' own.

    Raises:
        SourceError: what it gives cannot read them, or there is no test split.
        RecipeError: they are of none of the classes.
    """
    if asked is None:
        return None
    opened: list[RealSet] = []

    @cache
    def tests_of(class_names: tuple[str, ...]) -> "datasets.Dataset":
        if not opened:
            opened.append(_opened(asked))
        return _written(opened[0], class_names, folder)

    return tests_of


def kept_tests(asked: OtherTest | None, folder: Path) -> TestsOf | None:
    """The same as they were written for a finished bench; the source is not looked at.

    Raises:
        SourceError: they are not there any more.
    """
    if asked is None:
        return None

    def tests_of(class_names: tuple[str, ...]) -> "datasets.Dataset":
        import datasets

        path = next(iter(sorted((folder / FOLDER).glob(f"{_classes(class_names)}-*.arrow"))), None)
        if path is None:
            raise SourceError(f"{folder / FOLDER}: the test images of the bench are not there any more; run it again.")
        return datasets.Dataset.from_file(str(path))

    return tests_of


def _opened(asked: OtherTest) -> RealSet:
    try:
        real = read_real(asked.builder, asked.source, partial=asked.partial)
    except SourceError as error:
        hint = "" if asked.source else "; give it with --test-source, or as `test.source` in a bench file."
        raise SourceError(f"test: {str(error).rstrip('.') + hint if hint else error}") from None
    if real.test is None:
        raise SourceError(f"test: {real.facts.title} has no test split here; give a copy that has one.")
    return real


def _written(real: RealSet, class_names: Sequence[str], folder: Path) -> "datasets.Dataset":
    import datasets

    chosen, table = _of_classes(real, class_names)
    columns = tuple(real.facts.columns)
    path = folder / FOLDER / f"{_classes(class_names)}-{digest([table.digest, columns])[:16]}.arrow"

    def rows() -> Iterator[Row]:
        planned = real_rows(table, 0, "test")
        for row, source, index in zip(planned, table.sources, chosen, strict=True):
            yield real_row(row, real.read("test", index), "", source)

    if not path.is_file():
        write_arrow(path, rows(), class_names, columns)
    return datasets.Dataset.from_file(str(path))


def _of_classes(real: RealSet, class_names: Sequence[str]) -> tuple[list[int], SourceTable]:
    """Places and table of the test images whose class is one of these, labelled as these are."""
    whole = real.table("test")
    labels = {name: label for label, name in enumerate(class_names)}
    chosen = [place for place, source in enumerate(whole.sources) if whole.class_names[source.label] in labels]
    if not chosen:
        raise RecipeError(
            f"test: {real.facts.title} has no test image of the classes of the sets ({few(class_names)}); choose "
            "images of the same classes."
        )
    sources = (whole.sources[place] for place in chosen)
    relabelled = tuple(replace(one, label=labels[whole.class_names[one.label]]) for one in sources)
    names = tuple(class_names)
    return chosen, SourceTable(whole.builder, "test", names, names, whole.metaclass, relabelled, whole.revision)


def _classes(class_names: Sequence[str]) -> str:
    return digest(list(class_names))[:16]

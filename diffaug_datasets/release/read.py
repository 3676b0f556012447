"""Finished runs and published sets as datasets, memory-mapped from their shards.

Whoever holds their own copy of the real images puts them into a set that may not carry them: each is found by the
sha256 of its bytes. Tables that others wrote are validated whole before they are used, for a file with bent offsets can
end the process that looks into it; that its digest is right says who wrote it, not that they meant well.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import PublishError, RunError, SourceError, one_line, printable
from diffaug_datasets.core.files import sha256_file, write_atomically
from diffaug_datasets.core.plan_table import arrow_type
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import Ending, Row, column_types
from diffaug_datasets.release.layout import (
    PART_ROWS,
    PROVENANCE,
    PROVENANCE_FILE,
    README,
    SYNTHETIC,
    FileFormat,
    Release,
    difference_of_form,
)
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.provenance import ProvenanceRow
from diffaug_datasets.release.repository import Repository, check_hub_name, local_path
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.shards import arrow_schema, read_stream, write_stream
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.real import RealSet, hub_choice, read_real

if TYPE_CHECKING:
    import datasets

NEVER_NULL = ("row_id", "origin", "label", "status", "split", "source_ids")  # in a provenance: whoever reads needs them
ImagePlace = tuple[str, int]
"""The split of a real dataset and the number of an image in it."""


class EmptySplit(RunError):
    """A run or a published set has no rows of the split that was asked for."""


def load(
    where: str | Path,
    config: str | None = None,
    split: str = "train",
    *,
    revision: str | None = None,
    augmented_only: bool = False,
    with_real: str | Path | None = None,
    check: bool | None = None,
    token: str | bool | None = None,
) -> "datasets.Dataset":
    """A split of a run, a Hub dataset (`org/name`) or a published address, without a second copy.

    A run may lie in an object store; the files of the split are then kept in its cache folder on this machine.
    `config`: as the card lists it; default: the card's. `revision`: a tag, branch or commit of the Hub.
    `augmented_only` leaves the real rows out. `with_real`: your own copy of the real dataset (folder or Hub id), whose
    images are put in, by sha256, where the release may not carry them. `check` reads every byte and compares digests
    first; default: for published sets, not for run folders. Shards are opened only after that. Warns where another
    version of the method or of the columns made the set.

    Raises:
        DiffAugError: not finished or published, no such config, split or image, or a file with other bytes.

    >>> from diffaug_datasets import generate, load, plan
    >>> run = plan("fashion_5shot_txt2img", "runs/shirts", per_class=2, config={"num_inference_steps": 2})
    >>> done = generate(run, workers=1)
    >>> train = load("runs/shirts", split="train")
    >>> train.num_rows, train[-1]["method"], train[-1]["image"].size
    (70, 'txt2img', (32, 32))
    """
    if run := run_at(where):
        return _load_run(run, split, augmented_only, bool(check))
    _check_is_place(where)
    repository = Repository.open(str(where), revision, token)
    release = repository.release(config)
    shown_name = f"{repository.where}, {release.name}"
    if difference := difference_of_form(release):
        warning = f"{shown_name}: {difference}; the rows are given as they were published."
        warnings.warn(printable(warning), stacklevel=2)
    check = check is not False
    ending = (config or release.name).removeprefix(release.name)
    if ending == PROVENANCE:
        return _load_file(repository, release, f"provenance.{release.file_format}", check)
    without_real = augmented_only or ending == SYNTHETIC
    names = [file.path for file in release.split_files(split) if not (without_real and file.origin == "real")]
    parts = [_load_file(repository, release, name, check) for name in names]
    if with_real is not None and not without_real:
        real = load_real_rows(repository, release, split, with_real)
        parts = [real, *parts] if real.num_rows else parts
    if not parts and release.recipe_only:
        raise PublishError(f"{shown_name}: was published without pixels; `diffaug build` makes the images again.")
    return _joined(parts, shown_name, split)


def _check_is_place(where: str | Path) -> None:
    """Raises PublishError where neither a published set can be nor `org/name` of the Hub is meant."""
    if (path := local_path(str(where))) is None or (path / README).is_file():
        return
    if path.is_dir():
        raise PublishError(
            f"{where}: is no run folder (no plan.json) and no published set (no README.md); `diffaug plan` makes a run."
        )
    check_hub_name(str(where))


def _load_run(run: Run, split: str, augmented_only: bool, check: bool) -> "datasets.Dataset":
    done = finished(run)
    if done is None:
        raise RunError(f"{run.where}: not finished; `diffaug generate {run.where}` continues it.")
    files = [file for file in done.split_files(split) if not (augmented_only and file.origin == "real")]
    paths = [run.file(file.path, file.size, file.sha256) for file in files]
    for path, file in zip(paths, files, strict=True):
        if not path.is_file() or (check and sha256_file(path) != file.sha256):
            what = "damaged" if path.is_file() else "missing"
            raise RunError(f"{run.where}/{file.path}: {what}; `diffaug generate {run.where}` makes it again.")
    return _joined([_dataset(path, "arrow") for path in paths], run.where, split)


def _load_file(repository: Repository, release: Release, name: str, check: bool) -> "datasets.Dataset":
    """A file of a release; with `check`, its digest and everything in it is looked at before it is opened."""
    path = repository.checked(release, name, check)
    if check:
        read_foreign(path, release.file_format)
    return _dataset(path, release.file_format)


def _dataset(path: Path, file_format: FileFormat) -> "datasets.Dataset":
    """An Arrow stream as it lies there; Parquet through the cache of `datasets`."""
    import datasets

    if file_format == "parquet":
        return datasets.Dataset.from_parquet(str(path))
    return datasets.Dataset.from_file(str(path))


def _joined(parts: "Sequence[datasets.Dataset]", where: str, split: str) -> "datasets.Dataset":
    import datasets

    if not parts:
        raise EmptySplit(f"{where}: has no rows for split {split!r}; it has train and test at most.")
    return datasets.concatenate_datasets(parts)


def load_real_rows(repository: Repository, release: Release, split: str, source: str | Path) -> "datasets.Dataset":
    """The real rows of a split as the run had them, written once to the cache of `datasets`.

    Raises:
        PublishError: the release has its real rows already.
        SourceError: `source` cannot be read or lacks images that the plan names.
    """
    import datasets

    if release.real:
        raise PublishError(f"{repository.where}: {release.name} has its real images; leave with_real out.")
    rows = planned_real(repository, release, split)
    recipe = Recipe.from_yaml(repository.checked(release, "recipe.yaml"), folder=None)
    real = read_own_images(recipe, str(source))
    places = located(real, rows, str(source))
    path = Path(datasets.config.HF_DATASETS_CACHE) / "diffaug_datasets" / f"{release.plan_id[:16]}-{split}.arrow"
    schema = arrow_schema(release.class_names, release.columns)

    def rows_with_images() -> Iterator[Row]:
        for row in rows:
            yield Row.of(row, real.read(*places[row["source_ids"][0]]), release.columns)

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as sink:
            write_stream(sink, rows_with_images(), schema)

    write_atomically(path, write)
    return datasets.Dataset.from_file(str(path))


def read_own_images(recipe: Recipe, source: str | None) -> RealSet:
    """A person's own copy of the real images that a release rests on; None for the place that its builder knows.

    Images are found by their bytes, so a copy may lack some, and what cannot be read is left out.

    Raises:
        SourceError: it cannot be read.
    """
    choice = hub_choice(recipe, source)
    return read_real(recipe.builder, source, partial=source is not None, choice=choice, on_bad_image="skip")


def planned_real(repository: Repository, release: Release, split: str) -> list[ProvenanceRow]:
    """Provenance of the real rows of a split."""
    real = (pc.field("origin") == "real") & (pc.field("split") == split)
    return list(Provenance.of(repository, release).rows(real))


def located(real: RealSet, rows: Sequence[ProvenanceRow], source: str) -> Mapping[str, ImagePlace]:
    """Source id -> where a source has it. `source`: its name, for the message.

    Raises:
        SourceError: images are missing; says how many and names one.
    """
    places: dict[str, ImagePlace] = {}
    for name, table in (("test", real.test), ("train", real.train)):
        if table is not None:
            places |= {image.id: (name, index) for index, image in enumerate(table.sources)}
    missing = [row["source_ids"][0] for row in rows if row["source_ids"][0] not in places]
    if missing:
        raise SourceError(
            f"{source}: lacks {len(missing)} of {len(rows)} real images of this release, such as the one with sha256 "
            f"{missing[0][:16]}; give the same files that the run was made from."
        )
    return places


def shard_table(repository: Repository, release: Release, name: str, check: bool = True) -> pa.Table:
    """A shard of a release; with `check`, its digest is looked at first.

    Raises:
        PublishError: it is missing, has other bytes, or cannot be read.
    """
    return read_foreign(repository.checked(release, name, check), release.file_format)


def read_foreign(path: Path, file_format: FileFormat) -> pa.Table:
    """A shard or a provenance table; memory-mapped where it is an Arrow file.

    Raises:
        PublishError: it is no such file, or its parts do not fit together.
    """
    with _unreadable_refused(path, file_format):
        table = pq.read_table(path) if file_format == "parquet" else read_stream(str(path))
        table.validate(full=True)
    return table


@dataclass(frozen=True)
class Provenance:
    """The provenance of a release, read in parts each time that it is asked for: millions of rows are never held."""

    path: Path
    release: Release

    @classmethod
    def of(cls, repository: Repository, release: Release, check: bool = True) -> "Provenance":
        """Of a published set; with `check`, its digest is looked at first.

        Raises:
            PublishError: the file is missing, has other bytes, or lacks columns that the rows need.
        """
        return cls.at(repository.checked(release, PROVENANCE_FILE, check), release)

    @classmethod
    def at(cls, path: Path, release: Release) -> "Provenance":
        """A file whose digest is right.

        Raises:
            PublishError: it cannot be read, or a column is missing or of another type; more columns do no harm.
        """
        schema = arrow_schema(release.class_names, release.columns)
        wanted = {field.name: field.type for field in schema if field.name != "image"}
        wanted |= {name: arrow_type(kind) for name, kind in column_types(Ending).items()}
        with _unreadable_refused(path, "parquet"), pq.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            if wrong := [name for name, kind in wanted.items() if types.get(name) != kind]:
                raise PublishError(
                    f"{PROVENANCE_FILE}: the column {wrong[0]!r} is {types.get(wrong[0], 'missing')}, expected "
                    f"{wanted[wrong[0]]}; do not use it."
                )
        return cls(path, release)

    def columns(self) -> Sequence[str]:
        """The names of its columns."""
        names: list[str] = pq.read_schema(self.path).names
        return names

    def table(self, columns: Sequence[str]) -> pa.Table:
        """A few columns, whole; those that it lacks are left out."""
        if parts := list(self.parts(columns)):
            return pa.concat_tables(parts)
        schema = pq.read_schema(self.path)
        return pa.schema([schema.field(name) for name in columns if name in schema.names]).empty_table()

    def rows(self, only: pc.Expression | None = None, columns: Sequence[str] | None = None) -> Iterator[ProvenanceRow]:
        """Row after row, those alone for which `only` holds."""
        for part in self.parts(columns):
            yield from (part if only is None else part.filter(only)).to_pylist()

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its rows in order, some thousands at a time; columns that it lacks are left out.

        Raises:
            PublishError: a part cannot be read, or has rows without what every row needs.
        """
        with _unreadable_refused(self.path, "parquet"), pq.ParquetFile(self.path) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(PART_ROWS, columns=known):
                part = pa.Table.from_batches([batch])
                part.validate(full=True)
                if null := [name for name in NEVER_NULL if name in part.column_names and part.column(name).null_count]:
                    raise PublishError(
                        f"{self.path.name}: the column {null[0]!r} has rows without a value; do not use it."
                    )
                yield part


@contextmanager
def _unreadable_refused(path: Path, file_format: FileFormat) -> Iterator[None]:
    """One sentence for whatever is wrong with a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        reason = one_line(error)
        raise PublishError(
            f"{path.name}: is no {file_format} file that can be read ({reason}); do not use it."
        ) from None

"""Finished and published runs as datasets, memory-mapped from their shards."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import PublishError, RunError
from diffaug_datasets.core.printable import printable
from diffaug_datasets.core.temporary import sha256_file
from diffaug_datasets.data.foreign_tables import read_foreign
from diffaug_datasets.data.release import PROVENANCE, SYNTHETIC, FileFormat, Release, other_form
from diffaug_datasets.data.repository import Repository, ending
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.store import Run

if TYPE_CHECKING:
    import datasets


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
    """A split of a run folder, a Hub dataset (`org/name`) or a published address, without a second copy.

    `config`: as the card lists it; default: the card's. `revision`: a tag, branch or commit of the Hub.
    `augmented_only` leaves the real rows out. `with_real`: your own copy of the real dataset (folder or Hub id), whose
    images are put in, by sha256, where the release may not carry them. `check` reads every byte and compares digests
    first; default: for published sets, not for run folders. Shards are opened only after that. Warns where another
    version of the method or of the columns made the set.

    Raises:
        DiffAugError: not finished or published, no such config, split or image, or a file with other bytes.
    """
    if (Path(where) / "plan.json").is_file():
        return _load_run(Run.open(where), split, augmented_only, bool(check))
    repository = Repository.open(str(where), revision, token)
    release = repository.release(config)
    if said := other_form(release):
        told = f"{repository.where}, {release.name}: {said}; the rows are given as they were published."
        warnings.warn(printable(told), stacklevel=2)
    if ending(config, release) == PROVENANCE:
        return _table(repository, release, check is not False)
    only = augmented_only or ending(config, release) == SYNTHETIC
    names = [f.path for f in release.split_files(split) if not (only and f.origin == "real")]
    parts = [_published(repository, release, name, check is not False) for name in names]
    if with_real is not None and not only:
        from diffaug_datasets.data.joining import real_rows

        parts.insert(0, real_rows(repository, release, split, with_real))
    return _joined(parts, f"{repository.where}, {release.name}", split, release)


def _joined(
    parts: "list[datasets.Dataset]", where: str, split: str, release: Release | None = None
) -> "datasets.Dataset":
    import datasets

    if not parts and release is not None and release.recipe_only:
        raise PublishError(f"{where}: was published without pixels; `diffaug build` makes the images again.")
    if not parts:
        raise RunError(f"{where}: has no rows for split {split!r}; it has train and test at most.")
    return datasets.concatenate_datasets(parts)


def _load_run(run: Run, split: str, augmented_only: bool, check: bool) -> "datasets.Dataset":
    done = finished(run)
    if done is None:
        raise RunError(f"{run.folder}: not finished; `diffaug generate {run.folder}` continues it.")
    files = [f for f in done.split_files(split) if not (augmented_only and f.origin == "real")]
    for file in files if check else []:
        if sha256_file(run.folder / file.path) != file.sha256:
            raise RunError(f"{run.folder / file.path}: damaged; `diffaug generate {run.folder}` makes it again.")
    return _joined([_open(run.folder / f.path) for f in files], str(run.folder), split)


def _table(repository: Repository, release: Release, check: bool) -> "datasets.Dataset":
    return _published(repository, release, f"provenance.{release.file_format}", check)


def _published(repository: Repository, release: Release, name: str, check: bool) -> "datasets.Dataset":
    """A file of a release; with `check`, its digest and everything in it is looked at before it is opened."""
    path = repository.checked(release, name, check)
    if check:
        read_foreign(path, release.file_format)
    return _open(path, release.file_format)


def _open(path: Path, file_format: FileFormat = "arrow") -> "datasets.Dataset":
    """An Arrow stream as it lies there; Parquet through the cache of `datasets`."""
    import datasets

    if file_format == "parquet":
        return datasets.Dataset.from_parquet(str(path))
    return datasets.Dataset.from_file(str(path))

"""Finished runs as datasets without a copy."""

from pathlib import Path
from typing import TYPE_CHECKING

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.run.assembly import finished
from diffaug_datasets.run.store import Run, sha256_file

if TYPE_CHECKING:
    import datasets


def load(
    folder: str | Path, split: str = "train", *, augmented_only: bool = False, check: bool = False
) -> "datasets.Dataset":
    """A split of a finished run folder, memory-mapped from its shards.

    `augmented_only` leaves the real rows out; `check` reads every byte and compares digests first.

    Raises:
        RunError: the run is not finished, has no such split, or a file is not the one that run.json names.
    """
    import datasets

    run = Run.open(folder)
    done = finished(run)
    if done is None:
        raise RunError(f"{folder}: not finished; `diffaug generate {folder}` continues it.")
    files = [f for f in done.split_files(split) if not (augmented_only and f.origin == "real")]
    if not files:
        raise RunError(f"{folder}: has no rows for split {split!r}; it has train and test at most.")
    for file in files if check else []:
        if sha256_file(run.folder / file.path) != file.sha256:
            raise RunError(f"{run.folder / file.path}: damaged; `diffaug generate {folder}` makes it again.")
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(run.folder / f.path)) for f in files])

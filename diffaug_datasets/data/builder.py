"""Runs as `datasets` builders: `download_and_prepare()` makes what is missing, then links finished shards."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.catalogue import config_recipe
from diffaug_datasets.data.prepare import prepare, write_run
from diffaug_datasets.data.real import discover_builders
from diffaug_datasets.run.assembly import Assembled, RunFile
from diffaug_datasets.run.execute import execute, over_budget
from diffaug_datasets.run.features import features
from diffaug_datasets.run.store import Run, sha256_file
from diffaug_datasets.run.worker import WorkerOptions

DEFAULT_OPTIONS = WorkerOptions(device="auto")


def list_builders() -> list[str]:
    """Names of the real datasets that can be augmented: the first part of every config name."""
    return sorted(discover_builders())


def load_builder(
    name: str,
    source: str | None = None,
    backbone: Any = None,
    run_dir: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    *,
    workers: int = 0,
    device: str = "auto",
    cache_dir: str | None = None,
    **changes: Any,
) -> "RunBuilder":
    """The builder of an augmented dataset such as `cub_5shot_diffii`; nothing is generated yet.

    `source`: a Hub id, an image folder or the dataset's own folder. `changes` are recipe keys (`per_image=2`,
    `confusion="matrix.csv"`, `config={...}`). The run folder defaults to `runs/<name>-<first digits of the plan id>`.

    Raises:
        DiffAugError: one sentence on the name, the source, the recipe or the backbone.
    """
    given = {"source": source, "backbone": backbone}
    changes |= {key: value for key, value in given.items() if value is not None}
    prepared = prepare(recipe or config_recipe(name, **changes))
    folder = Path(run_dir) if run_dir else Path("runs") / f"{prepared.plan.header.name}-{prepared.plan.id[:8]}"
    options = WorkerOptions(device=device)
    return RunBuilder(write_run(prepared, folder), options=options, workers=workers, cache_dir=cache_dir)


class RunBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """One run as a dataset. Its `hash` is the plan id, so caches never mix two plans."""

    VERSION = datasets.Version("1.0.0")

    def __init__(
        self, run: Run, *, options: WorkerOptions = DEFAULT_OPTIONS, workers: int = 0, cache_dir: str | None = None
    ) -> None:
        self.run, self._options, self._workers = run, options, workers
        header = run.plan.header
        super().__init__(
            cache_dir=cache_dir or str(run.folder / "cache"),
            dataset_name=str(header.recipe["builder"]),
            config_name=header.name,
            hash=run.plan.id[:16],
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=features(self.run.plan.header.class_names))

    def finish(self) -> Assembled:
        """Make what the run lacks.

        Raises:
            RunError: more rows failed than the recipe's budget.
        """
        assembled = execute(self.run, self._options, self._workers)
        if assembled is None:
            raise RunError(f"{self.run.folder}: nothing was assembled.")
        if trouble := over_budget(self.run, assembled):
            raise RunError(trouble)
        return assembled

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:  # noqa: ARG002
        assembled = self.finish()
        splits = [split for split in ("train", "test") if assembled.split_files(split)]
        return [datasets.SplitGenerator(s, gen_kwargs={"files": list(assembled.split_files(s))}) for s in splits]

    def _generate_tables(self, files: list[RunFile]) -> Iterator[tuple[Any, pa.Table]]:
        """The path of streaming and of Parquet: record batches as they lie in the shards."""
        for i, file in enumerate(files):
            with pa.memory_map(str(self._checked(file))) as source:
                for j, batch in enumerate(pa.ipc.open_stream(source)):
                    yield datasets.builder.Key(i, j), pa.Table.from_batches([batch])

    def _checked(self, file: RunFile) -> Path:
        path = self.run.folder / file.path
        if not path.is_file() or sha256_file(path) != file.sha256:
            raise RunError(f"{path}: missing or not the file that run.json names; `diffaug generate` makes it again.")
        return path

    def _prepare_split(
        self, split_generator: Any, file_format: str = "arrow", num_proc: Any = None, max_shard_size: Any = None
    ) -> None:
        """Link the finished shards into the cache: no row is written twice."""
        if file_format != "arrow" or datasets.filesystems.is_remote_filesystem(self._fs):
            super()._prepare_split(
                split_generator, file_format=file_format, num_proc=num_proc, max_shard_size=max_shard_size
            )
            return
        files: list[RunFile] = split_generator.gen_kwargs["files"]
        for i, file in enumerate(files):
            _link(self._checked(file), Path(self._output_dir) / self._file_name(split_generator.name, i, len(files)))
        info = split_generator.split_info
        info.num_examples, info.num_bytes = sum(f.rows for f in files), sum(f.num_bytes for f in files)
        if len(files) > 1:
            info.shard_lengths = [file.rows for file in files]

    def _file_name(self, split: str, number: int, total: int) -> str:
        part = f"-{number:05d}-of-{total:05d}" if total > 1 else ""
        return f"{self.dataset_name}-{split}{part}.arrow"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

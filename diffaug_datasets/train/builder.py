"""Runs as `datasets` builders: `download_and_prepare()` makes what is missing, then links finished shards."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from diffaug_datasets.core.errors import RecipeError, RunError
from diffaug_datasets.core.files import sha256_file
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import config_recipe, merged
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.run.assembly import Assembled, RunFile
from diffaug_datasets.run.execute import execute, over_budget
from diffaug_datasets.run.progress import following
from diffaug_datasets.run.shards import features
from diffaug_datasets.run.store import Run, on_this_machine
from diffaug_datasets.run.worker import WorkerOptions
from diffaug_datasets.sources.real import discover_builders

DEFAULT_OPTIONS = WorkerOptions(device="auto")


def list_builders() -> list[str]:
    """Names of the real datasets that can be augmented: the first part of every config name."""
    return sorted(discover_builders())


def load_builder(
    name: str | None = None,
    source: str | None = None,
    backbone: Any = None,
    run_dir: str | os.PathLike[str] | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    *,
    workers: int = 0,
    device: str = "auto",
    cache_dir: str | None = None,
    **changes: Any,
) -> "RunBuilder":
    """The builder of an augmented dataset such as `cub_5shot_diffii`, or of a recipe; nothing is generated yet.

    `recipe`: instead of a name, a `Recipe` or its YAML file. `source`: a Hub id, an image folder or the dataset's own
    folder. `changes` are recipe keys (`per_image=2`, `confusion="matrix.csv"`, `config={...}`), over the recipe's own.
    The run folder defaults to `runs/<name>-<first digits of the plan id>`.

    Raises:
        DiffAugError: one sentence on the name, the source, the recipe or the backbone.
    """
    given = {"source": source, "backbone": backbone}
    changes |= {key: value for key, value in given.items() if value is not None}
    place = on_this_machine(os.fspath(run_dir), "run_dir") if run_dir else None
    prepared = prepare(_recipe(name, recipe, changes))
    for text in (*prepared.plan.header.warnings, *prepared.real.survey.warnings):
        warnings.warn(text, stacklevel=2)
    folder = place or Path("runs") / f"{prepared.plan.header.name}-{prepared.plan.id[:8]}"
    options = WorkerOptions(device=device)
    return RunBuilder(write_run(prepared, folder), options=options, workers=workers, cache_dir=cache_dir)


def _recipe(name: str | None, recipe: Recipe | str | os.PathLike[str] | None, changes: dict[str, Any]) -> Recipe:
    if (name is None) == (recipe is None):
        raise RecipeError(f"load_builder: got name {name!r} and recipe {recipe!r}, expected one of the two.")
    if recipe is None:
        return config_recipe(str(name), **changes)
    if not isinstance(recipe, Recipe):
        recipe = Recipe.from_yaml(os.fspath(recipe))
    return Recipe.from_dict(merged(recipe.model_dump(mode="json", by_alias=True), changes)) if changes else recipe


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
        """Make what the run lacks; shows how far it is on standard error unless `datasets` shows no progress bars.

        Raises:
            RunError: more rows failed than the recipe's budget.
        """
        if datasets.utils.are_progress_bars_disabled():
            assembled = execute(self.run, self._options, self._workers)
        else:
            with following(self.run, sys.stderr) as tick:
                assembled = execute(self.run, self._options, self._workers, tick)
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

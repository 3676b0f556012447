"""A run as a `datasets` builder: `download_and_prepare()` makes what is missing, then links the finished shards."""

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
from diffaug_datasets.core.models import BackboneSpec
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.new_run import find_recipe, price_plan
from diffaug_datasets.run.assembly import Assembled, RunFile
from diffaug_datasets.run.execute import generate, over_budget
from diffaug_datasets.run.shards import features
from diffaug_datasets.run.store import Run, on_this_machine
from diffaug_datasets.sources.real import discover_builders


def list_builders() -> list[str]:
    """Names of the real datasets that can be augmented: the first part of every config name.

    >>> from diffaug_datasets import list_builders
    >>> "cub" in list_builders(), "fashion" in list_builders()
    (True, True)
    """
    return sorted(discover_builders())


def load_builder(
    name: str | None = None,
    source: str | None = None,
    backbone: str | dict[str, object] | BackboneSpec | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    *,
    workers: int = 0,
    device: str = "auto",
    cache_dir: str | None = None,
    **changes: Any,
) -> "RunBuilder":
    """The `datasets` builder of an augmented dataset; the plan is drawn and written, nothing is generated yet.

    What `plan` would warn of comes as Python warnings.

    Args:
        name: a config name such as `cub_5shot_diffii`, or a shipped recipe.
        source: real images: a Hub id, an image folder or the dataset's own folder; default: the builder's own.
        backbone: the diffusion model: `tiny`, a Hub id, a folder, or the keys of a recipe's `backbone`.
        run_dir: the run folder; default: `runs/NAME-PLANID`.
        recipe: instead of a name, a `Recipe` or its YAML file.
        workers: processes that `download_and_prepare` starts; 0 means one per GPU, or one per CPU core.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        cache_dir: where `datasets` keeps what it prepares; default: `cache` in the run folder.
        changes: recipe keys (`per_image=2`, `confusion="matrix.csv"`, `config={...}`), over the recipe's own.

    Raises:
        RecipeError: neither or both of name and recipe, or a key or value that a recipe cannot have.
        DiffAugError: one sentence on the source, the backbone or the run folder, as of `plan`.

    >>> from diffaug_datasets import load_builder
    >>> builder = load_builder("fashion_5shot_img2img", per_class=1, workers=1, config={"num_inference_steps": 2})
    >>> builder.download_and_prepare()
    >>> builder.as_dataset(split="train").num_rows
    60
    """
    if (name is None) == (recipe is None):
        raise RecipeError(f"load_builder: got name {name!r} and recipe {recipe!r}, expected one of the two.")
    folder = on_this_machine(os.fspath(run_dir), "run_dir") if run_dir else None
    changes |= {key: value for key, value in (("source", source), ("backbone", backbone)) if value is not None}
    asked = Path(recipe) if isinstance(recipe, str) else recipe or str(name)
    drawn = price_plan(find_recipe(asked, changes), folder)
    for text in drawn.warnings:
        warnings.warn(text, stacklevel=2)
    return RunBuilder(drawn.write(), workers=workers, device=device, cache_dir=cache_dir)


class RunBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """One run as a dataset. Its `hash` is the plan id, so caches never mix two plans."""

    VERSION = datasets.Version("1.0.0")

    def __init__(self, run: Run, *, workers: int = 0, device: str = "auto", cache_dir: str | None = None) -> None:
        self.run, self._workers, self._device = run, workers, device
        header = run.plan.header
        super().__init__(
            cache_dir=cache_dir or str(run.folder / "cache"),
            dataset_name=str(header.recipe["builder"]),
            config_name=header.name,
            hash=run.plan.id[:16],
        )

    def finish(self) -> Assembled:
        """Make what the run lacks; shows how far it is on standard error unless `datasets` shows no progress bars.

        Raises:
            RunError: more rows failed than the recipe's budget.
        """
        shown = None if datasets.utils.are_progress_bars_disabled() else sys.stderr
        assembled = generate(self.run, workers=self._workers, device=self._device, progress=shown)
        if trouble := over_budget(self.run, assembled):
            raise RunError(trouble)
        return assembled

    def _info(self) -> datasets.DatasetInfo:
        header = self.run.plan.header
        return datasets.DatasetInfo(features=features(header.class_names, header.columns))

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:  # noqa: ARG002
        assembled = self.finish()
        splits = [split for split in ("train", "test") if assembled.split_files(split)]
        return [datasets.SplitGenerator(s, gen_kwargs={"files": list(assembled.split_files(s))}) for s in splits]

    def _generate_tables(self, files: list[RunFile]) -> Iterator[tuple[datasets.builder.Key, pa.Table]]:
        """The path of streaming and of Parquet: record batches as they lie in the shards."""
        for file_number, file in enumerate(files):
            with pa.memory_map(str(self._checked(file))) as source:
                for batch_number, batch in enumerate(pa.ipc.open_stream(source)):
                    yield datasets.builder.Key(file_number, batch_number), pa.Table.from_batches([batch])

    def _prepare_split(
        self,
        split_generator: datasets.SplitGenerator,
        file_format: str = "arrow",
        num_proc: int | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Link the finished shards into the cache (or copy them to another disk): no row is written twice."""
        if file_format != "arrow" or datasets.filesystems.is_remote_filesystem(self._fs):
            super()._prepare_split(
                split_generator, file_format=file_format, num_proc=num_proc, max_shard_size=max_shard_size
            )
            return
        files: list[RunFile] = split_generator.gen_kwargs["files"]
        for number, file in enumerate(files):
            part = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
            shard_path = self._checked(file)
            cached_path = Path(self._output_dir) / f"{self.dataset_name}-{split_generator.name}{part}.arrow"
            try:
                os.link(shard_path, cached_path)
            except OSError:
                shutil.copyfile(shard_path, cached_path)
        info = split_generator.split_info
        info.num_examples, info.num_bytes = sum(f.rows for f in files), sum(f.num_bytes for f in files)
        if len(files) > 1:
            info.shard_lengths = [file.rows for file in files]

    def _checked(self, file: RunFile) -> Path:
        """The path of a shard whose bytes are those that run.json names."""
        path = self.run.folder / file.path
        if not path.is_file() or sha256_file(path) != file.sha256:
            raise RunError(f"{path}: missing or not the file that run.json names; `diffaug generate` makes it again.")
        return path

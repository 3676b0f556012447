"""Pools as `datasets` reads them: a Hub id, an image folder, a saved dataset, Parquet or Arrow files, or `tiny`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.images import source_id
from diffaug_datasets.core.models import local_path, on_the_hub
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import PoolTable, fact_columns, stated_facts

if TYPE_CHECKING:
    import datasets

TINY = "assets/tiny/fashion/retrieval.parquet"
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
WAYS = (
    "`tiny` (packaged), a builder's name, a Hub id (org/name or org/name@revision), an image folder, a folder of "
    "`save_to_disk`, or Parquet or Arrow files"
)


class DatasetPool:
    """The images of one `datasets` table, by row. Bytes are read when asked for and checked against their id."""

    def __init__(self, place: str, manifest: Path | None = None) -> None:
        self.place, self._manifest = place, manifest

    @cached_property
    def table(self) -> PoolTable:
        """From the run folder's manifest where there is one; else every image is read once.

        Raises:
            SourceError: the pool cannot be read, or a row has no image.
        """
        if self._manifest is not None:
            columns = pq.read_table(self._manifest).to_pydict()
            return PoolTable(tuple(columns["id"]), tuple(columns["row"]))
        return PoolTable.of(source_id(self._bytes(row)) for row in range(len(self._dataset)))

    def read(self, row: int, image_id: str) -> bytes:
        """The encoded bytes in a row.

        Raises:
            SourceError: they are gone or not those of that id.
        """
        data = self._bytes(row) if row < len(self._dataset) else b""
        if source_id(data) != image_id:
            raise SourceError(
                f"pool {self.place}: row {row} is no longer image {image_id[:12]}; put the pool back, or plan again."
            )
        return data

    def facts(self, row: int) -> Mapping[str, str]:
        """The text columns `url`, `author`, `license` (or usual spellings) of a row, where they are filled."""
        found = self._texts[row : row + 1] if self._texts is not None else {}
        return dict(stated_facts({key: value[0] for key, value in found.items()}))

    def _bytes(self, row: int) -> bytes:
        image = self._images[row]["image"] or {}
        if isinstance(image.get("bytes"), bytes):
            return bytes(image["bytes"])
        path = Path(image.get("path") or "").resolve()
        if not any(path.is_relative_to(root) for root in self._roots) or not path.is_file():
            raise SourceError(f"pool {self.place}: row {row} holds no image bytes; store the images inside the pool.")
        return path.read_bytes()

    @cached_property
    def _dataset(self) -> "datasets.Dataset":
        return _open(self.place)

    @cached_property
    def _images(self) -> "datasets.Dataset":
        import datasets

        name = _image_column(self.place, self._dataset)
        undecoded = self._dataset.select_columns([name]).cast_column(name, datasets.Image(decode=False))
        return undecoded if name == "image" else undecoded.rename_column(name, "image")

    @cached_property
    def _texts(self) -> "datasets.Dataset | None":
        wanted = fact_columns(self._dataset.column_names)
        return self._dataset.select_columns(wanted) if wanted else None

    @cached_property
    def _roots(self) -> tuple[Path, ...]:
        """Where a path in a row may lead: the pool's own folder, and where `datasets` unpacks downloads."""
        import datasets
        from huggingface_hub import constants

        folder = local_path(self.place)
        own = (folder.resolve(),) if folder is not None and folder.is_dir() else ()
        return (*own, Path(datasets.config.HF_DATASETS_CACHE).resolve(), Path(constants.HF_HUB_CACHE).resolve())


def recipe_pool(recipe: Recipe, manifest: Path | None = None) -> DatasetPool | None:
    """The pool of a recipe whose method retrieves; None for all other methods."""
    place: str | None = getattr(recipe.method_config, "pool", None)
    known = manifest if manifest is not None and manifest.is_file() else None
    return DatasetPool(place, known) if place else None


def write_manifest(table: PoolTable, path: Path) -> None:
    """The pool's ids and rows as Parquet, so that workers need not read every image again."""
    columns = pa.table({"id": list(table.ids), "row": pa.array(table.rows, pa.int64())})
    write_atomically(path, lambda temporary: pq.write_table(columns, temporary))


def _open(place: str) -> "datasets.Dataset":
    import datasets

    try:
        with _without_bars():
            if (found := _found(place)) is not None:
                return _one_table(found)
    except (OSError, ValueError, RuntimeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"config.pool: {place!r} cannot be read ({reason}); expected {WAYS}.") from None
    raise SourceError(f"config.pool: got {place!r}, where nothing is; expected {WAYS}.")


def _found(place: str) -> Any:
    """What is at a place: a dataset, or one by split; None where nothing is."""
    import datasets

    folder = local_path(place)
    if place == "tiny":
        return datasets.Dataset(pq.read_table(str(files("diffaug_datasets") / TINY)))
    if folder is not None:
        return _local(folder) if folder.exists() else None
    match = HUB_ID.fullmatch(place)
    return datasets.load_dataset(on_the_hub(match["name"]), revision=match["revision"]) if match else None


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of `datasets` inside; its setting comes back afterwards."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _local(place: Path) -> Any:
    import datasets

    if place.is_dir() and any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(place))
    found = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.suffix in (".parquet", ".arrow"))
    if not found:
        return datasets.load_dataset("imagefolder", data_dir=str(place), drop_labels=True, drop_metadata=False)
    kinds = {path.suffix for path in found}
    if kinds == {".arrow"}:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in found])
    if kinds == {".parquet"}:
        return datasets.load_dataset("parquet", data_files=[str(path) for path in found])
    raise ValueError(f"found files of the kinds {', '.join(sorted(kinds))}")


def _one_table(loaded: Any) -> "datasets.Dataset":
    """A dataset as it is; of several splits all that are there, in the order of their names."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return loaded
    return datasets.concatenate_datasets([loaded[name] for name in sorted(loaded)])


def _image_column(place: str, dataset: "datasets.Dataset") -> str:
    import datasets

    images: Sequence[str] = [k for k, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    raise SourceError(f"config.pool: {place!r} has the columns {', '.join(dataset.column_names)}; expected one Image.")

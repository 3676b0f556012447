"""Pools to retrieve images from, as `datasets` reads them: one table, whose images are known by their content.

A pool is a Hub id, an image folder, a saved dataset, Parquet or Arrow files, or `tiny`, which is inside the package.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from diffaug_datasets.core.errors import SourceError, one_line
from diffaug_datasets.core.files import write_atomically
from diffaug_datasets.core.images import source_id
from diffaug_datasets.core.models import local_path, on_the_hub
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import PoolTable, attribution_columns, stated_attribution
from diffaug_datasets.sources.folders import FolderFetch
from diffaug_datasets.sources.hub import DATASET_ID, cell_bytes, download_caches
from diffaug_datasets.sources.known_files import Known, known_files
from diffaug_datasets.sources.plain_folders import plain_images

if TYPE_CHECKING:
    import datasets

TINY_POOL = "assets/tiny/fashion/retrieval.parquet"
WAYS = (
    "`tiny` (packaged), a builder's name, a Hub id (org/name or org/name@revision), an image folder, a folder of "
    "`save_to_disk`, or Parquet or Arrow files"
)


class DatasetPool:
    """The images of one `datasets` table, by row. Bytes are read when asked for and checked against their id.

    `place`: as a recipe says it. `pool_list`: the run folder's list of its images, where there is one.
    """

    def __init__(self, place: str, pool_list: Path | None = None) -> None:
        self.place, self._list = place, pool_list

    @cached_property
    def table(self) -> PoolTable:
        """From the run folder's list where there is one; else every image is read once.

        Raises:
            SourceError: the pool cannot be read, or a row has no image.
        """
        if self._list is not None:
            columns = pq.read_table(self._list).to_pydict()
            return PoolTable(tuple(columns["id"]), tuple(columns["row"]))
        return PoolTable.of(self._ids())

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

    def attribution(self, row: int) -> Mapping[str, str]:
        """The text columns `url`, `author`, `license` (or usual spellings) of a row, where they are filled."""
        texts = self._texts[row : row + 1] if self._texts is not None else {}
        return dict(stated_attribution({key: value[0] for key, value in texts.items()}))

    def _ids(self) -> Iterator[str]:
        """Of every row. Files of a plain folder that did not change since they were read are not read again."""
        files = self._files
        if files is None:
            yield from (source_id(self._bytes(row)) for row in range(len(self._dataset)))
            return
        fetch, known = FolderFetch(self._roots[0]), known_files(FolderFetch(self._roots[0]), "pool")

        def read(key: str) -> str:
            state, before = known.look(key) if known else (None, None)
            if before is not None:
                return before.sha256
            found = source_id(fetch(key))
            if known:
                known.note(key, state, Known(found, is_long=False))
            return found

        yield from map(read, files)
        if known:
            known.save()

    @cached_property
    def _files(self) -> list[str] | None:
        """The images of a plain folder, by their places in it; None of any other pool."""
        folder = local_path(self.place)
        return _plain(folder) if folder is not None and folder.is_dir() else None

    def _bytes(self, row: int) -> bytes:
        data = cell_bytes(self._images[row]["image"], self._roots)
        if data is None:
            raise SourceError(f"pool {self.place}: row {row} holds no image bytes; store the images inside the pool.")
        return data

    @cached_property
    def _dataset(self) -> "datasets.Dataset":
        """The pool as one table; of several splits all that are there, in the order of their names."""
        import datasets

        try:
            with _without_bars():
                loaded = _load(self.place)
                if loaded is None or isinstance(loaded, datasets.Dataset):
                    whole = loaded
                else:
                    whole = datasets.concatenate_datasets([loaded[name] for name in sorted(loaded)])
        except (OSError, ValueError, RuntimeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
            reason = one_line(error)
            raise SourceError(f"config.pool: {self.place!r} cannot be read ({reason}); expected {WAYS}.") from None
        if whole is None:
            raise SourceError(f"config.pool: got {self.place!r}, where nothing is; expected {WAYS}.")
        return whole

    @cached_property
    def _images(self) -> "datasets.Dataset":
        """The image column alone, under the name `image`, not decoded."""
        import datasets

        features = self._dataset.features
        names: list[str] = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if "image" not in names and len(names) != 1:
            held = ", ".join(self._dataset.column_names)
            raise SourceError(f"config.pool: {self.place!r} has the columns {held}; expected one Image.")
        name = "image" if "image" in names else names[0]
        undecoded = self._dataset.select_columns([name]).cast_column(name, datasets.Image(decode=False))
        return undecoded if name == "image" else undecoded.rename_column(name, "image")

    @cached_property
    def _texts(self) -> "datasets.Dataset | None":
        wanted = attribution_columns(self._dataset.column_names)
        return self._dataset.select_columns(wanted) if wanted else None

    @cached_property
    def _roots(self) -> tuple[Path, ...]:
        """Where a path in a row may lead: the pool's own folder, and where `datasets` unpacks downloads."""
        folder = local_path(self.place)
        own = (folder.resolve(),) if folder is not None and folder.is_dir() else ()
        return (*own, *download_caches())


def recipe_pool(recipe: Recipe, pool_list: Path | None = None) -> DatasetPool | None:
    """The pool of a recipe whose method retrieves; None for all other methods."""
    place = recipe.method_config.requirements.pool
    known = pool_list if pool_list is not None and pool_list.is_file() else None
    return DatasetPool(place, known) if place else None


def write_pool_list(table: PoolTable, path: Path) -> None:
    """The pool's ids and rows as Parquet, so that workers need not read every image again."""
    columns = pa.table({"id": list(table.ids), "row": pa.array(table.rows, pa.int64())})
    write_atomically(path, lambda temporary: pq.write_table(columns, temporary))


def _load(place: str) -> "datasets.Dataset | datasets.DatasetDict | None":
    """What is at a place; None where nothing is.

    Raises:
        ValueError: a folder with files of several kinds.
        Exception: of whichever kind `datasets` fails with.
    """
    import datasets

    if place == "tiny":
        return datasets.Dataset(pq.read_table(str(files("diffaug_datasets") / TINY_POOL)))
    folder = local_path(place)
    if folder is None:
        match = DATASET_ID.fullmatch(place)
        return datasets.load_dataset(on_the_hub(match["name"]), revision=match["revision"]) if match else None
    if not folder.exists():
        return None
    if folder.is_dir() and any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(folder))
    is_file, wanted = folder.is_file(), (".parquet", ".arrow")
    paths = [folder] if is_file else sorted(path for path in folder.iterdir() if path.suffix in wanted)
    plain = _plain(folder) if folder.is_dir() else None
    if plain is not None:
        places = [str(folder.absolute() / name) for name in plain]
        return datasets.Dataset.from_dict({"image": places}, datasets.Features({"image": datasets.Image()}))
    if not paths:
        return datasets.load_dataset("imagefolder", data_dir=str(folder), drop_labels=True, drop_metadata=False)
    kinds = {path.suffix for path in paths}
    if kinds == {".arrow"}:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])
    if kinds == {".parquet"}:
        return datasets.load_dataset("parquet", data_files=[str(path) for path in paths])
    raise ValueError(f"found files of the kinds {', '.join(sorted(kinds))}")


def _plain(folder: Path) -> list[str] | None:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return plain_images(folder, frozenset(ImageFolder.EXTENSIONS))


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

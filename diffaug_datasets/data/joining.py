"""Putting a person's own real images into a release that may not carry them: found by the sha256 of their bytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from diffaug_datasets.core.errors import PublishError, SourceError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import published_columns
from diffaug_datasets.core.temporary import write_atomically
from diffaug_datasets.data.foreign_tables import Provenance
from diffaug_datasets.data.hub_images import HubChoice
from diffaug_datasets.data.real import RealSet, read_real
from diffaug_datasets.data.release import Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.run.features import arrow_schema, write_stream

if TYPE_CHECKING:
    import datasets

Place = tuple[str, int]


def real_rows(repository: Repository, release: Release, split: str, source: str | Path) -> "datasets.Dataset":
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
    choice = HubChoice.of(recipe, str(source))
    real = read_real(recipe.builder, source, partial=True, choice=choice, on_bad_image="skip")  # found by their bytes
    places = located(real, rows, str(source))
    path = Path(datasets.config.HF_DATASETS_CACHE) / "diffaug_datasets" / f"{release.plan_id[:16]}-{split}.arrow"
    schema = arrow_schema(release.class_names)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as sink:
            write_stream(sink, _filled(rows, real, places), schema)

    write_atomically(path, write)
    return datasets.Dataset.from_file(str(path))


def planned_real(repository: Repository, release: Release, split: str) -> list[dict[str, Any]]:
    """Provenance of the real rows of a split."""
    real = (pc.field("origin") == "real") & (pc.field("split") == split)
    return list(Provenance.of(repository, release).rows(real))


def located(real: RealSet, rows: list[dict[str, Any]], source: str) -> Mapping[str, Place]:
    """Source id -> where a source has it.

    Raises:
        SourceError: images are missing; says how many and names one.
    """
    places: dict[str, Place] = {}
    for name, table in (("test", real.test), ("train", real.train)):
        if table is not None:
            places |= {found.id: (name, index) for index, found in enumerate(table.sources)}
    missing = [row["source_ids"][0] for row in rows if row["source_ids"][0] not in places]
    if missing:
        raise SourceError(
            f"{source}: lacks {len(missing)} of {len(rows)} real images of this release, such as the one with sha256 "
            f"{missing[0][:16]}; give the same files that the run was made from."
        )
    return places


def _filled(rows: list[dict[str, Any]], real: RealSet, places: Mapping[str, Place]) -> Iterator[dict[str, Any]]:
    for row in rows:
        columns = {key: row[key] for key in published_columns() if key in row}
        yield {**columns, "image": {"bytes": real.read(*places[row["source_ids"][0]]), "path": None}}

"""Making one published image again from the repository alone, plus the real source where it may not lie there."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from diffaug_datasets.core.backbone_spec import BackboneSpec, backbone_name
from diffaug_datasets.core.errors import BackboneError, PublishError, SourceError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.foreign_tables import Provenance, shard_table
from diffaug_datasets.data.hub_images import HubChoice
from diffaug_datasets.data.joining import Place, located, planned_real
from diffaug_datasets.data.real import RealSet, read_real
from diffaug_datasets.data.release import Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.provenance import FAILED
from diffaug_datasets.run.closeness import Closeness, closeness
from diffaug_datasets.run.context import ReadSource, sources_in
from diffaug_datasets.run.regenerate import Rebuilt, Regenerator
from diffaug_datasets.run.store import Run

FITS = "fits/"
PLAN_FILES = ("plan.json", "plan.parquet", "recipe.yaml")


@dataclass
class Rebuilder:
    """Rebuilds rows of one release; models and sources are loaded once. `folder` holds the fits meanwhile.

    `source`: a person's own real images. `backbone`: a folder or a Hub id that stands in for a model of the publisher
    which is not published; it must be the very one that the plan states.
    """

    repository: Repository
    release: Release
    folder: Path
    source: str | None = None
    device: str = "cpu"
    backbone: str | None = None

    def row(self, prefix: str) -> Mapping[str, Any]:
        """The provenance of the one generated row that begins so.

        Raises:
            PublishError: none or several do, or it failed and has no image.
        """
        ids = self.made.column("row_id")
        places = pc.indices_nonzero(pc.starts_with(ids, prefix)).to_pylist()
        if len(places) != 1:
            raise PublishError(f"row {prefix!r}: {len(places)} generated rows begin so; the first one is {ids[0]}.")
        found = self.rows([str(ids[places[0]])])
        if found[0]["status"] == FAILED:
            raise PublishError(f"row {found[0]['row_id']}: has no image; it failed ({found[0]['reason']}).")
        return found[0]

    @cached_property
    def provenance(self) -> Provenance:
        """How every planned row ended."""
        return Provenance.of(self.repository, self.release)

    @cached_property
    def made(self) -> pa.Table:
        """Id, status and model of all rows that are not real."""
        columns = ("row_id", "origin", "status", "backbone")
        return self.provenance.table(columns).filter(pc.field("origin") != "real")

    def rows(self, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Provenance of the rows of these ids, in the provenance's order."""
        return list(self.provenance.rows(pc.field("row_id").isin(list(wanted))))

    def sample(self, count: int) -> list[dict[str, Any]]:
        """Provenance of so many rows that have an image, spread evenly over the plan."""
        ids = self.made.filter(pc.field("status") != FAILED).column("row_id")
        count = min(count, len(ids))
        return self.rows([str(ids[place * len(ids) // count]) for place in range(count)])

    def rebuild(self, row: Mapping[str, Any]) -> tuple[Rebuilt, Closeness]:
        """The image, and how close it came to the published one.

        Raises:
            PublishError: what the release says of the row cannot be followed.
            DiffAugError: another version of the method made it, or a model, fit or source is missing.
        """
        row_id, stored = str(row["row_id"]), str(row["pixel_sha256"])
        try:
            made = self._regenerate(row)
        except SourceError as error:
            if self.source is None and self.release.real:
                raise PublishError(f"row {row_id}: {error}") from None  # the release should carry it
            raise
        except (ValidationError, TypeError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishError(f"row {row_id}: its provenance cannot be followed ({reason}).") from None
        stacks = self.release.stacks
        return made, closeness(row_id, stored, made, stacks, self._regenerate, lambda: self._image(row_id))

    @cached_property
    def run(self) -> Run:
        """The published plan and recipe, as a run folder that holds nothing else.

        Raises:
            DiffAugError: they cannot be read.
        """
        place = self.folder / "plan"
        place.mkdir(exist_ok=True)
        for name in PLAN_FILES:
            shutil.copyfile(self.repository.checked(self.release, name), place / name)
        return Run.open(place)

    @cached_property
    def _regenerate(self) -> Regenerator:
        recipe = Recipe.from_yaml(self.repository.checked(self.release, "recipe.yaml"), folder=None)
        for file in self.repository.beside(self.release, FITS):
            target = self.folder / file.file.removeprefix(FITS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.repository.checked(self.release, file.file), target)
        recipe = recipe.model_copy(update={"backbone": self._model(recipe.backbone)})
        return Regenerator(recipe, self.run.plan, self.folder, self._sources(recipe), device=self.device)

    def _model(self, spec: BackboneSpec) -> BackboneSpec:
        """The model that made the rows.

        Raises:
            PublishError: it is not here, or another one lies in its place.
        """
        stated = "".join(map(str, pc.drop_null(self.made.column("backbone")).slice(0, 1)))
        if not stated:
            return spec
        made = f"{self.repository.where}: its images were made by {stated}"
        given = spec if self.backbone is None else spec.model_copy(update={"id": self.backbone, "revision": None})
        try:
            here = backbone_name(given)
        except BackboneError:
            if self.backbone is not None or "/" in stated:
                raise
            raise PublishError(
                f"{made}, a folder of the publisher that is not published; give your copy with --backbone."
            ) from None
        if here.rpartition("@")[2] != stated.rpartition("@")[2]:
            raise PublishError(f"{made}, and this is {here}; give that very model with --backbone.")
        return given

    def _sources(self, recipe: Recipe) -> ReadSource:
        """Real images by id: from a person's own copy if given, else from the release."""
        if self.source is not None or not self.release.real:
            return self._own(recipe)
        files = [f for f in self.release.split_files("train") if f.origin == "real"]
        return sources_in([shard_table(self.repository, self.release, f.path) for f in files])

    def _own(self, recipe: Recipe) -> ReadSource:
        """Read when a row first asks: one that starts from no image needs none."""

        @cache
        def found() -> tuple[RealSet, Mapping[str, Place]]:
            rows = planned_real(self.repository, self.release, "train")
            choice, partial = HubChoice.of(recipe, self.source), self.source is not None
            real = read_real(recipe.builder, self.source, partial=partial, choice=choice, on_bad_image="skip")
            return real, located(real, rows, self.source or recipe.builder)

        def read(wanted: str) -> bytes:
            real, places = found()
            return real.read(*places[wanted])

        return read

    def _image(self, row_id: str) -> bytes | None:
        """The published image; None where it may not lie there."""
        for file in self.release.split_files("train"):
            if file.origin == "real":
                continue
            table = shard_table(self.repository, self.release, file.path, check=False)
            ids = table.column("row_id").to_pylist()
            cell = table.column("image")[ids.index(row_id)].as_py() if row_id in ids else None
            if cell and cell["bytes"]:
                return bytes(cell["bytes"])
        return None

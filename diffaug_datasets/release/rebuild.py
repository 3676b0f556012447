"""Rows of a published set made again from the repository, and the real source where it may not lie there.

The same idea as `run.rebuild`, one level up: that one makes a row of a run again from its columns, this one gathers
from a release what it needs for that (recipe, plan, fits, sources, model). One row can be made again, a sample, or the
whole plan on one's own copy of the real data; and it is said how many images came out equal.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from diffaug_datasets.core.errors import BackboneError, PublishError, SourceError, one_line
from diffaug_datasets.core.models import BackboneSpec, find_backbone, unpublished_weights
from diffaug_datasets.core.recipe import Recipe, read_mapping
from diffaug_datasets.core.rows import rows_beginning
from diffaug_datasets.planning.prepare import prepare, write_run
from diffaug_datasets.release.contents import public_recipe
from diffaug_datasets.release.layout import Release
from diffaug_datasets.release.provenance import FAILED, ProvenanceRow
from diffaug_datasets.release.read import (
    ImagePlace,
    Provenance,
    located,
    planned_real,
    read_own_images,
    shard_table,
)
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.context import ReadSource, sources_in
from diffaug_datasets.run.rebuild import Closeness, Rebuilt, Regenerator, closeness
from diffaug_datasets.run.stacks import difference, merged_stacks, same_stack
from diffaug_datasets.run.store import Receipt, Run
from diffaug_datasets.sources.real import RealSet

FITS = "fits/"
PLAN_FILES = ("plan.json", "plan.parquet", "recipe.yaml")
PIXELS = ("row_id", "pixel_sha256")


@dataclass
class Rebuilder:
    """Rebuilds rows of one release; models and sources are loaded once. `folder` holds the fits meanwhile.

    `source`: a person's own real images. `backbone`: a folder or a Hub id that stands in for a model of the publisher
    which is not published, or a YAML file of keys of `backbone` where it is more than one; it must be the very one that
    the plan states.
    """

    repository: Repository
    release: Release
    folder: Path
    source: str | None = None
    device: str = "cpu"
    backbone: str | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        place: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        source: str | None = None,
        backbone: str | None = None,
        device: str = "cpu",
    ) -> "Iterator[Rebuilder]":
        """A config of the set at a place (default: its first), ready to be rebuilt; fits lie in a temporary folder.

        Raises:
            PublishError: nothing is published there, or no such config is.
        """
        repository = Repository.open(place, revision)
        release = repository.release(config)
        with tempfile.TemporaryDirectory(prefix="diffaug-") as folder:
            yield cls(repository, release, Path(folder), source, device, backbone)

    def row(self, prefix: str) -> ProvenanceRow:
        """The provenance of the one generated row that begins so.

        Raises:
            PublishError: none or several do, or it failed and has no image.
        """
        ids = self.made.column("row_id")
        named = rows_beginning(ids.to_pylist(), prefix)
        if len(named) != 1:
            raise PublishError(f"row {prefix!r}: {len(named)} generated rows begin so; the first one is {ids[0]}.")
        [row] = self.rows(named)
        if row["status"] == FAILED:
            raise PublishError(f"row {row['row_id']}: has no image; it failed ({row['reason']}).")
        return row

    @cached_property
    def provenance(self) -> Provenance:
        """How every planned row ended."""
        return Provenance.of(self.repository, self.release)

    @cached_property
    def made(self) -> pa.Table:
        """Id, status and model of all rows that are not real."""
        columns = ("row_id", "origin", "status", "backbone")
        return self.provenance.table(columns).filter(pc.field("origin") != "real")

    def rows(self, wanted: Sequence[str]) -> list[ProvenanceRow]:
        """Provenance of the rows of these ids, in the provenance's order."""
        return list(self.provenance.rows(pc.field("row_id").isin(list(wanted))))

    def sample(self, count: int) -> list[ProvenanceRow]:
        """Provenance of so many rows that have an image, spread evenly over the plan."""
        ids = self.made.filter(pc.field("status") != FAILED).column("row_id")
        count = min(count, len(ids))
        return self.rows([str(ids[place * len(ids) // count]) for place in range(count)])

    def rebuild(self, row: ProvenanceRow) -> tuple[Rebuilt, Closeness]:
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
            reason = one_line(error)
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
        given = spec if self.backbone is None else standing_in(spec, self.backbone)
        unpublished = unpublished_weights(spec)
        try:
            here = find_backbone(given).name
        except BackboneError:
            if self.backbone is not None or ("/" in stated and not unpublished):
                raise
            if unpublished:
                raise PublishError(
                    f"{made}, with {' and '.join(unpublished)} of the publisher that is not published; say in a YAML "
                    "file where your copy lies, as a recipe's `backbone` does, and give it with --backbone FILE.yaml."
                ) from None
            raise PublishError(
                f"{made}, a folder of the publisher that is not published; give your copy with --backbone."
            ) from None
        if here.rpartition("@")[2] != stated.rpartition("@")[2]:
            raise PublishError(f"{made}, and this is {here}; give that very model with --backbone.")
        return given

    def _sources(self, recipe: Recipe) -> ReadSource:
        """Real images by id: from a person's own copy if given, else from the release."""
        if self.source is None and self.release.real:
            files = [file for file in self.release.split_files("train") if file.origin == "real"]
            return sources_in([shard_table(self.repository, self.release, file.path) for file in files])

        @cache
        def own_images() -> tuple[RealSet, Mapping[str, ImagePlace]]:
            """Read when a row first asks: one that starts from no image needs none."""
            rows = planned_real(self.repository, self.release, "train")
            real = read_own_images(recipe, self.source)
            return real, located(real, rows, self.source or recipe.builder)

        def read(source_id: str) -> bytes:
            real, places = own_images()
            return real.read(*places[source_id])

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


def standing_in(spec: BackboneSpec, given: str) -> BackboneSpec:
    """The model of a recipe with what a person gives instead: another `id`, or a YAML file of keys of `backbone`.

    Raises:
        PublishError: the file holds something else.
    """
    path = Path(given)
    if path.suffix not in (".yaml", ".yml"):
        return spec.model_copy(update={"id": given, "revision": None})
    content = {**spec.model_dump(), **read_mapping(path, "file of a model's keys")}
    try:
        return BackboneSpec.model_validate(content, context={"folder": path.parent.absolute()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PublishError(
            f"--backbone {given}: {where}: {first['msg']}; expected keys of a recipe's backbone."
        ) from None


@dataclass(frozen=True)
class PixelMatch:
    """Of the published images, how many have the same pixels here. `elsewhere`: how this stack differs from theirs."""

    equal: int
    published: int
    elsewhere: str = ""

    @property
    def is_good(self) -> bool:
        """Whether all are equal, or were made on another stack, where pixels may differ."""
        return self.equal == self.published or bool(self.elsewhere)

    def __str__(self) -> str:
        share = f"{self.equal / self.published:.1%}" if self.published else "none"
        return f"{self.equal} of {self.published} images are bit-equal to the published ones ({share})" + (
            f"; they were made elsewhere ({self.elsewhere}), and `diffaug verify --sample` measures how far others are"
            if self.elsewhere and self.equal < self.published
            else ""
        )


def plan_again(repository: Repository, release: Release, source: str | None, folder: Path | None) -> Run:
    """The published plan as a run folder, on the reader's own real images; nothing is generated yet.

    Raises:
        PublishError: the images give another plan, so they are not those that the release was made from.
        DiffAugError: the recipe or the source cannot be used.
    """
    recipe = public_recipe(
        Recipe.from_yaml(repository.checked(release, "recipe.yaml"), folder=None)
    )  # nobody names our folders
    prepared = prepare(recipe, source)
    if prepared.plan.id != release.plan_id:
        raise PublishError(
            f"{repository.where}: these real images give plan {prepared.plan.id[:16]}, the release is "
            f"{release.plan_id[:16]}; give --source with the very images that it was made from."
        )
    run = write_run(prepared, folder or Path("runs") / f"{release.name}-{release.plan_id[:8]}")
    if recipe.withdrawn:
        _take_fits(repository, release, run)
    return run


def _take_fits(repository: Repository, release: Release, run: Run) -> None:
    """The published fits, which cannot be made again: images that they were learned from are no longer there."""
    for unit in run.plan.fits:
        text = repository.checked(release, f"fits/{unit.name}/receipt.json").read_text(encoding="utf-8")
        try:
            receipt = Receipt.model_validate_json(text)
        except ValueError:
            raise PublishError(
                f"{repository.where}: {unit.name} has no receipt that can be read; do not use it."
            ) from None
        folder = run.fit_folder(unit.name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in receipt.files:
            shutil.copyfile(repository.checked(release, f"fits/{unit.name}/{file.file}"), folder / file.file)
        changes = {"plan_id": run.plan.id, "unit": unit.name, "stack": {}}  # the reader's own stack makes the images
        run.write_receipt(receipt.model_copy(update=changes))


def pixel_match(repository: Repository, release: Release, run: Run) -> PixelMatch:
    """Compare the pixel digests of a finished run with those of the provenance."""
    has_image = (pc.field("origin") != "real") & (pc.field("status") != FAILED)
    stated = Provenance.of(repository, release).table([*PIXELS, "origin", "status"]).filter(has_image).select(PIXELS)
    made = pa.concat_tables(run.table(shard).select(PIXELS) for shard in run.plan.shards())
    receipts = [run.receipt(shard.name) for shard in run.plan.shards()]
    ours = merged_stacks(receipt.stack for receipt in receipts if receipt)
    is_ours = all(same_stack(theirs, here) for theirs in release.stacks for here in ours)
    elsewhere = "" if is_ours else difference(release.stacks, ours[0])
    return PixelMatch(stated.join(made, list(PIXELS), join_type="inner").num_rows, stated.num_rows, elsewhere)

"""All images of a published plan made again from one's own copy of the real data, and how many came out equal."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.data.foreign_tables import Provenance
from diffaug_datasets.data.prepare import prepare, write_run
from diffaug_datasets.data.release import Release
from diffaug_datasets.data.repository import Repository
from diffaug_datasets.publish.provenance import FAILED
from diffaug_datasets.publish.recipe import public_recipe
from diffaug_datasets.run.features import read_stream
from diffaug_datasets.run.stacks import difference, merged_stacks, same_stack
from diffaug_datasets.run.store import Receipt, Run

PIXELS = ("row_id", "pixel_sha256")


@dataclass(frozen=True)
class Match:
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


def planned_again(repository: Repository, release: Release, source: str | None, folder: Path | None) -> Run:
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
        told = repository.checked(release, f"fits/{unit.name}/receipt.json").read_text(encoding="utf-8")
        try:
            receipt = Receipt.model_validate_json(told)
        except ValueError:
            raise PublishError(
                f"{repository.where}: {unit.name} has no receipt that can be read; do not use it."
            ) from None
        folder = run.fit_folder(unit.name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in receipt.files:
            shutil.copyfile(repository.checked(release, f"fits/{unit.name}/{file.file}"), folder / file.file)
        told_here = {"plan_id": run.plan.id, "unit": unit.name, "stack": {}}  # the reader's own stack makes the images
        run.write_receipt(receipt.model_copy(update=told_here))


def match(repository: Repository, release: Release, run: Run) -> Match:
    """Compare the pixel digests of a finished run with those of the provenance."""
    has_image = (pc.field("origin") != "real") & (pc.field("status") != FAILED)
    stated = Provenance.of(repository, release).table([*PIXELS, "origin", "status"]).filter(has_image).select(PIXELS)
    made = pa.concat_tables(read_stream(str(run.shard_path(s.name))).select(PIXELS) for s in run.plan.shards())
    receipts = [run.receipt(shard.name) for shard in run.plan.shards()]
    ours = merged_stacks(receipt.stack for receipt in receipts if receipt)
    is_ours = all(same_stack(theirs, here) for theirs in release.stacks for here in ours)
    elsewhere = "" if is_ours else difference(release.stacks, ours[0])
    return Match(stated.join(made, list(PIXELS), join_type="inner").num_rows, stated.num_rows, elsewhere)

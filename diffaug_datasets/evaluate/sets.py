"""What a run folder or a published set says of itself, besides its images: everything that `measure` asks for once."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from diffaug_datasets.core.errors import DiffAugError
from diffaug_datasets.core.models import PACKAGED, TINY, local_path
from diffaug_datasets.core.recipe import SHOTS, Recipe
from diffaug_datasets.evaluate.making import making_of
from diffaug_datasets.evaluate.runs import is_recipe
from diffaug_datasets.evaluate.seen import ModelAt, SourceDataset, judges_of, source_dataset
from diffaug_datasets.planning.new_run import find_recipe
from diffaug_datasets.release.measures import SELECTION_FILE, selection_digest
from diffaug_datasets.release.places import run_at
from diffaug_datasets.release.provenance import KEPT, WITHHELD
from diffaug_datasets.release.read import Provenance
from diffaug_datasets.release.repository import Repository
from diffaug_datasets.run.scores import measured_rows


@dataclass(frozen=True)
class SetFacts:
    """A set beyond its images.

    `selection`: see `release.measures`. `judge`: what judged its rows, '' where nothing did. `inversions`: label ->
    PSNR in dB of its real images that were inverted and denoised again.
    """

    name: str
    plan_id: str
    selection: str
    dataset: SourceDataset
    judge: str
    judges: tuple[ModelAt, ...]
    inversions: Mapping[int, tuple[float, ...]]


def set_facts(where: str | Path, config: str | None = None) -> SetFacts:
    """The facts of a run folder, of a published set or of an address (`config`: as `load` takes it).

    Raises:
        DiffAugError: it is none of these, or is damaged.
    """
    if run := run_at(where):
        labels = {row.row_id: row.label for row in run.plan.real}
        values = [
            (labels[row_id], scores.inversion_psnr)
            for row_id, scores in measured_rows(run).items()
            if scores.inversion_psnr is not None and row_id in labels
        ]
        return _facts(run.plan.header.name, run.plan.id, run.fetched(SELECTION_FILE), run.recipe, values)
    repository = Repository.open(str(where))
    release = repository.release(config)
    recipe = Recipe.from_yaml(repository.checked(release, "recipe.yaml"), folder=None)
    table = Provenance.of(repository, release).table(("origin", "status", "label", "inversion_psnr"))
    values = []
    if "inversion_psnr" in table.column_names:
        real = table.filter((pc.field("origin") == "real") & pc.field("inversion_psnr").is_valid())
        real = real.filter(pc.field("status").isin((KEPT, WITHHELD)))
        values = list(zip(real.column("label").to_pylist(), real.column("inversion_psnr").to_pylist(), strict=True))
    return _facts(release.name, release.plan_id, repository.checked(release, SELECTION_FILE), recipe, values)


def usual_encoder(where: str, config: str | None = None) -> str:
    """The encoder by which a set was scored, where that is on this machine; else `tiny`, which knows Fashion-MNIST.

    `where`: also a config name or a recipe.
    """
    try:
        made = None if is_recipe(where) else making_of(where, config)
        recipe = find_recipe(where) if is_recipe(where) else made.recipe if made else None
    except DiffAugError:
        return TINY  # whoever reads the set says what is wrong with it
    name = None if recipe is None else recipe.scores.encoder
    if name is None:
        return TINY
    place = local_path(name)
    return name if name in PACKAGED or (place is not None and place.exists()) else TINY


def _facts(name: str, plan_id: str, selection: Path, recipe: Recipe, values: list[tuple[int, float]]) -> SetFacts:
    inversions: defaultdict[int, list[float]] = defaultdict(list)
    for label, value in values:
        inversions[label].append(value)
    judges = judges_of(recipe)
    judge = judges[0].name if judges else ""
    if recipe.scores.judge == SHOTS:
        judge = f"mean features of the real images by {recipe.scores.encoder}"
    return SetFacts(
        name=name,
        plan_id=plan_id,
        selection=selection_digest(selection),
        dataset=source_dataset(recipe),
        judge=judge,
        judges=judges,
        inversions={label: tuple(of_class) for label, of_class in inversions.items()},
    )

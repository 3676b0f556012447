"""From a recipe to a run folder: models looked at, real images read, the plan drawn and written; nothing generated.

`prepare` and `write_run` are its table of contents: each step is one call downward, whose result is handed on. The way
of a recipe is this module, `sources.real` (its images), `core.protocols` (those that the run may see), `core.plan` and
the method (the rows), and `run.store` (the folder). No torch is needed.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from diffaug_datasets.core import memory
from diffaug_datasets.core.errors import PlanError, RecipeError
from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.identity import differences
from diffaug_datasets.core.images import pixels_of, reading_bytes
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.models import find_backbone, local_path
from diffaug_datasets.core.plan import Plan, Shard, draw_plan, without_images
from diffaug_datasets.core.prompts import read_prompts, read_suffixes, suffix_list, suffixes_for
from diffaug_datasets.core.protocols import Subset, draw_subset, frequency_groups, parse_protocol, places_by_label
from diffaug_datasets.core.recipe import PROSE, Recipe
from diffaug_datasets.core.rows import PlanRow, Row
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.core.suitability import check_suits
from diffaug_datasets.models.controlnet_folder import check_controlnet
from diffaug_datasets.models.editors import check_backbone_for
from diffaug_datasets.models.model_folder import check_model, timeline_of
from diffaug_datasets.models.subject_folder import check_subject
from diffaug_datasets.planning.catalogue import config_name
from diffaug_datasets.planning.confusion import compute_confusion, most_confused, read_confusion
from diffaug_datasets.run.shards import real_row
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.pools import DatasetPool, write_pool_list
from diffaug_datasets.sources.real import (
    RealSet,
    SeenSources,
    builder_facts,
    by_reason,
    discover_builders,
    here,
    read_recipe_images,
)

CONFUSION_IMAGES = 50  # of each class, that a classifier is tried on


@dataclass(frozen=True)
class Prepared:
    """A plan and what it rests on: the resolved recipe, all real images, the subset that the run may see, the pool."""

    recipe: Recipe
    plan: Plan
    real: RealSet
    subset: Subset
    pool: PoolTable | None = None

    def real_places(self) -> Sequence[tuple[str, int]]:
        """Of every real row, in order, the split of its image, and the index in that split's table."""
        train = [("train", index) for index in self.subset.indices]
        test = [("test", index) for index in range(len(self.real.test or ()))]
        return [*train, *test][: len(self.plan.real)]


def prepare(
    recipe: Recipe, images: str | None = None, seen: SeenSources | None = None, stand_ins: RealSet | None = None
) -> Prepared:
    """Look at the models, read the real images, draw the protocol's subset of them, draw the plan.

    `images`: a copy of the recipe's real images elsewhere, which the prepared recipe names as its source. `seen`: what
    plans before have opened and looked at. `stand_ins`: instead of the real images, where rows are only counted.

    Raises:
        DiffAugError: one sentence on a model, the source, the recipe or the plan.
    """
    check_models(recipe)
    real = stand_ins or read_recipe_images(recipe, images, seen)
    drawn = draw_subset(parse_protocol(recipe.protocol), real.train, recipe.on_small_class)
    subset = drawn.without(recipe.without, "without")
    recipe = resolve(recipe, images)
    name = config_name(recipe.builder, recipe.protocol, recipe.method, recipe.name)
    table, test = real.train.subset(subset.indices), real.test if recipe.include_test else None
    spec = plan_spec(recipe, name, real, subset, is_counted=stand_ins is not None)
    plan = draw_plan(name, recipe, table, test, spec, tuple(_warnings(real, subset, spec)), tuple(real.facts.columns))
    if recipe.withdrawn:
        subset = subset.without(recipe.withdrawn, "withdrawn")
        plan = without_images(plan, recipe.withdrawn)
    return Prepared(recipe, plan, real, subset, spec.pool)


def check_models(recipe: Recipe) -> None:
    """Look at the models that a recipe names, as far as they lie on this machine.

    Raises:
        BackboneError: a backbone, an encoder, a judge, a ControlNet or a Q-Former is damaged, cannot be driven, or does
            not fit, or an encoder has no text side where texts are compared.
        RecipeError: the method is steered by a ControlNet or shown a subject, and none is named.
    """
    if recipe.profile.optimiser == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise RecipeError(
            "profile.optimiser: adamw8bit needs bitsandbytes, which is not installed: `pip install bitsandbytes`, or "
            "leave adamw."
        )
    facts = check_backbone_for(recipe.backbone, recipe.method_config.requirements.editor)
    if facts is not None:
        check_suits(recipe, facts)
    scores, needed = recipe.scores, recipe.method_config.requirements
    compares = scores.probability or bool(scores.captions)
    for encoder, texts in ((scores.encoder, compares), (needed.encoder, needed.texts)):
        if encoder:
            check_model(encoder, "encoder", texts=texts)
    if recipe.method_config.requirements.controlnet is not None:
        check_controlnet(recipe.method_config.requirements.controlnet, recipe.backbone)
    if recipe.method_config.requirements.qformer is not None:
        check_subject(recipe.method_config.requirements.qformer, recipe.backbone)
    if recipe.scores.judge:
        check_model(recipe.scores.judge, "judge")


def resolve(recipe: Recipe, images: str | None = None) -> Recipe:
    """The recipe that a run folder keeps: it says the same to a worker anywhere.

    A file of suffixes or prompts gives way to its texts, for a plan rests on what it says, not on where it lies; a
    builder's name as pool to the place of that builder's pool; the source to the copy that is read, where one is.

    Raises:
        RecipeError: a file of texts cannot be read, or the builder has no pool.
    """
    config = dict(recipe.config)
    suffixes, pool = config.get("suffixes"), recipe.method_config.requirements.pool
    if isinstance(suffixes, str) and suffixes.endswith(".json"):
        config["suffixes"] = list(read_suffixes(Path(suffixes)).suffixes)
    if isinstance(prompts := config.get("prompts"), str) and prompts.casefold().endswith(".json"):
        lists = read_prompts(Path(prompts))
        config["prompts"] = lists if isinstance(lists, dict) else list(lists)
    if pool:
        config["pool"] = pool
        if local_path(pool) is None and pool in discover_builders():
            facts = builder_facts(pool)
            if not (facts.pool or facts.hub_id):
                raise RecipeError(
                    f"config.pool: {facts.title} has neither a pool of its own nor a Hub id; give its folder."
                )
            config["pool"] = facts.pool or str(facts.hub_id)
    source = here(images) if images else recipe.source
    return recipe.model_copy(update={"config": config, "source": source})


def plan_spec(recipe: Recipe, name: str, real: RealSet, subset: Subset, *, is_counted: bool = False) -> PlanSpec:
    """What the method may know when it plans. `name`: of the recipe's config, for messages. `is_counted`: rows are only
    counted, so any classes do as those that one is confused with.

    Raises:
        DiffAugError: no such suffixes, no usable confusion matrix, no class among the targets, or an unreadable pool.
    """
    needs, table = recipe.method_config.requirements, real.train.subset(subset.indices)
    suffixes: str | Sequence[str] = needs.suffixes
    if suffixes == "auto":
        suffixes = suffixes_for(recipe.builder, recipe.protocol)
    pool = needs.pool
    return PlanSpec(
        seed=recipe.seed,
        backbone=find_backbone(recipe.backbone).name,
        batch_size=recipe.batch_size,
        per_image=recipe.per_image,
        per_class=recipe.per_class,
        suffixes=suffix_list(suffixes) if isinstance(suffixes, str) else tuple(suffixes),
        confused=_any_classes(recipe, real) if is_counted else _confused_classes(recipe, name, real, subset),
        targets=_target_classes(recipe, table, real),
        size=(recipe.backbone.height, recipe.backbone.width),
        pool=DatasetPool(pool).table if pool else None,
        held_out=real.test.digest if real.test and recipe.include_test else None,
        timeline=timeline_of(recipe.backbone, getattr(recipe.method_config, "sampler", "ddim")),
    )


def _any_classes(recipe: Recipe, real: RealSet) -> tuple[tuple[int, ...], ...] | None:
    """For each class as many others as it is most confused with; None where no method asks."""
    asked, classes = recipe.method_config.requirements.top_confused, len(real.train.class_names)
    if asked is None:
        return None
    return tuple(tuple((i + 1 + j) % classes for j in range(min(asked, classes - 1))) for i in range(classes))


def _confused_classes(recipe: Recipe, name: str, real: RealSet, subset: Subset) -> tuple[tuple[int, ...], ...] | None:
    """For each class those it is most confused with, by a matrix or a classifier; None where no method asks."""
    count, class_names = recipe.method_config.requirements.top_confused, real.train.class_names
    if count is None:
        return None
    if recipe.confusion is None:
        raise RecipeError(
            f"confusion: {name} takes its sources from the classes most confused with the target; give "
            "a matrix (.csv or .json) or the id of a transformers image classifier, or set config.sources to others."
        )
    if local_path(recipe.confusion) is not None and not Path(recipe.confusion).is_dir():
        matrix = read_confusion(Path(recipe.confusion), class_names)
    else:
        places = places_by_label(subset.labels)
        chosen = [place for own in places.values() for place in own[:CONFUSION_IMAGES]]
        images = (real.read("train", subset.indices[place]) for place in chosen)
        matrix = compute_confusion(recipe.confusion, images, [subset.labels[place] for place in chosen], class_names)
    return tuple(most_confused(matrix, target, count) for target in range(len(class_names)))


def _target_classes(recipe: Recipe, table: SourceTable, real: RealSet) -> tuple[int, ...] | None:
    """The classes that get images, by their number of real ones; None for all of them."""
    if recipe.targets == "all":
        return None
    counts = [len(images) for images in table.by_class().values()]
    groups = frequency_groups(counts, *real.facts.groups)
    chosen = {"many": groups.many, "medium": groups.medium, "few": groups.few}[recipe.targets]
    if not chosen:
        raise RecipeError(f"targets: no class is {recipe.targets!r} here (counts {min(counts)} to {max(counts)}).")
    return chosen


def _warnings(real: RealSet, subset: Subset, spec: PlanSpec) -> Iterator[str]:
    """Images left out by the recipe's word, classes that are too small, a pool without test images."""
    if real.skipped:
        total = len(real.skipped) + len(real.train) + len(real.test or ())
        reasons = by_reason(real.skipped)
        yield f"{len(real.skipped):,} of {total:,} images cannot be used and are left out: {reasons}"
    yield from subset.warnings
    if spec.pool is not None and spec.held_out is None:
        yield "the run carries no test images, so retrieved images cannot be compared with them (include_test)"


def write_run(prepared: Prepared, folder: Path) -> Run:
    """Write recipe, real shards, subset and plan; an existing run of the same plan is completed, never changed.

    Only what its recipe says for people (title, citation, homepage) becomes what it is now.

    If anything fails, nothing is left of what this call made.

    Raises:
        PlanError: the folder holds another plan; says what differs.
        RunError: the folder is an address, or cannot be written.
    """
    run = Run(folder)
    with _all_or_nothing(folder):
        is_planned = (folder / "plan.json").exists()
        if is_planned:
            run = Run.open(folder)
            refuse_other_plan(run, prepared.plan)
        run.plan = prepared.plan
        write_real_shards(run, prepared)
        write_text(folder / "manifest.json", prepared.subset.to_json())
        if prepared.pool:
            write_pool_list(prepared.pool, run.pool_path)
        if not is_planned:
            run.write_plan(prepared.recipe, prepared.plan)
        elif prose := {k: v for k in PROSE if (v := getattr(prepared.recipe, k)) != getattr(run.recipe, k)}:
            write_text(folder / "recipe.yaml", run.recipe.model_copy(update=prose).to_yaml())
        return Run.open(folder)


def refuse_other_plan(run: Run, plan: Plan) -> None:
    """Refuse to mix two plans in one folder.

    Raises:
        PlanError: the folder's plan is not this one; says what differs.
    """
    from diffaug_datasets.run.reuse import same_images  # here, for it needs torch

    if run.plan.id == plan.id:
        return
    old, new = run.plan.header.model_dump(mode="json"), plan.header.model_dump(mode="json")
    changes = differences(old, new) or ["the planned rows"]
    advice = f"; `--fits-from {run.where}` takes its images over" if same_images(run.plan, plan) else ""
    raise PlanError(
        f"{run.where}: holds another plan; what differs: {'; '.join(changes[:5])}. "
        f"Use another run folder{advice}, or put the recipe back."
    )


def write_real_shards(run: Run, prepared: Prepared) -> None:
    """Write every shard of real images that is not there yet, each with its receipt.

    A row holds the bytes as they came, what decoding them shows, and what the source says about their origin.

    Raises:
        RunError: the folder cannot be written.
        SourceError: an image changed since it was listed.
    """
    real, places, plan = prepared.real, prepared.real_places(), prepared.plan

    def read(shard: Shard, begin: int) -> Iterator[tuple[PlanRow, bytes, Source]]:
        for planned, (split, index) in zip(shard.rows, places[begin : begin + len(shard.rows)], strict=True):
            yield planned, real.read(split, index), real.table(split).sources[index]

    def row(item: tuple[PlanRow, bytes, Source]) -> Row:
        planned, data, source = item
        return real_row(planned, data, plan.id, source)

    def cost(item: tuple[PlanRow, bytes, Source]) -> int:
        return reading_bytes(len(item[1]), pixels_of(item[1]))

    begin = 0
    for shard in plan.real_shards():
        if not run.intact(shard.name):
            rows = memory.in_order(row, read(shard, begin), cost, memory.WINDOW_BYTES)
            run.write_receipt(run.write_shard(shard, rows))
        begin += len(shard.rows)


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """What a failed call wrote into a folder that was no run yet goes again, folders above it too; the rest stays."""
    if (folder / "plan.json").exists():
        yield
        return
    above = [place for place in folder.absolute().parents if not place.exists()]
    before = set(folder.rglob("*")) if folder.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _remove([path for path in folder.rglob("*") if path not in before])
        _remove(above)
        raise


def _remove(paths: Sequence[Path]) -> None:
    """Remove files and the folders that are empty then, as far as that is possible."""
    for path in sorted(paths, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

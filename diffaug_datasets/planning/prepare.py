"""From a recipe to a run folder: real images in, plan drawn, nothing generated. Needs no torch.

The models that a recipe names, looked at before anything is planned: what lies on this machine, without torch.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffaug_datasets.core import memory
from diffaug_datasets.core.errors import PlanError, RecipeError
from diffaug_datasets.core.files import write_text
from diffaug_datasets.core.identity import canonical, differences
from diffaug_datasets.core.images import decode_image, format_of, pixel_sha256, pixels_of, reading_bytes
from diffaug_datasets.core.memory import in_order
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.models import backbone_name, local_path
from diffaug_datasets.core.plan import Plan, Shard, draw_plan, without_images
from diffaug_datasets.core.prompts import read_suffixes, suffix_list, suffixes_for
from diffaug_datasets.core.protocols import Manifest, frequency_groups, parse_protocol, select
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.models.model_folder import check_backbone, check_model
from diffaug_datasets.planning.catalogue import config_name
from diffaug_datasets.planning.confusion import Matrix, compute_confusion, most_confused, read_confusion
from diffaug_datasets.run.generation import check_steps
from diffaug_datasets.run.reuse import same_images
from diffaug_datasets.run.shards import planned_columns, write_arrow
from diffaug_datasets.run.store import Run
from diffaug_datasets.sources.pools import recipe_pool, write_manifest
from diffaug_datasets.sources.real import RealSet, builder_facts, discover_builders, here, in_groups, read_recipe_images


def check_models(recipe: Recipe) -> None:
    """Raises BackboneError where a backbone, an encoder or a judge is damaged, cannot be driven, or does not fit."""
    settings = check_backbone(recipe.backbone)
    if settings is not None:
        check_steps(recipe, settings)
    for encoder in (recipe.scores.encoder, getattr(recipe.method_config, "encoder", None)):
        if encoder:
            check_model(encoder, "encoder")
    if recipe.scores.judge:
        check_model(recipe.scores.judge, "judge")


CONFUSION_IMAGES = 50


@dataclass(frozen=True)
class Prepared:
    """A plan with the real images that it rests on."""

    recipe: Recipe
    plan: Plan
    real: RealSet
    manifest: Manifest
    pool: PoolTable | None = None


def prepare(recipe: Recipe, images: str | None = None) -> Prepared:
    """Read the real images, draw the protocol's subset, draw the plan.

    `images`: a copy of the recipe's real images elsewhere, which the prepared recipe names as its source.

    Raises:
        DiffAugError: one sentence on the source, the recipe or the plan.
    """
    check_models(recipe)
    real = read_recipe_images(recipe, images)
    drawn = select(parse_protocol(recipe.protocol), real.train, recipe.on_small_class)
    manifest = remaining(drawn, recipe.without)
    table = real.train.subset(manifest.indices)
    test = real.test if recipe.include_test else None
    recipe = _with_pool_found(_with_suffixes_read(recipe))
    recipe = recipe.model_copy(update={"source": here(images)}) if images else recipe
    pool = recipe_pool(recipe)
    spec = replace(
        _spec(recipe, table, real, manifest),
        pool=pool.table if pool else None,
        held_out=test.digest if test else None,
    )
    warnings = (*_skipped(real), *manifest.warnings, *_pool_warnings(spec))
    plan = draw_plan(config_name(recipe), recipe, table, test, spec, warnings)
    if recipe.withdrawn:
        manifest = remaining(manifest, recipe.withdrawn, "withdrawn")
        plan = without_images(plan, recipe.withdrawn)
    return Prepared(recipe, plan, real, manifest, spec.pool)


def _skipped(real: RealSet) -> tuple[str, ...]:
    """A warning that counts for the plan id: which images were left out by the recipe's word."""
    if not real.skipped:
        return ()
    total = len(real.skipped) + len(real.train) + len(real.test or ())
    return (f"{len(real.skipped):,} of {total:,} images cannot be used and are left out: {in_groups(real.skipped)}",)


def _with_suffixes_read(recipe: Recipe) -> Recipe:
    """The recipe with the texts of a suffix file in it: what a plan rests on is what it says, not where it lies."""
    named = recipe.config.get("suffixes")
    if not isinstance(named, str) or not named.endswith(".json"):
        return recipe
    texts = list(read_suffixes(Path(named)).suffixes)
    return recipe.model_copy(update={"config": {**recipe.config, "suffixes": texts}})


def _with_pool_found(recipe: Recipe) -> Recipe:
    """The recipe with the place of its pool as any worker can find it: a builder's name becomes that builder's pool."""
    place = getattr(recipe.method_config, "pool", None)
    if not place:
        return recipe
    found = place if local_path(place) is not None else _builder_pool(place)
    return recipe.model_copy(update={"config": {**recipe.config, "pool": found}})


def _builder_pool(name: str) -> str:
    if name not in discover_builders():
        return name
    facts = builder_facts(name)
    if not (facts.pool or facts.hub_id):
        raise RecipeError(f"config.pool: {facts.title} has neither a pool of its own nor a Hub id; give its folder.")
    return facts.pool or str(facts.hub_id)


def _pool_warnings(spec: PlanSpec) -> tuple[str, ...]:
    if spec.pool is None or spec.held_out is not None:
        return ()
    return ("the run carries no test images, so retrieved images cannot be compared with them (include_test)",)


def remaining(manifest: Manifest, without: Sequence[str], key: str = "without") -> Manifest:
    """The subset without some images; what a protocol drew beside them stays. `key`: of the recipe, for the message.

    Raises:
        RecipeError: an id that no image of the subset has.
    """
    if unknown := next((name for name in without if name not in manifest.ids), None):
        raise RecipeError(f"{key}: got {unknown!r}, expected the sha256 of a real image of this protocol's subset.")
    kept = [place for place, name in enumerate(manifest.ids) if name not in without]
    return replace(
        manifest,
        indices=tuple(manifest.indices[place] for place in kept),
        ids=tuple(manifest.ids[place] for place in kept),
        labels=tuple(manifest.labels[place] for place in kept),
    )


def _spec(recipe: Recipe, table: SourceTable, real: RealSet, manifest: Manifest) -> PlanSpec:
    config = recipe.method_config
    wants = getattr(config, "suffixes", ())
    suffixes = suffixes_for(recipe.builder, recipe.protocol) if wants == "auto" else wants
    return PlanSpec(
        seed=recipe.seed,
        backbone=backbone_name(recipe.backbone),
        batch_size=recipe.batch_size,
        per_image=recipe.per_image,
        per_class=recipe.per_class,
        suffixes=suffix_list(suffixes) if isinstance(suffixes, str) else tuple(suffixes),
        confused=_confused(recipe, table, real, manifest),
        targets=_targets(recipe, table, real),
        size=(recipe.backbone.height, recipe.backbone.width),
    )


def _targets(recipe: Recipe, table: SourceTable, real: RealSet) -> tuple[int, ...] | None:
    if recipe.targets == "all":
        return None
    counts = [len(images) for images in table.by_class().values()]
    chosen: Sequence[int] = getattr(frequency_groups(counts, *real.facts.groups), recipe.targets)
    if not chosen:
        raise RecipeError(f"targets: no class is {recipe.targets!r} here (counts {min(counts)} to {max(counts)}).")
    return tuple(chosen)


def _confused(
    recipe: Recipe, table: SourceTable, real: RealSet, manifest: Manifest
) -> tuple[tuple[int, ...], ...] | None:
    config = recipe.method_config
    if getattr(config, "sources", "others") != "confused":
        return None
    if recipe.confusion is None:
        raise RecipeError(
            f"confusion: {config_name(recipe)} takes its sources from the classes most confused with the target; give "
            "a matrix (.csv or .json) or the id of a transformers image classifier, or set config.sources to others."
        )
    matrix = _matrix(recipe.confusion, table, real, manifest)
    count = int(getattr(config, "top_confused", 4))
    return tuple(most_confused(matrix, target, count) for target in range(len(table.class_names)))


def _matrix(confusion: str, table: SourceTable, real: RealSet, manifest: Manifest) -> Matrix:
    if local_path(confusion) is not None and not Path(confusion).is_dir():
        return read_confusion(Path(confusion), table.class_names)
    places: dict[int, list[int]] = {}
    for index, label in zip(manifest.indices, manifest.labels, strict=True):
        places.setdefault(label, []).append(index)
    chosen = [(i, label) for label, found in places.items() for i in found[:CONFUSION_IMAGES]]
    images = (real.read("train", index) for index, _ in chosen)
    return compute_confusion(confusion, images, [label for _, label in chosen], table.class_names)


def write_run(prepared: Prepared, folder: Path) -> Run:
    """Write recipe, real shards, manifest and plan; an existing run of the same plan is completed, never changed.

    If anything fails, nothing is left of what this call made.

    Raises:
        PlanError: the folder holds another plan; says what differs.
        RunError: the folder is an address, or cannot be written.
    """
    run = Run(folder)
    with _all_or_nothing(folder):
        return _written(prepared, run)


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


def _written(prepared: Prepared, run: Run) -> Run:
    folder = run.folder
    if (folder / "plan.json").exists():
        refuse_other_plan(Run.open(folder), prepared.plan)
        run = Run.open(folder)
    run.__dict__["plan"] = prepared.plan
    places = real_places(prepared)
    for shard in prepared.plan.real_shards():
        if not run.intact(shard.name):
            _write_real(run, shard, prepared.real, places)
    write_text(folder / "manifest.json", prepared.manifest.to_json())
    if prepared.pool:
        write_manifest(prepared.pool, run.pool_path)
    if not (folder / "plan.json").exists():
        run.write_plan(prepared.recipe, prepared.plan)
    return Run.open(folder)


def refuse_other_plan(run: Run, plan: Plan) -> None:
    """Raises PlanError where the folder's plan is not this one."""
    if run.plan.id == plan.id:
        return
    old, new = run.plan.header.model_dump(mode="json"), plan.header.model_dump(mode="json")
    changes = differences(old, new) or ["the planned rows"]
    advice = f"; `--fits-from {run.folder}` takes its images over" if same_images(run.plan, plan) else ""
    raise PlanError(
        f"{run.folder}: holds another plan; what differs: {'; '.join(changes[:5])}. "
        f"Use another run folder{advice}, or put the recipe back."
    )


def real_places(prepared: Prepared) -> dict[str, tuple[str, int]]:
    """Row id of every real row -> where its bytes are."""
    train = [("train", i) for i in prepared.manifest.indices]
    test = [("test", i) for i in range(len(prepared.real.test or ()))]
    rows = prepared.plan.real
    return {row.row_id: place for row, place in zip(rows, [*train, *test], strict=False)}


def _write_real(run: Run, shard: Shard, real: RealSet, places: dict[str, tuple[str, int]]) -> None:
    def read() -> Iterator[tuple[PlanRow, bytes, Source]]:
        for planned in shard.rows:
            split, index = places[planned.row_id]
            yield planned, real.read(split, index), real.table(split).sources[index]

    def columns(item: tuple[PlanRow, bytes, Source]) -> dict[str, Any]:
        planned, data, source = item
        return _real_columns(planned_columns(planned), data, run.plan.id, source)

    rows = in_order(columns, read(), lambda item: reading_bytes(len(item[1]), pixels_of(item[1])), memory.WINDOW_BYTES)
    run.write_receipt(write_arrow(run, run.shard_path(shard.name), rows).receipt(run.plan.id, shard.name))


def _real_columns(planned: dict[str, Any], data: bytes, plan_id: str, source: Source) -> dict[str, Any]:
    """A real row: the bytes as they came, what decoding them shows, and what the source says about their origin."""
    picture = decode_image(data, source.key)
    image = {"image": {"bytes": data, "path": None}, "image_format": format_of(data)}
    size = {"width": picture.width, "height": picture.height, "pixel_sha256": pixel_sha256(picture)}
    told = {"plan_id": plan_id, "measured": canonical(dict(source.facts)), "attempt": 0, "batch_shape": 0}
    return {**planned, **told, **image, **size}

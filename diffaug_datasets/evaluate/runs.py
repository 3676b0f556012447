"""The runs behind a bench: config names and recipes, planned for every draw, found again, and generated where missing.

A run is known by its plan id. It lies in the bench's own folder, or is one that somebody made before in `runs/`. Any
number of processes may work on one bench: shards and assembly of a run are shared by its own leases.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, get_args

from diffaug_datasets.core.errors import DiffAugError, RunError, printable
from diffaug_datasets.core.models import TINY, local_path
from diffaug_datasets.core.protocols import parse_protocol
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.evaluate.spare import not_at_hand
from diffaug_datasets.evaluate.suite import Bench, Control, Entry
from diffaug_datasets.planning.catalogue import config_name, config_recipe, merged, shipped_recipes
from diffaug_datasets.planning.new_run import PricedPlan, find_recipe, price_plan
from diffaug_datasets.planning.price import Price
from diffaug_datasets.run.assembly import Assembled, finished
from diffaug_datasets.run.execute import generate, over_budget
from diffaug_datasets.run.leases import lease
from diffaug_datasets.run.store import RUNS, Run, default_folder
from diffaug_datasets.sources.real import SeenSources, builder_facts, discover_builders

SAMPLING = ("num_inference_steps", "guidance_scale")  # that a control takes over from the run beside it
TAKEN_OVER = (  # keys of a recipe that say what is augmented and how much, not by which method
    *("source", "source_config", "source_split", "image_column", "label_column", "partial", "without", "withdrawn"),
    *("on_small_class", "on_bad_image", "per_image", "per_class", "targets", "seed", "shard_rows", "batch_size"),
    *("threads", "attempts", "failure_budget", "image_format"),
)


@dataclass(frozen=True)
class Doing:
    """How a bench is worked on; nothing of it decides a number.

    `until`: of `time.monotonic`, after which nothing more is started; None for no end. `workers`: processes that
    generate, as `generate` counts them, and that make cells. `progress`: where it is shown. `runs`: where finished runs
    may lie already. `parent`: the process that this one helps and ends with. `only_price`: nothing will be
    made, see `planned_runs`.
    """

    until: float | None = None
    workers: int = 1
    device: str = "cpu"
    progress: TextIO | None = None
    runs: Path = RUNS
    parent: int | None = None
    only_price: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more may be started."""
        is_orphan = self.parent is not None and os.getppid() != self.parent
        return is_orphan or (self.until is not None and time.monotonic() >= self.until)

    def tell(self, text: str) -> None:
        """Say what is done next, where progress is shown."""
        if self.progress is not None:
            self.progress.write(f"{printable(text)}\n")
            self.progress.flush()


@dataclass(frozen=True)
class PlannedRun:
    """A run that a bench needs, drawn and priced: `folder` holds it, or will.

    `drawn` holds the tables of all real images, and is kept no longer than the run is being made.
    """

    entry: Entry
    trial: int
    recipe: Recipe
    plan_id: str
    price: Price
    folder: Path
    drawn: PricedPlan | None = field(default=None, repr=False)

    def light(self) -> "PlannedRun":
        """The same without what it was drawn from."""
        return replace(self, drawn=None)

    @property
    def is_finished(self) -> bool:
        """Whether all its images are there."""
        return _finished(self.folder, self.plan_id) is not None


def is_recipe(text: str) -> bool:
    """Whether an entry of `sets` is to be planned: a recipe's file or name, not a run folder or a published set."""
    if Path(text).is_dir() or "://" in text:
        return False
    if Path(text).suffix in (".yaml", ".yml") or text in shipped_recipes():
        return True
    return "/" not in text and ("@" in text or any(text.startswith(f"{name}_") for name in discover_builders()))


def check_recipes(spec: Bench) -> None:
    """Refuse what no recipe can be, before anything is read or written.

    Raises:
        RecipeError: a name, a file or a change that cannot be.
    """
    for entry in spec.sets:
        if is_recipe(entry.set):
            drawn_recipe(entry, spec, spec.draws[0])


def planned_runs(
    spec: Bench, folder: Path, runs: Path = RUNS, *, only_price: bool = False, seen: SeenSources | None = None
) -> Iterator[PlannedRun]:
    """The runs of all config names and recipes, draw after draw; drawn and priced, nothing is written.

    `only_price`: a run of whose name none is finished is not planned where another draw of it was: it costs the same.
    `seen`: what plans before have opened and looked at.

    Raises:
        DiffAugError: a recipe that cannot be, or whose real images are missing.
    """
    entries = [entry for entry in spec.sets if is_recipe(entry.set)]
    if not entries:
        return
    known, seen = finished_runs(folder, runs), seen or SeenSources()
    named = _names(known.values()) if only_price else set()
    first: dict[int, PlannedRun] = {}
    for trial in spec.draws:
        for number, entry in enumerate(entries):
            recipe = drawn_recipe(entry, spec, trial)
            if recipe is None:
                continue
            if number in first and _name(recipe) not in named:
                yield replace(first[number], trial=trial, recipe=recipe)
                continue
            planned = _planned(entry, trial, recipe, folder, known, seen)
            if only_price and not planned.is_finished:
                first[number] = planned.light()
            yield planned


def drawn_recipe(entry: Entry, spec: Bench, trial: int) -> Recipe | None:
    """The recipe of a draw; None for all but the first where the protocol takes all images and so has one draw."""
    recipe = find_recipe(entry.set, merged(spec.changes, entry.changes))
    protocol = parse_protocol(recipe.protocol)
    if protocol.kind == "full" and not protocol.ways:
        return recipe if trial == spec.draws[0] else None
    seed = recipe.seed + trial if spec.fresh_images else recipe.seed
    return recipe.model_copy(update={"protocol": replace(protocol, trial_seed=trial).name, "seed": seed})


def planned_control(
    control: Control, first: Recipe, folder: Path, runs: Path, affordable: float, seen: SeenSources | None = None
) -> PlannedRun | str:
    """A run of a control's method beside a run: the same images, the same number of synthetic ones, the same sampler.

    A text says why there is none: no real images here, no pool, or more seconds than `affordable`.
    """
    try:
        if reason := not_at_hand(first):
            return reason
        recipe = _control_recipe(control, first)
        pool = recipe.method_config.requirements.pool
        if pool and not _is_here(pool):
            return f"its pool {pool} is not on this machine"
        planned = _planned(Entry(set=control, name=control), 0, recipe, folder, finished_runs(folder, runs), seen)
    except DiffAugError as error:
        return str(error).rstrip(".")
    seconds = planned.price.seconds_cpu
    if seconds > affordable and not planned.is_finished:
        return (
            f"its images would take about {seconds:,.0f} s here, more than {affordable:g} s (`affordable`); a bench "
            f"file, a YAML of `sets: [...]` and `affordable: {math.ceil(seconds)}`, has them made"
        )
    return planned


def made(planned: PlannedRun, doing: Doing) -> bool:
    """Generate what a run lacks; False where the time is over before it is finished.

    Raises:
        DiffAugError: the folder cannot be written, the model cannot be loaded, or too many rows failed.
    """
    if planned.is_finished:
        return True
    if doing.is_over:
        return False
    place = planned.folder.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{place}: cannot be made ({error.strerror}); give another place.") from None
    while True:  # one process plans, the others wait for it
        with lease(place, f"plan-{planned.plan_id[:16]}") as mine:
            if mine:
                drawn = planned.drawn or price_plan(planned.recipe, planned.folder)
                run = replace(drawn, folder=planned.folder).write()
                break
        time.sleep(0.2)
    doing.tell(announcement(planned))
    done = generate(run, workers=doing.workers, device=doing.device, progress=doing.progress)
    if trouble := over_budget(run, done):
        raise RunError(f"{run.folder}: {trouble}")
    return True


def finished_runs(folder: Path, runs: Path) -> Mapping[str, Path]:
    """Plan id -> folder of the finished runs in `runs` and of a bench's own, which come first."""
    known: dict[str, Path] = {}
    for place in sorted(runs.glob("*/run.json")) + sorted((folder / "runs").glob("*/run.json")):
        try:
            known[Assembled.model_validate_json(place.read_text("utf-8")).plan_id] = place.parent
        except (OSError, ValueError):
            continue
    return known


def announcement(planned: PlannedRun) -> str:
    """`control txt2img, to compare with: 20 images to have (fashion_5shot_txt2img, in runs/bench/runs/...)`."""
    what = f"draw {planned.trial} of {planned.entry.name or planned.entry.set}"
    if planned.entry.set in get_args(Control):
        what = f"control {planned.entry.set}, to compare with"
    return f"{what}: {planned.price.rows:,} images to have ({planned.price.name}, in {planned.folder})"


def _name(recipe: Recipe) -> str:
    return config_name(recipe.builder, recipe.protocol, recipe.method, recipe.name)


def _names(folders: Iterable[Path]) -> set[str]:
    """Config names of finished runs."""
    return {Assembled.model_validate_json((place / "run.json").read_text("utf-8")).name for place in folders}


def _planned(
    entry: Entry, trial: int, recipe: Recipe, folder: Path, known: Mapping[str, Path], seen: SeenSources | None = None
) -> PlannedRun:
    drawn = price_plan(recipe, parent=folder / "runs", seen=seen)
    plan = drawn.prepared.plan
    place = known.get(plan.id) or default_folder(plan, folder / "runs")
    return PlannedRun(entry, trial, drawn.prepared.recipe, plan.id, drawn.price, place, drawn)


def _finished(folder: Path, plan_id: str) -> Assembled | None:
    if not (folder / "run.json").is_file():
        return None
    try:
        run = Run.open(folder)
        return finished(run) if run.plan.id == plan_id else None
    except RunError:
        return None


def _control_recipe(control: Control, first: Recipe) -> Recipe:
    """The catalogue's recipe of a method on the real images of another recipe, as many images and as many steps."""
    keys: dict[str, Any] = {key: getattr(first, key) for key in TAKEN_OVER}
    keys["backbone"] = first.backbone.model_dump(mode="json")
    recipe = config_recipe(config_name(first.builder, first.protocol, control), **keys)
    ours, theirs = type(recipe.method_config).model_fields, first.method_config.model_dump()
    steps = {key: theirs[key] for key in SAMPLING if key in ours and key in theirs}
    return Recipe.from_dict(merged(recipe.model_dump(mode="json", by_alias=True), {"config": steps}), folder=None)


def _is_here(pool: str) -> bool:
    place = local_path(pool)
    if place is not None:
        return place.exists()
    if pool in discover_builders():
        return pool != (inner := builder_facts(pool).pool) and inner is not None and _is_here(inner)
    return pool == TINY

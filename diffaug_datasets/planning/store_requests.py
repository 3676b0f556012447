"""How often an object store is asked, where a run lies in one: counted from the plan, step by step as the run does it.

One machine plans, and one worker with an empty cache makes everything and shows how far it is. Nothing fails, nothing
is made twice. What follows from time alone (beats of leases, events, looks at what others have finished) is estimated.
"""

from dataclasses import dataclass

from diffaug_datasets.core.learning import ConceptConfig
from diffaug_datasets.core.method import FitUnit
from diffaug_datasets.core.plan import Plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.training_looks import PREVIEW_CLASSES, moments
from diffaug_datasets.run.leases import BEATS, TTL
from diffaug_datasets.run.progress import LONGEST_NEWS
from diffaug_datasets.run.remote import EVENT_SECONDS

LISTED_KEYS = 1000  # of one answer
PROBE = 3  # creations and the deletion that find out whether a store honours its condition; read once
PLAN_FILES = 4  # recipe.yaml, plan.parquet, manifest.json, plan.json
SET_FILES = 6  # selection and quality (which may be empty), each with its receipt, README.md, run.json
LEASE = 2  # its creation and its deletion; a store is told of both
EVENTS = 2  # of a unit: begun, done
RECEIPT = 1
LOOKS = 3  # at all that is there, beside one a stage: for the display, at the begin, before the set is assembled
LEASE_LISTINGS = 3  # of a unit: before it is taken, committed, freed
SET_LISTINGS = 4  # what is there when the plan goes up, and who assembles
FIT_LISTINGS = 2  # checkpoints that are there at its begin and at its end
UNIT_READS = 4  # its lease, and its receipt before it is made, before it is written, and as it is known from then on
PLAN_READS = 5  # plan.json before and after, the probe, recipe.yaml, pool.parquet
OPEN_READS = 5  # plan.json, the two files beside it, and the two that may be
SET_READS = 6  # run.json before and after, the probe, the receipts of quality (twice) and selection


@dataclass(frozen=True)
class Requests:
    """To an object store: those that change it (deletions too), listings of up to a thousand keys, and others.

    Amazon's price of a listing is that of a write, more than ten times that of a read.
    """

    writes: int
    listings: int
    reads: int


def store_requests(recipe: Recipe, plan: Plan, seconds: float) -> Requests:
    """Those of a plan whose units take so many seconds in all."""
    shards, fits, real = len(plan.shards()), len(plan.fits), len(plan.real_shards())
    units, stages = shards + fits, len({unit.kind for unit in plan.fits}) + 1
    files, progress = map(sum, zip(*(_of_fit(recipe, unit) for unit in plan.fits), strict=True)) if fits else (0, 0)
    pool = recipe.method_config.requirements.pool is not None
    once = PLAN_FILES + pool + SET_FILES + LEASE + 2 * PROBE + 2 * real + (shards if recipe.filters else 0)
    of_time = int(seconds * BEATS / TTL) + int(seconds / EVENT_SECONDS)
    pages = _pages(2 * (real + shards)) + _pages(fits + files)
    looks = LOOKS + stages + int(seconds / LONGEST_NEWS)
    return Requests(
        writes=once + units * (LEASE + EVENTS + RECEIPT) + shards + files + progress + of_time,
        listings=SET_LISTINGS + looks * pages + LEASE_LISTINGS * units + FIT_LISTINGS * fits,
        reads=PLAN_READS - pool + OPEN_READS + SET_READS + 3 * real + UNIT_READS * units,
    )


def _pages(keys: int) -> int:
    return max(1, -(-keys // LISTED_KEYS))


def _of_fit(recipe: Recipe, unit: FitUnit) -> tuple[int, int]:
    """Files of a fit, pictures included; writes and the deletion of its checkpoints, which have one name."""
    training, config = unit.content.get("config"), recipe.method_config
    if not isinstance(training, dict) or "steps" not in training:
        return 1, 0
    settings = next((part for part in vars(config).values() if hasattr(part, "checkpoint_every")), ConceptConfig())
    saved = -(-int(training["steps"]) // settings.checkpoint_every)
    if not isinstance(settings, ConceptConfig):
        return 1, saved + 1
    classes = min(PREVIEW_CLASSES, len(unit.content["names"]))
    looks = moments(settings.model_copy(update={"steps": int(training["steps"])}), classes)
    return 1 + (settings.rank > 0) + classes * len(looks), saved + 1

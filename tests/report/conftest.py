"""Run folders made through the store alone, with synthetic pictures: no model, no network."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.plan import Plan, Shard, draw_plan
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import FailedRow, Outcome, PlanRow, Row
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.run.assembly import assemble
from diffaug_datasets.run.batch import Made
from diffaug_datasets.run.scores import ImageScores
from diffaug_datasets.run.shards import made_row
from diffaug_datasets.run.store import Receipt, Run

STACK = {"device": "AVX2", "torch": "2.6.0"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a/b",
    'it\'s "quoted" & {{ 7 * 7 }}',
    "Straßenbahn 路面電車 🚋",
    "</style></title><svg/onload=alert(1)>",
)


@dataclass(frozen=True)
class Wanted:
    """What a run of the fixture is like."""

    method: str = "genie_ada"
    class_names: tuple[str, ...] = ("bag", "boot", "coat")
    shots: int = 3
    per_class: int = 6
    real_side: int = 28
    side: int = 32
    scored: bool = True
    failing: int = 0
    shards: int | None = None
    assembled: bool = True
    recipe: dict[str, Any] = field(default_factory=dict)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("name", method=..., ...)`: a run folder; see `Wanted`."""

    def make(name: str = "run", **wanted: Any) -> Run:
        return write_run(tmp_path / name, Wanted(**wanted))

    return make


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """Class names that would break a careless page."""
    return HOSTILE


def png(side: int, seed: str) -> bytes:
    """A small picture that differs by seed."""
    generator = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16))
    coarse = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(folder: Path, wanted: Wanted) -> Run:
    """The run folder: plan, real shard, fits' and shards' receipts, and `run.json` where it is to be assembled."""
    labels = [label for label in range(len(wanted.class_names)) for _ in range(wanted.shots)]
    images = [png(wanted.real_side, f"{label}/{i}") for i, label in enumerate(labels)]
    content = {"builder": "fashion", "protocol": "5shot", "method": wanted.method, "include_test": False}
    recipe = Recipe.from_dict({**content, "shard_rows": 8, "per_class": wanted.per_class, **wanted.recipe})
    ids = [hashlib.sha256(data).hexdigest() for data in images]
    sources = tuple(Source(found, label, found[:8]) for found, label in zip(ids, labels, strict=True))
    table = SourceTable("fashion", "train", wanted.class_names, wanted.class_names, "", sources)
    suffixes = ("on a <b>table</b>", "in the rain")
    spec = PlanSpec(0, "diffaug-tiny@1234", 8, per_class=wanted.per_class, suffixes=suffixes)
    plan = draw_plan(f"fashion_5shot_{recipe.method_definition.SLUG}", recipe, table, None, spec)
    run = Run(folder)
    run.write_plan(recipe, plan)
    run = Run.open(folder)
    _write_real(run, dict(zip(ids, images, strict=True)))
    _write_fits(run)
    for shard in plan.shards()[: wanted.shards]:
        _write_shard(run, shard, wanted)
    if wanted.assembled and wanted.shards is None:
        assemble(run)
    return Run.open(folder)


def _write_unit(run: Run, shard: Shard, rows: list[Row], **told: Any) -> None:
    run.write_receipt(run.write_shard(shard, rows).model_copy(update={"stack": STACK, **told}))


def _write_real(run: Run, data: dict[str, bytes]) -> None:
    for shard in run.plan.real_shards():
        rows = [_real_row(run.plan, row, data[row.source_ids[0]]) for row in shard.rows]
        _write_unit(run, shard, rows)


def _real_row(plan: Plan, row: PlanRow, data: bytes) -> Row:
    with Image.open(BytesIO(data)) as image:
        outcome = Outcome(width=image.width, height=image.height, image_format="png", pixel_sha256="0" * 64)
    return Row(image=data, plan_id=plan.id, plan=row, outcome=outcome)


def _write_fits(run: Run) -> None:
    for unit in run.plan.fits:
        run.fit_folder(unit.name).mkdir(parents=True)
        measured = {"steps": 40, "loss_first": 0.31, "loss_last": 0.12} if unit.kind == "concepts" else {}
        told = {"files": (), "seconds": 2.5, "evaluations": 80, "measured": measured}
        run.write_receipt(Receipt.model_validate({"plan_id": run.plan.id, "unit": unit.name, **told}))
        for step in range(40 if measured else 0):
            run.event(event="fit", unit=unit.name, step=step, total=40, loss=0.3 / (1 + step / 10))


def _write_shard(run: Run, shard: Shard, wanted: Wanted) -> None:
    lost = {row.row_id for row in run.plan.rows[: wanted.failing]}
    rows = [_generated(run, row, wanted) for row in shard.rows if row.row_id not in lost]
    reason = "constant <image>"
    failed = tuple(FailedRow(row_id=r.row_id, reason=reason, attempts=3) for r in shard.rows if r.row_id in lost)
    _write_unit(run, shard, rows, failed=failed, seconds=4.2, evaluations=900)


def _generated(run: Run, row: PlanRow, wanted: Wanted) -> Row:
    generator = random.Random(row.row_id)
    with Image.open(BytesIO(png(wanted.side, row.row_id))) as image:
        pixels = np.array(image)
    measured, chosen = _measured(row.method, generator)
    made = Made(row.model_copy(update=chosen), pixels, measured, 0, 8, 0)
    scores = _scores(row, generator, len(run.plan.header.class_names)) if wanted.scored else ImageScores()
    return made_row(made, scores, run.plan.id, "png")


def _measured(method: str, generator: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    if method == "diff_ii":
        return {"alpha": 0.4 + 2 * generator.random(), "phi": 6.28 * generator.random(), "norm_a": 3.5}, {}
    if method == "genie_ada":
        steps = sorted(generator.random() for _ in range(5))
        level = generator.choice([0.6, 0.7, 0.8, 0.9])
        measured = {"levels": [0.5, 0.6, 0.7, 0.8, 0.9], "d": steps}
        return measured, {"strength": level, "start_step": round(25 * (1 - level))}
    return {}, {}


def _scores(row: PlanRow, generator: random.Random, classes: int) -> ImageScores:
    right = generator.random() < 0.8
    seen = row.label if right else generator.randrange(classes)
    margin = generator.uniform(-0.05, 0.2)
    confidence = generator.uniform(0.4, 1)
    similarity = generator.random() if row.source_ids else None
    return ImageScores(
        judge_label=seen,
        judge_confidence=confidence,
        clip_score=0.3,
        clip_margin=margin,
        source_similarity=similarity,
    )

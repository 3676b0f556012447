"""Diff-II under each inverter, on the packaged model: what comes back, what is recorded, what is left out."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe, small_run

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import find_method
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.report.page import write_report
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.scores import measured_rows
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.work import fit_evaluations
from diffaug_datasets.run.worker import WorkerOptions

STEPS = 4


def made(folder: Path, **config: Any) -> Run:
    words = {"num_inference_steps": STEPS, "inversion_steps": STEPS, **config}
    run = small_run(folder / "run", "diffii", config=words, failure_budget=1.0)
    execute(run, WorkerOptions(), workers=1)
    return Run.open(run.folder)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_poor_sources_are_left_out_and_the_report_says_how_inversions_went(tmp_path: Path) -> None:
    threshold = 21.0
    run = made(tmp_path, inverter="bdia", minimum_psnr=threshold)
    units = [unit for unit in run.plan.fits if unit.kind == "inversions"]
    receipts = [run.receipt(unit.name) for unit in units]
    found = {name: value for fit in receipts if fit for name, value in fit.measured["psnr"].items()}
    poor = {name for name, value in found.items() if value < threshold - 0.01}
    assert 0 < len(poor) < len(found), sorted(found.values())
    for unit, fit in zip(units, receipts, strict=True):
        assert fit is not None
        assert fit.evaluations == fit_evaluations(unit) == (2 * STEPS - 1) * len(unit.content["images"])
    for shard in run.plan.shards():
        failed = {row.row_id for row in run.receipt(shard.name).failed}  # type: ignore[union-attr]
        rows = {row["row_id"]: row for row in run.table(shard).drop_columns(["image"]).to_pylist()}
        for planned in shard.rows:
            bad = sum(f"{source}/{planned.label}" in poor for source in planned.source_ids)
            assert (planned.row_id in failed) == (bad == 2)
            if bad < 2:
                assert (rows[planned.row_id]["fallback"] == "poor_noise_partner") == (bad == 1)
    for scores in measured_rows(run).values():
        if scores.inversion_psnr is not None:
            assert scores.inversion_psnr >= threshold - 0.02
            assert 0.5 < scores.inversion_norm < 1.5 and 1.5 < scores.inversion_kurtosis < 6  # type: ignore[operator]
            assert 0 < scores.self_interpolation < 100  # type: ignore[operator]
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "kurtosis of these latents" in page and "PSNR in dB of real images" in page


def test_the_default_moves_no_plan() -> None:
    none, said, other = (
        prepare(small_recipe("diffii", config=config)).plan.id
        for config in ({}, {"inverter": "ddim", "minimum_psnr": None}, {"inverter": "bdia", "inversion_steps": 4})
    )
    assert none == said != other


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"inverter": "bdia", "inversion_steps": 200}, "inversion_steps must be 25 as num_inference_steps, got 200"),
        ({"inverter": "bdia", "inversion_steps": 1, "num_inference_steps": 1}, "bdia needs 2 or more steps"),
        ({"inverter": "edict", "single_image_policy": "diff_aug"}, "diff_aug denoises by ddim, not by edict"),
        ({"inverter": "null_text"}, "inverter: got 'null_text', input should be 'ddim', 'midpoint', 'bdia' or 'edict'"),
    ],
)
def test_what_cannot_be_inverted_so_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        small_recipe("diffii", config={"num_inference_steps": 25, "inversion_steps": 25, **config})
    assert find_method("diff_ii").Config().inverter == "ddim"  # type: ignore[attr-defined]

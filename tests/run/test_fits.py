"""Fits are made once: a second run, and a second run folder, use what is there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_runs import METHODS, small_run

from diffaug_datasets.core.errors import RunError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import merged
from diffaug_datasets.run.context import WorkContext
from diffaug_datasets.run.execute import execute
from diffaug_datasets.run.store import Run
from diffaug_datasets.run.worker import WorkerOptions


def test_a_second_run_makes_no_inversion_calls(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "diffii")
    execute(run, WorkerOptions(), workers=1)
    before = {unit.name: run.receipt(unit.name) for unit in run.plan.fits}
    (run.folder / "shards" / "synthetic-00000.json").unlink()
    execute(Run.open(run.folder), WorkerOptions(), workers=1)
    assert {unit.name: run.receipt(unit.name) for unit in run.plan.fits} == before


def test_another_run_folder_takes_over_concepts_and_inversions(tmp_path: Path) -> None:
    first = small_run(tmp_path / "first", "diffii")
    execute(first, WorkerOptions(), workers=1)
    ablation = merged(METHODS["diffii"], {"split_ratio": 1.0})
    second = small_run(tmp_path / "second", "diffii", config=ablation)
    assert second.plan.id != first.plan.id
    execute(second, WorkerOptions(fits_from=(first.folder,)), workers=1)
    assert [u.name for u in second.plan.fits] == [u.name for u in first.plan.fits]
    for unit in second.plan.fits:
        ours, theirs = second.receipt(unit.name), first.receipt(unit.name)
        assert ours is not None
        assert theirs is not None
        assert ours.files == theirs.files
        assert ours.evaluations == 0


def test_a_damaged_fit_is_not_taken_over(tmp_path: Path) -> None:
    first = small_run(tmp_path / "first", "genieada")
    execute(first, WorkerOptions(only_fits=True), workers=1)
    for file in (first.folder / "fits").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    second = small_run(tmp_path / "second", "genieada")
    execute(second, WorkerOptions(fits_from=(first.folder,), only_fits=True), workers=1)
    assert all(second.intact(unit.name) for unit in second.plan.fits)


def test_a_fit_that_holds_nonsense_is_one_sentence(tmp_path: Path) -> None:
    """Someone may publish a fit under a right digest that is no fit at all."""
    folder = tmp_path / "latents"
    folder.mkdir()
    (folder / "receipt.json").touch()
    save_file({"an image": torch.zeros(1)}, folder / "latents.safetensors")
    recipe = Recipe.from_dict({"builder": "toy", "method": "img2img"})
    ctx = WorkContext(recipe, tmp_path, lambda _: b"")
    assert ctx.fit("latents")["an image"].shape == (1,)
    with pytest.raises(RunError, match="fit latents holds no tensor 'another'; delete"):
        ctx.fit("latents")["another"]
    (folder / "latents.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(RunError, match="fit latents is damaged"):
        WorkContext(recipe, tmp_path, lambda _: b"").fit("latents")

"""A release that an image was withdrawn from is as good as any: checked, its rows rebuilt, built again as a whole."""

from pathlib import Path

import pytest
from command_line import Command
from hub.server import LoopbackHub
from small_release import made

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.release.publishing import publish
from diffaug_datasets.run.reuse import withdraw
from diffaug_datasets.run.store import Run

NAME = "org/fashion"
CONCEPTS = {"steps": 4, "batch": 4, "rank": 4, "lr_lora": 1e-3, "lr_embedding": 1e-3}
FEW = {"num_inference_steps": 3, "inversion_steps": 3, "concepts": CONCEPTS}


@pytest.mark.full
def test_fits_that_cannot_be_made_again_come_from_the_release(
    hub: LoopbackHub, tmp_path: Path, diffaug: Command
) -> None:
    """Diff-II: concepts that the withdrawn image had a part in; its inverted latents are gone."""
    run = made(tmp_path / "run", "fashion_2shot_diffii", config=FEW)
    gone = run.plan.rows[0].source_ids[0]
    left = withdraw(run, [gone], tmp_path / "left").run
    publish(run, NAME)
    done = publish(left, NAME)
    files = hub.files(NAME)
    card = files["README.md"].decode()
    assert "1 real images were withdrawn after the images were made; no row here was made from them" in card
    assert "were made while they were in: concepts" in card
    holding = {path.rsplit("/", 1)[1] for path, data in files.items() if gone.encode() in data}
    assert holding <= {"recipe.yaml", "plan.json"}, "only the request itself, and what fits were named after"
    checked = diffaug("verify", NAME, "--sample", 3, "--device", "cpu")
    assert checked.code == 0, checked.out
    built = diffaug("build", NAME, "--run", tmp_path / "again", "--workers", 1, "--device", "cpu")
    rows = len(left.plan.rows)
    assert (built.code, f"{rows} of {rows} images are bit-equal" in built.out) == (0, True), built
    assert done.folder.endswith(left.plan.id[:16])


def test_a_withdrawn_image_and_its_rows_are_gone(
    hub: LoopbackHub, finished: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone = finished.plan.rows[0].source_ids[0]
    run = made(tmp_path_factory.mktemp("withdrawn") / "run", without=[gone])
    assert run.plan.id != finished.plan.id
    assert all(gone not in row.source_ids for row in (*run.plan.rows, *run.plan.real))
    assert len(run.plan.real) == len(finished.plan.real) - 1
    first = publish(finished, NAME)
    publish(run, NAME)
    files = hub.files(NAME)
    assert "1 real images were withdrawn" in files["README.md"].decode()
    holding = {path.rsplit("/", 1)[1] for path, data in files.items() if gone.encode() in data}
    assert holding <= {"recipe.yaml", "plan.json"}, "only the request itself may name it"
    assert any(gone.encode() in data for data in hub.files(NAME, first.tag).values())
    with pytest.raises(RecipeError, match="without: got 'abc', expected the sha256 of a real image"):
        made(tmp_path_factory.mktemp("unknown") / "run", without=["abc"])

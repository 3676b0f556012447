"""What a plan decides on labels follows the model's schedule; what cannot be sampled is refused in one sentence."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.prepare import Prepared, check_models, prepare

TURBO = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
QUIET = {"guidance_scale": 1, "sampler": "ddim", "num_inference_steps": 4}


def planned(tmp_path: Path, changes: dict[str, Any], method: str, **config: Any) -> Prepared:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(Path(str(files("diffaug_datasets"))) / "assets" / "tiny" / "pipeline", folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    base = {"builder": "fashion", "protocol": "2shot", "per_class": 1, "include_test": False, "method": method}
    return prepare(Recipe.from_dict({**base, "backbone": str(folder), "config": config}))


def test_genie_and_diff_ii_plan_on_other_labels(tmp_path: Path) -> None:
    changes = {"num_train_timesteps": 500, "timestep_spacing": "leading"}
    rows = planned(tmp_path, changes, "genie", sampler="ddim", num_inference_steps=10, ratio=0.6).plan.rows
    # Labels 451, 401, ..., 1: the first with t - 1 <= 300 is 301, the fourth.
    assert {row.start_step for row in rows} == {3} and {json.loads(row.draw)["noised_at"] for row in rows} == {300}
    rows = planned(tmp_path, changes, "diff_ii", num_inference_steps=10, inversion_steps=10, split_ratio=0.5).plan.rows
    assert {json.loads(row.draw)["switch"] for row in rows} == {5}  # 451, ..., 251, of which t >= 250


def test_ada_tries_its_levels_on_other_labels(tmp_path: Path) -> None:
    changes = {"num_train_timesteps": 500, "timestep_spacing": "leading"}
    words: dict[str, Any] = {"encoder": "tiny", "sampler": "ddim", "num_inference_steps": 10, "levels": [0.6, 1.0]}
    prepared = planned(tmp_path, changes, "genie_ada", **words)
    row, recipe = prepared.plan.rows[0], prepared.recipe
    assert json.loads(row.draw) == {"starts": [3, 0], "noised_at": [300, None]}
    assert recipe.method_definition.evaluations(recipe.method_config, row) == 2 * (7 + 10)
    usual = {"timestep_spacing": None, "num_train_timesteps": 1000}
    assert planned(tmp_path, usual, "genie_ada", **words).plan.rows[0].draw == "{}"


def test_turbo_is_planned_in_a_few_steps_alone(tmp_path: Path) -> None:
    assert planned(tmp_path, TURBO, "txt2img", **QUIET).plan.rows
    wrong = {"num_inference_steps": 50, "guidance_scale": 7.5, "sampler": "dpm"}
    with pytest.raises(BackboneError) as caught:
        planned(tmp_path, TURBO, "txt2img")
    sentence = str(caught.value)
    assert all(f"config.{key}: {value}" in sentence for key, value in wrong.items()) and "\n" not in sentence
    for key, value in wrong.items():
        with pytest.raises(
            BackboneError, match=f"made for a few steps without guidance.*got config.{key}: {value}: set"
        ):
            planned(tmp_path, TURBO, "txt2img", **{**QUIET, key: value})


def test_turbo_is_known_by_its_hub_id_before_it_is_here() -> None:
    content = {"builder": "fashion", "protocol": "2shot", "method": "txt2img", "backbone": "stabilityai/sd-turbo"}
    with pytest.raises(BackboneError, match="is made for a few steps without guidance"):
        check_models(Recipe.from_dict(content))
    check_models(Recipe.from_dict({**content, "config": QUIET}))


def test_zero_snr_is_driven_where_eps_is_not_needed(tmp_path: Path) -> None:
    assert planned(tmp_path, ZERO_SNR, "da_fusion", sampler="ddim").plan.rows
    with pytest.raises(BackboneError, match=r"zero terminal SNR.*plms extrapolates eps"):
        planned(tmp_path, ZERO_SNR, "da_fusion", sampler="plms")
    with pytest.raises(BackboneError, match="where eps says nothing of the image, expected a network that predicts v"):
        planned(tmp_path, {**ZERO_SNR, "prediction_type": "epsilon"}, "genie")


@pytest.mark.parametrize("method", ["genie", "diff_ii"])
def test_rows_that_were_planned_on_other_labels_are_not_made(tmp_path: Path, method: str) -> None:
    """As where the model came to this machine after the plan."""
    from diffaug_datasets.core.errors import RunError
    from diffaug_datasets.models.backbone import Backbone

    config: dict[str, Any] = {"sampler": "ddim"} if method == "genie" else {"concepts": {"steps": 1}}
    usual = planned(tmp_path, {}, method, **config)
    other = planned(tmp_path, {"timestep_spacing": "trailing"}, method, **config)

    class Lent:
        backbone = Backbone.load(other.recipe.backbone)

        def use_concepts(self, name: str) -> None:
            """None are needed before the rows are looked at."""

    definition, rows = usual.recipe.method_definition, usual.plan.rows[:1]
    if method == "diff_ii":
        draw = {**json.loads(rows[0].draw), "switch": 20}
        rows = (rows[0].model_copy(update={"draw": json.dumps(draw)}),)
    with pytest.raises(RunError, match="before the labels of their backbone were known; plan again"):
        definition.generate(rows, usual.recipe.method_config, Lent())  # type: ignore[arg-type]

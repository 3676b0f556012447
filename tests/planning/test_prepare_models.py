"""Plans look at the models that a recipe names: what cannot be used is refused before anything is written."""

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.prepare import prepare

ASSETS = Path(str(files("diffaug_datasets"))) / "assets" / "tiny"


def copied(folder: Path, part: str, name: str = "", **changes: Any) -> Path:
    """A packaged model with some keys of one file changed."""
    shutil.copytree(ASSETS / part, folder)
    if name:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
@pytest.mark.parametrize("family", ["KolorsPipeline", "DiTPipeline", ["pipeline.py", "Mine"]])
def test_another_family_is_refused_at_plan(tmp_path: Path, diffaug: Command, family: Any, words: tuple[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": family}))
    said = diffaug("plan", "fashion_2shot_txt2img", "--set", f"backbone.id={folder}", "--run", tmp_path / "run", *words)
    assert said.sentence.startswith(f"backbone '{folder}' ") and "ipeline" in said.sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["scores.encoder", "scores.judge", "config.encoder"])
@pytest.mark.parametrize("lost", ["model.safetensors", "preprocessor_config.json"])
def test_encoders_and_judges_are_looked_at(tmp_path: Path, diffaug: Command, key: str, lost: str) -> None:
    folder = copied(tmp_path / "model", "judge" if key == "scores.judge" else "encoder")
    method = "genieada" if key == "config.encoder" else "txt2img"
    words = ("plan", f"fashion_2shot_{method}", "--set", f"{key}={folder}", "--set", "backbone=tiny", "--dry-run")
    assert diffaug(*words).code == 0
    (folder / lost).unlink()
    assert f"model '{folder}' cannot be loaded ({lost} is missing): expected a" in diffaug(*words).sentence


def test_a_look_at_models_needs_no_torch(tmp_path: Path) -> None:
    encoder, backbone = copied(tmp_path / "encoder", "encoder"), copied(tmp_path / "backbone", "pipeline")
    code = (
        "import sys\nfrom diffaug_datasets.core.recipe import Recipe\n"
        "from diffaug_datasets.planning.prepare import check_models\n"
        "check_models(Recipe.from_dict({'builder': 'fashion', 'protocol': '2shot', 'method': 'txt2img', "
        f"'backbone': {str(backbone)!r}, 'scores': {{'encoder': {str(encoder)!r}}}}}))\n"
        "sys.exit(bool({'torch', 'transformers', 'diffusers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def recipe(method: str, backbone: Path, **config: Any) -> Recipe:
    """Two images of each class of the packaged photographs' builder."""
    content = {"builder": "fashion", "protocol": "2shot", "method": method, "per_class": 1, "config": config}
    return Recipe.from_dict({**content, "backbone": str(backbone)})


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("method", "config", "said"),
    [
        ("txt2img", {"num_inference_steps": 50}, None),
        ("txt2img", {"num_inference_steps": 501}, "was trained on 500 timesteps (got 501 inference steps; give 1 to 4"),
        ("img2img", {"sampler": "ddim"}, None),
        ("genie", {}, None),
        ("genie_ada", {"encoder": "tiny"}, None),
        ("diff_ii", {}, None),
    ],
)
def test_other_schedules_work_or_are_refused(tmp_path: Path, method: str, config: Any, said: str | None) -> None:
    folder = copied(tmp_path / "model", "pipeline", SCHEDULER, num_train_timesteps=500)
    if said is None:
        prepare(recipe(method, folder, **config))
        return
    with pytest.raises(BackboneError) as refusal:
        prepare(recipe(method, folder, **config))
    assert said in str(refusal.value) and str(folder) in str(refusal.value)

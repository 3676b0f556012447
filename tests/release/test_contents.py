"""Models in folders of the publisher: under their name and digest in plan, recipe, card and rows, wherever they lie."""

import shutil
from pathlib import Path

import pytest
from command_line import Command
from hub.server import LoopbackHub
from small_release import made

import diffaug_datasets
from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.models import is_local, model_name, placeless
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare
from diffaug_datasets.release.contents import PublishOptions
from diffaug_datasets.release.publishing import publish

NAME = "org/fashion"
TINY = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
FEW = {"num_inference_steps": 2, "levels": [0.5, 1.0]}


def recipe_of(place: Path) -> dict[str, object]:
    """Settings with every model in a folder below `place`."""
    for kind in ("encoder", "judge"):
        if not (place / kind).exists():
            shutil.copytree(TINY / kind, place / kind)
    models = {kind: str(place / kind) for kind in ("encoder", "judge")}
    return {"config": {**FEW, "encoder": models["encoder"]}, "scores": models}


def test_nothing_published_says_where_models_lie(hub: LoopbackHub, tmp_path: Path, diffaug: Command) -> None:
    place = tmp_path / "home of someone" / "models"
    run = made(tmp_path / "run", "fashion_1shot_genieada", **recipe_of(place))
    with pytest.raises(PublishError, match=r"local-model: config\.encoder of the recipe names a folder of this "):
        publish(run, NAME)
    assert not hub.writes()
    publish(run, NAME, PublishOptions(allow=("local-model",)))
    files = hub.files(NAME)
    telling = (str(tmp_path), "home of someone")
    assert [path for path, data in files.items() if any(word.encode() in data for word in telling)] == []
    name = model_name(str(place / "encoder"))
    assert name.startswith("encoder@") and len(name) == len("encoder@") + 12
    holding = {path.rsplit("/", 1)[-1] for path, data in files.items() if name.encode() in data}
    assert {"recipe.yaml", "plan.json", "README.md"} <= holding
    said = diffaug("verify", NAME)
    assert said.code == 0, said.out
    refused = diffaug("regen", NAME, run.plan.rows[0].row_id, "--device", "cpu").sentence
    assert f"encoder {name!r} is neither a folder nor a Hub id" in refused


def test_a_plan_is_the_same_wherever_its_models_lie(tmp_path: Path) -> None:
    ids = []
    for folder in ("here", "there/deeper"):
        changes = {"per_class": 1, "include_test": False, **recipe_of(tmp_path / folder)}
        ids.append(prepare(config_recipe("fashion_1shot_genieada", **changes)).plan.id)
    assert ids[0] == ids[1]


def test_what_is_a_place_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    (tmp_path / "org" / "clip").mkdir(parents=True)
    places = ("/home/me/clip", "~/clip", "./clip", "../clip")
    others = (
        "org/clip",
        "openai/clip-vit",
        "a photo of a {name}",
        "/{name}/",
        "tiny",
        "clip",
        "",
        "a/b\0c",
        "x" * 5000 + "/y",
    )
    assert [text for text in (*places, *others) if is_local(text)] == list(places)
    told = {"encoder": "clip", "prompt": "clip", "deep": [{"file": "/home/me/x.csv"}], "count": 3, "judge": "shots"}
    assert placeless(told) == {**told, "deep": [{"file": "x.csv"}]}

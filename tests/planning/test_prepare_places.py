"""Relative places start at the recipe's folder (a file) or the current one (command line, Python), all of them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from command_line import Command
from PIL import Image
from pydantic import BaseModel

import diffaug_datasets
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.models import BackboneSpec, find_backbone, find_model, place_of
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.release.contents import public_recipe
from diffaug_datasets.run.store import Run

TINY = Path(diffaug_datasets.__file__).parent / "assets" / "tiny"
SUFFIXES = {
    "schema": 1,
    "builder": "imagefolder",
    "protocol": "full",
    "prefix": "a photo of",
    "captioner": "x@y",
    "captions": [],
    "summary": {"kind": "clusters", "model": "clusters"},
    "tokens_checked": False,
    "suffixes": ["in the snow."],
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a recipe with everything that it may name beside it."""
    folder = tmp_path / "project"
    for place in ("images/a/0.png", "images/a/1.png", "images/b/0.png", "images/b/1.png", "pool/p.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 32), 60 + len(place)).convert("RGB").save(folder / place)
    for kind in ("pipeline", "encoder", "judge"):
        shutil.copytree(TINY / kind, folder / "models" / kind)
    (folder / "lists").mkdir()
    (folder / "lists" / "suffixes.json").write_text("\ufeff" + json.dumps(SUFFIXES), encoding="utf-8")
    (folder / "m.csv").write_text("5,1\n1,5\n")
    return folder


def written(project: Path, **content: Any) -> Path:
    """A recipe of own images in the project."""
    told = {"builder": "imagefolder", "source": "images", "per_class": 1, "include_test": False, **content}
    told.setdefault("backbone", {"id": "models/pipeline", "height": 32, "width": 32})
    (project / "r.yaml").write_text(json.dumps(told))  # JSON is YAML
    return project / "r.yaml"


EACH: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "source": ({"method": "img2img"}, {"source": "images"}),
    "backbone": ({"method": "img2img"}, {"backbone.id": "models/pipeline"}),
    "a short backbone": ({"method": "img2img", "backbone": "models/pipeline"}, {"backbone.id": "models/pipeline"}),
    "scores": (
        {"method": "img2img", "scores": {"encoder": "models/encoder", "judge": "./models/judge"}},
        {"scores.encoder": "models/encoder", "scores.judge": "models/judge"},
    ),
    "config.encoder": (
        {"method": "genie_ada", "config": {"encoder": "models/encoder"}},
        {"config.encoder": "models/encoder"},
    ),
    "confusion": (
        {"method": "genie", "confusion": "m.csv", "config": {"sources": "confused", "top_confused": 1}},
        {"confusion": "m.csv"},
    ),
    "suffixes": (
        {"method": "diff_ii", "config": {"suffixes": "lists/suffixes.json"}},
        {"config.suffixes": "lists/suffixes.json"},
    ),
    "pool": (
        {"method": "retrieval", "config": {"pool": "pool", "encoder": "models/encoder"}},
        {"config.pool": "pool", "config.encoder": "models/encoder"},
    ),
}


def value_at(content: Any, path: str) -> Any:
    """`a.b` of nested mappings."""
    for key in path.split("."):
        content = content[key]
    return content


@pytest.mark.parametrize("case", EACH)
def test_each_place_starts_at_the_recipe_s_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffaug: Command, case: str
) -> None:
    file = written(project, **EACH[case][0])
    other = tmp_path / "elsewhere"
    (other / "images" / "wrong").mkdir(parents=True)
    (other / "models" / "pipeline").mkdir(parents=True)
    monkeypatch.chdir(other)
    recipe = Recipe.from_yaml(Path(os.path.relpath(file)))
    content = recipe.model_dump(mode="json", by_alias=True)
    for path, place in EACH[case][1].items():
        assert value_at(content, path) == str(project / place)
    said = diffaug("plan", "../project/r.yaml", "--run", "run")
    assert said.code == 0, said
    plan = Run.open(other / "run").plan
    assert plan.header.class_names == ("a", "b")
    shutil.move(other / "run", tmp_path / "moved")
    monkeypatch.chdir("/")
    moved = Run.open(tmp_path / "moved")
    assert moved.plan.id == plan.id and moved.recipe.identity() == plan.header.recipe
    assert find_backbone(moved.recipe.backbone).folder == project / "models" / "pipeline"


def test_the_command_line_and_python_mean_the_current_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffaug: Command
) -> None:
    file = written(project, method="img2img", source="gone", backbone="tiny")
    monkeypatch.chdir(project)
    line = ("--set", "backbone=models/pipeline", "--source", "images", "--set", "scores.encoder=models/encoder")
    (tmp_path / "recipes").mkdir()
    shutil.move(file, tmp_path / "recipes" / "r.yaml")
    said = diffaug("plan", tmp_path / "recipes" / "r.yaml", "--run", tmp_path / "run", *line)
    assert said.code == 0, said
    told = Run.open(tmp_path / "run").recipe
    assert (told.source, told.backbone.id) == (str(project / "images"), str(project / "models" / "pipeline"))
    assert told.scores.encoder == str(project / "models" / "encoder")
    recipe = Recipe(builder="imagefolder", method="img2img", source="images", backbone="models/pipeline")
    assert (recipe.source, recipe.backbone.id) == (told.source, told.backbone.id)
    named = config_recipe("imagefolder_full_img2img", source=Path("images"), backbone=Path("models/pipeline"))
    assert (named.source, named.backbone.id) == (told.source, told.backbone.id)
    assert BackboneSpec(id="models/pipeline").id == told.backbone.id


def test_home_expands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    recipe = Recipe(builder="imagefolder", method="img2img", source="~/images", backbone="~/models/pipeline")
    assert (recipe.source, recipe.backbone.id) == (str(project / "images"), str(project / "models" / "pipeline"))


def test_a_name_of_the_hub_is_no_folder_of_another_process(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that names the Hub means the Hub, whatever lies where a worker runs; its plan id says so too."""
    content = {"method": "genie_ada", "backbone": "org/model", "config": {"encoder": "org/clip"}}
    recipe = Recipe.from_yaml(written(project, **content))
    (tmp_path / "job" / "org").mkdir(parents=True)
    for kind, name in (("pipeline", "model"), ("encoder", "clip")):
        shutil.copytree(TINY / kind, tmp_path / "job" / "org" / name)
    before = recipe.identity()
    monkeypatch.chdir(tmp_path / "job")
    assert Recipe.from_yaml(project / "r.yaml").identity() == recipe.identity() == before
    assert find_backbone(recipe.backbone).folder is None
    clip = find_model("org/clip", "encoder")
    assert (clip.is_local, clip.folder) == (False, None)


def test_published_recipes_name_nothing_of_the_reader(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = EACH["pool"][0] | {"scores": {"encoder": "models/encoder"}}
    public = public_recipe(Recipe.from_yaml(written(project, **content)))
    assert str(project) not in public.to_yaml()
    (project / "public.yaml").write_text(public.to_yaml())
    monkeypatch.chdir(project)  # where a pool and an `images` lie
    again = Recipe.from_yaml(project / "public.yaml", folder=None)
    assert again == public and public_recipe(again) == public


def test_what_could_be_a_path_says_so_by_its_type() -> None:
    """A new method's place is declared; those that name one today are all known here."""
    known = {
        "pool",
        "encoder",
        "judge",
        "controlnet",
        "qformer",
        "vae",
        "file",
        "single_file",
        "fractals",
        "prompts",
        "source",
        "confusion",
        "suffixes",
        "id",
        "backbone",
    }
    found = {name for model in _models() for name in model.model_fields if place_of(model, name)}
    assert found == known
    undeclared = [
        (model, name)
        for model in _models()
        for name, field in model.model_fields.items()
        if any(word in f"{field.description}" for word in ("folder", ".json", ".csv")) and not place_of(model, name)
    ]
    assert undeclared == []


def _models() -> Iterator[type[BaseModel]]:
    waiting: list[Any] = [Recipe, *(method.Config for method in discover_methods().values())]
    while waiting:
        model = waiting.pop()
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield model
            waiting += [field.annotation for field in model.model_fields.values()]
        waiting += get_args(model)

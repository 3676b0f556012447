"""Lists of prompts: a row takes one of its class's, whatever the list is called or wherever it stands."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.prompts import clip_templates
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import txt2img
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare

SPEC = PlanSpec(seed=0, backbone="m", per_class=400)


def table() -> SourceTable:
    sources = tuple(Source(f"{i:02d}" * 32, i, str(i)) for i in range(2))
    return SourceTable("toy", "train", ("004.Heron", "005.Ibis"), ("heron", "ibis"), "bird", sources)


def rows(**config: Any) -> list[Any]:
    return list(txt2img.plan(txt2img.Config.model_validate(config), table(), SPEC))


def test_clips_templates_are_the_80_that_openai_published() -> None:
    assert len(clip_templates()) == len(set(clip_templates())) == 80
    assert all(text.count("{name}") == 1 and text.endswith(".") for text in clip_templates())
    assert {"a bad photo of a {name}.", "itap of my {name}.", "the origami {name}."} <= set(clip_templates())


def test_a_row_takes_one_of_clips_templates_and_the_rest_of_it_stays() -> None:
    made, plain = rows(prompts="clip"), rows()
    for label, name in enumerate(("heron", "ibis")):
        own = Counter(row.prompt for row in made if row.label == label)
        assert set(own) <= {text.replace("{name}", name) for text in clip_templates()}
        assert len(own) > 70 and max(own.values()) < 20
    assert [row.model_copy(update={"prompt": ""}) for row in made] == [
        row.model_copy(update={"prompt": ""}) for row in plain
    ]


def test_texts_of_ones_own_are_for_all_classes_or_by_label() -> None:
    assert {row.prompt for row in rows(prompts=["a {name} in snow", "a {name}, a {metaclass}"])} == {
        *("a heron in snow", "a heron, a bird", "a ibis in snow", "a ibis, a bird")
    }
    by_label = {"004.Heron": ["a heron fishes"], "005.Ibis": ["an ibis sleeps", "ibis in flight"]}
    assert {(row.label, row.prompt) for row in rows(prompts=by_label)} == {
        *((0, "a heron fishes"), (1, "an ibis sleeps"), (1, "ibis in flight"))
    }
    with pytest.raises(RecipeError, match=r"no texts for class '005.Ibis' \(it has 004.Heron, ...\)"):
        rows(prompts={"004.Heron": ["a heron fishes"]})


def test_an_empty_prompt_without_guidance_is_no_prompt_at_all() -> None:
    [*made] = rows(prompt="", guidance_scale=1)
    assert {(row.prompt, row.guidance_scale) for row in made} == {("", 1.0)}


def planned(config: dict[str, Any]) -> Any:
    return prepare(config_recipe("fashion_2shot_txt2img", per_class=2, include_test=False, config=config))


def test_a_file_of_texts_says_the_same_as_the_texts(tmp_path: Path) -> None:
    texts = ["a {name} on a hanger", "a {name} on the floor"]
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    made = planned({"prompts": str(file)})
    assert made.plan.id == planned({"prompts": texts}).plan.id != planned({}).plan.id
    assert made.recipe.config["prompts"] == texts  # what a run folder keeps does not name the file


WRONG = [
    ("nope", "got 'nope', expected 'clip', texts, or a file"),
    ([], "expected one or more texts"),
    ({}, "expected one or more texts"),
    ({"bag": []}, "expected one or more texts"),
    (["a {name}", " "], "expected one or more texts"),
]


@pytest.mark.parametrize(("prompts", "sentence"), WRONG)
def test_what_is_no_list_is_refused(prompts: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        planned({"prompts": prompts})


@pytest.mark.parametrize("text", ["[", "{}[", "[]", "[1]", '{"bag": "a bag"}', '"a"', "null"])
def test_a_file_that_holds_anything_else_is_one_sentence(diffaug: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "texts.json").write_text(text)
    said = diffaug("plan", "fashion_2shot_txt2img", "--set", f"config.prompts={tmp_path / 'texts.json'}")
    assert said.code == 2 and "config.prompts" in said.err and "Traceback" not in said.err


def test_a_recipe_that_names_no_list_is_planned_as_before() -> None:
    content = Recipe.from_dict({"builder": "toy", "method": "txt2img"}).identity()["config"]
    assert isinstance(content, dict) and "prompts" not in content


def test_sentences_are_a_file_that_a_plan_is_not_made_without(tmp_path: Path) -> None:
    """He et al.'s language enhancement: the preset says what to make, and takes what `diffaug sentences` wrote."""
    assert config_recipe("txt2img@eurosat_full_language").config["prompts"] == "sentences"
    asked = r"got 'sentences', expected the file that holds them; make it by `diffaug sentences RECIPE --out"
    with pytest.raises(RecipeError, match=asked):
        prepare(config_recipe("fashion_5shot_txt2img", per_class=1, config={"prompts": "sentences"}))

"""What a recipe says of images of one's own, what of it counts for a plan, and keys that stand in the wrong place."""

from typing import Any

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.recipe import OWN_KEYS, Recipe

PLAIN = {"builder": "imagefolder", "method": "img2img"}


def recipe(**keys: Any) -> Recipe:
    return Recipe.from_dict({**PLAIN, **keys}, folder=None)


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(content, folder=None)
    return str(error.value)


def test_prose_counts_for_no_plan_and_the_rest_does() -> None:
    plain = recipe().identity()
    prose = {"title": "My photos", "citation": "@misc{me}", "homepage": "https://me.example/photos"}
    assert recipe(**prose).identity() == plain
    own: dict[str, Any] = {"name": "mine", "licence": "mit", "metaclass": "bird", "classes": {"a": "owl"}}
    assert set(own) == set(OWN_KEYS)
    for key, value in own.items():
        assert recipe(**{key: value}).identity() == {**plain, key: value}


def test_a_recipe_without_these_keys_is_what_it_was() -> None:
    assert not {*OWN_KEYS, "title", "citation", "homepage"} & set(recipe().identity())


def test_values_take_their_usual_form_and_come_back_from_yaml(tmp_path: Any) -> None:
    made = recipe(licence="CC BY 4.0", title="  My \n photos ", classes={"0": " red  fox "}, name="my_photos")
    assert (made.licence, made.title, made.classes) == ("cc-by-4.0", "My photos", {"0": "red fox"})
    (tmp_path / "r.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(tmp_path / "r.yaml") == made


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", "my photos", "name: got 'my photos', string should match pattern"),
        ("name", "../x", "name: got '../x', string should match"),
        ("homepage", "javascript:alert(1)", "homepage: got 'javascript:alert(1)', string should match"),
        ("homepage", "https://x.example/> <b>", "homepage: got 'https://x.example/> <b>', string should match"),
        ("licence", "mitt", "licence: got 'mitt', expected a licence by the Hub's id; did you mean 'mit'?"),
        ("classes", {"a": " "}, "the phrase of 'a' has 0 characters, expected 1 to 200"),
        ("classes", {"a": "owl", "b": "owl"}, "'a' and 'b' are both called 'owl', so prompts cannot tell them apart"),
        ("licens", "mit", "licens: unknown key; did you mean 'licence'"),
    ],
)
def test_what_cannot_be_is_refused(key: str, value: Any, said: str) -> None:
    assert said in refused({**PLAIN, key: value})


def test_keys_of_another_method_are_named_with_what_to_do() -> None:
    said = refused(
        {"builder": "fashion", "method": "genie", "config": {"split_ratio": 0.3, "arc": "full", "ratio": 0.8}}
    )
    assert said == (
        "config: split_ratio, arc are of diff_ii, not of genie; take them out, or set method: diff_ii (`diffaug "
        "methods genie` explains the keys that it has)."
    )
    said = refused({"builder": "fashion", "method": "genie", "config": {"gamma": 0.3}})
    assert said.startswith(
        "config: gamma is of diff_mix, real_mix, ti_mix, not of genie; take it out (`diffaug methods"
    )
    said = refused({"builder": "fashion", "method": "genie", "config": {"ratoi": 0.3}})
    assert said.startswith("config.ratoi: unknown key; did you mean 'ratio'")


def test_a_parameter_at_the_top_and_a_method_that_is_misspelt() -> None:
    said = refused({"builder": "fashion", "method": "genie", "ratio": 0.3})
    assert said.startswith("ratio: is a key of config, where the parameters of a method stand (genie")
    assert refused({"builder": "fashion", "method": "gene"}).endswith("did you mean 'genie'?")
    assert refused({"builder": "fashion", "method": "diffii"}).endswith("did you mean 'diff_ii'?")

"""Licences by the Hub's ids: which text means which, and which let images be passed on changed."""

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.licences import LICENCES, find_licence


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cc-by-4.0", "cc-by-4.0"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC_BY_SA_4.0", "cc-by-sa-4.0"),
        ("MIT License", "mit"),
        ("MIT", "mit"),
        (" cc0-1.0 ", "cc0-1.0"),
    ],
)
def test_an_id_in_any_spelling(text: str, name: str) -> None:
    assert find_licence(text).id == name


@pytest.mark.parametrize(
    ("text", "first"), [("CC-BY", "cc-by-4.0"), ("cc0", "cc0-1.0"), ("apache", "apache-2.0"), ("cc-by-5.0", "cc-by-")]
)
def test_others_are_answered_with_the_nearest(text: str, first: str) -> None:
    with pytest.raises(RecipeError) as error:
        find_licence(text)
    assert f"licence: got {text!r}, expected a licence by the Hub's id; did you mean '{first}" in str(error.value)


@pytest.mark.parametrize("text", ["", "mine", "??"])
def test_what_is_near_to_none_gets_the_usual_ones(text: str) -> None:
    with pytest.raises(RecipeError, match=r"such as cc-by-4\.0, cc0-1\.0"):
        find_licence(text)


@pytest.mark.parametrize("name", ["cc-by-nd-4.0", "cc-by-nc-nd-4.0", "other", "unknown", "cc", "llama2", "openrail"])
def test_what_forbids_changes_or_says_nothing_is_not_open(name: str) -> None:
    assert not LICENCES[name].is_open


@pytest.mark.parametrize("name", ["cc-by-4.0", "cc-by-nc-sa-4.0", "cc0-1.0", "mit", "odbl", "pddl"])
def test_what_lets_images_be_passed_on_is_open(name: str) -> None:
    assert LICENCES[name].is_open


def test_names_and_places_of_texts() -> None:
    found = LICENCES["cc-by-nc-sa-3.0"]
    assert (found.title, found.url) == ("CC BY-NC-SA 3.0", "https://creativecommons.org/licenses/by-nc-sa/3.0/")
    assert all(licence.id == name and licence.title for name, licence in LICENCES.items())

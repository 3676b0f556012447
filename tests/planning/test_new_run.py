"""From a name and changes to a recipe: what another method does to it, and what is said to a name that is none."""

from pathlib import Path

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.planning.new_run import find_recipe


def told(name: str, changes: dict[str, object]) -> tuple[str, dict[str, object], list[str]]:
    said: list[str] = []
    recipe = find_recipe(name, changes, said.append)
    return recipe.method, recipe.config, said


def test_a_changed_method_drops_the_keys_of_the_old_one_with_a_word(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("builder: fashion\nmethod: genie\nconfig: {ratio: 0.8, guidance_scale: 3.0}\n")
    method, config, said = told(str(file), {"method": "img2img"})
    assert (method, config) == ("img2img", {"guidance_scale": 3.0})
    assert said == ["method: img2img in the place of genie, so config.ratio of the recipe is dropped"]
    assert told(str(file), {"method": "img2img", "config": {"strength": 0.2}})[1] == {
        "guidance_scale": 3.0,
        "strength": 0.2,
    }
    assert told(str(file), {"per_class": 2}) == ("genie", {"ratio": 0.8, "guidance_scale": 3.0}, [])
    file.write_text("builder: fashion\nmethod: img2img\nconfig: {ratio: 0.8, guidance_scale: 3.0}\n")
    with pytest.raises(
        RecipeError, match="config: ratio is of genie, not of img2img; take it out, or set method: genie"
    ):
        find_recipe(str(file))


def test_a_shipped_recipe_changes_its_method_too() -> None:
    method, config, said = told("own_images", {"method": "img2img"})
    assert (method, "ratio" in config) == ("img2img", False)
    assert said == ["method: img2img in the place of genie, so config.ratio of the recipe is dropped"]


def test_a_config_name_takes_the_defaults_of_the_method_that_is_set() -> None:
    assert find_recipe("fashion_5shot_diffii", {"method": "img2img"}) == find_recipe("fashion_5shot_img2img")
    preset = find_recipe("diff_ii@cub_5shot", {"method": "img2img"})
    assert preset == find_recipe("cub_5shot_img2img")
    assert find_recipe("cub_5shot_diffii", {"protocol": "lt100"}) == find_recipe("cub_lt100_diffii")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fashon_5shot_genie", "fashion_5shot_genie"),
        ("fashion_5shot_gene", "fashion_5shot_genie"),
        ("cub_5shot_diff_ii", "cub_5shot_diffii"),
        ("clip_filtre", "clip_filter"),
        ("diff_ii@cub_5shott", "diff_ii@cub_5shot"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError) as error:
        find_recipe(name)
    assert f"did you mean {near!r}" in str(error.value)


def test_a_name_near_to_none_gets_no_guess_and_a_folder_gets_its_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError) as error:
        find_recipe("zzz")
    assert "did you mean" not in str(error.value)
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="'pets': is a folder, not a recipe; `diffaug new pets` writes one"):
        find_recipe("pets")

"""Which method, counts, model and names a recipe is given, by what the images and the machine are."""

from pathlib import Path

import pytest
from messy import picture

from diffaug_datasets.core.models import DEFAULT_ID
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.inspect import Inspection, inspect
from diffaug_datasets.planning.new_recipe import new_recipe
from diffaug_datasets.planning.suggest import (
    GIVEN,
    Machine,
    config_stem,
    guess_metaclass,
    kind_of,
    shard_rows,
    suggest,
    title_of,
)

GPU = Machine("A100", 40 << 30)


@pytest.fixture
def few(tmp_path: Path) -> Inspection:
    for number, name in enumerate(("owl/0", "owl/1", "wren/0", "wren/1")):
        (tmp_path / "birds" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "birds" / f"{name}.png")
    return inspect(str(tmp_path / "birds"))


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ([5, 5], "few"),
        ([20, 20, 21], "few"),
        ([1, 20], "few"),
        ([21, 22, 23], "plenty"),
        ([2, 30], "tail"),
        ([4, 30], "few"),
    ],
)
def test_the_kind_follows_from_the_counts(counts: list[int], kind: str) -> None:
    assert kind_of(counts) == kind


def test_without_a_gpu_it_is_a_trial_and_says_so(few: Inspection) -> None:
    made = suggest(few, Machine())
    assert made.content["backbone"] == {"id": "tiny", "dtype": "float32"}
    assert (made.content["method"], made.content["per_class"]) == ("img2img", 2)
    assert made.reasons["backbone"].startswith("a trial only: this machine has no GPU that torch sees")
    assert "too little memory" in suggest(few, Machine("T400", 2 << 30)).reasons["backbone"]


def test_with_a_gpu_few_images_are_learned(few: Inspection) -> None:
    made = suggest(few, GPU)
    assert made.content["backbone"] == {"id": DEFAULT_ID, "dtype": "float16", "height": 512, "width": 512}
    assert (made.content["method"], made.content["per_image"], made.content["batch_size"]) == ("diff_ii", 5, 8)
    assert "A100 with 40 GiB" in made.reasons["backbone"]
    assert suggest(few, Machine("RTX", 12 << 30)).content["batch_size"] == 4


def test_a_chosen_model_is_taken(few: Inspection) -> None:
    made = suggest(few, GPU, "org/model")
    assert made.content["backbone"] == {"id": "org/model", "dtype": "float16"}
    assert (made.content["method"], made.reasons["backbone"]) == ("img2img", GIVEN)


def test_a_stop_costs_about_a_minute_where_images_take_long(few: Inspection, tmp_path: Path) -> None:
    slow = {"builder": "imagefolder", "method": "txt2img", "backbone": "org/model", "batch_size": 4}
    assert shard_rows(Recipe.from_dict(slow), Machine()) == 4  # an hour an image: no less than a batch
    on_gpu = shard_rows(Recipe.from_dict(slow), GPU)
    assert on_gpu is not None and 24 <= on_gpu <= 60 and on_gpu % 4 == 0  # one and a half seconds an image
    fast = {**slow, "backbone": "tiny", "config": {"num_inference_steps": 2}}
    assert shard_rows(Recipe.from_dict(fast), Machine()) is None
    made = new_recipe(few, tmp_path / "birds.yaml", "org/model", machine=GPU)
    assert 1 < made.recipe.shard_rows < 256 and f"shard_rows: {made.recipe.shard_rows} # about a minute" in made.text
    kept = new_recipe(few, tmp_path / "birds.yaml", "org/model", {"shard_rows": 7}, GPU)
    assert kept.recipe.shard_rows == 7


def test_without_test_images_the_recipe_says_what_needs_them(few: Inspection, tmp_path: Path) -> None:
    text = new_recipe(few, tmp_path / "birds.yaml", machine=Machine()).text
    above = text[: text.index("\nsource:")].splitlines()
    assert "no test images, which `diffaug bench`" in " ".join(above[-2:])
    for split in ("train", "test"):
        for name in ("owl", "wren"):
            (tmp_path / "split" / split / name).mkdir(parents=True)
            picture(len(split + name)).save(tmp_path / "split" / split / name / "0.png")
    assert "no test images" not in new_recipe(inspect(str(tmp_path / "split")), machine=Machine()).text


def test_every_suggestion_that_decides_something_has_a_reason(few: Inspection) -> None:
    made = suggest(few, GPU)
    assert {"method", "protocol", "per_image", "backbone", "licence", "metaclass", "title"} <= set(made.reasons)
    assert all(made.reasons.values())
    assert set(made.reasons) <= set(made.content)


@pytest.mark.parametrize(
    ("name", "metaclass"),
    [
        ("birds", "bird"),
        ("birds20", "bird"),
        ("Flowers-12", "flower"),
        ("dishes", "dish"),
        ("berries", "berry"),
        ("photos", ""),
        ("my_photos", ""),
        ("glass", ""),
        ("DSC_0001", ""),
    ],
)
def test_a_plural_says_what_all_classes_are(name: str, metaclass: str) -> None:
    assert guess_metaclass(name, {}) == metaclass


def test_names_and_titles() -> None:
    assert [config_stem(name) for name in ("cub", "a" * 80, "..", "Ä b")] == ["my_cub", "a" * 40, "photos", "a_b"]
    assert [title_of(name) for name in ("my_photos", "", "birds")] == ["My photos", "Photographs", "Birds"]


def test_images_are_judged_where_real_weights_are_installed(few: Inspection) -> None:
    gpu = Machine("A100", 40 << 30, has_encoder=True)
    assert suggest(few, gpu).content["scores"] == {"encoder": "efficientnet-lite0"}
    assert "scores" not in suggest(few, GPU).content
    assert "scores" not in suggest(few, Machine(has_encoder=True)).content  # the packaged model draws no photographs

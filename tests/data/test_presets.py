"""Every preset resolves to the published numbers, typed here once more from the method specification."""

from typing import Any

import pytest
from command_line import Command

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.data.catalogue import config_recipe
from diffaug_datasets.data.presets import presets

FOUR = ("cub", "aircraft", "cars", "pets")
TAILS = ("lt100", "lt50", "lt20", "lt10")
FINE = ("cub", "cars", "food101", "aircraft")
FEW = ("5shot", "10shot")
GENIE_PROMPT = "a photo of a {name}, a type of {metaclass}"


def spread(method: str, builders: tuple[str, ...], protocols: tuple[str, ...], variant: str = "") -> list[str]:
    """The names of a family."""
    return [f"{method}@{b}_{p}{variant}" for b in builders for p in protocols]


# Names, recipe keys, keys of `config`.
Family = tuple[list[str], dict[str, Any], dict[str, Any]]
DIFF_II = {"num_inference_steps": 25, "inversion_steps": 25, "guidance_scale": 7.5, "arc": "full"}
TAIL_OF_GENIE = {"targets": "few", "per_class": 50}
INVERSION = {"guidance_scale": 2.0, "num_inference_steps": 100, "interpolation": 0.1, "noise": 0.1}
TABLE: list[Family] = [
    (spread("diff_ii", FOUR, ("5shot",)), {"per_image": 5}, {**DIFF_II, "split_ratio": 0.3}),
    (spread("diff_ii", FOUR, ("10shot",)), {"per_image": 5}, {**DIFF_II, "split_ratio": 0.1}),
    (spread("diff_ii", ("cub", "flowers"), TAILS), {"per_image": 5}, {**DIFF_II, "split_ratio": 1.0}),
    (
        spread("diff_ii", ("cub", "cars", "pets"), ("5shot",), "_code"),
        {"per_image": 5},
        {**DIFF_II, "inversion_steps": 200, "split_ratio": 0.3, "split_convention": "code"},
    ),
    (["diff_ii@aircraft_5shot_code"], {"per_image": 5}, {**DIFF_II, "inversion_steps": 200, "split_ratio": 0.0}),
    (
        spread("diff_ii", FOUR, ("5shot",), "_paper_split"),
        {"per_image": 5},
        {**DIFF_II, "split_ratio": 0.3, "split_convention": "paper"},
    ),
    (["genie@imagenet_lt"], TAIL_OF_GENIE, {"ratio": 0.8, "sources": "confused", "top_confused": 4, "sampler": "dpm"}),
    (spread("genie", FINE, ("1shot",)), {"per_class": 19}, {"ratio": 0.7, "prompt": GENIE_PROMPT}),
    (spread("genie", FINE, ("1shot",), "_code"), {"per_class": 19}, {"ratio": 0.7, "prompt": "a photo of a {name}."}),
    (["genie_ada@imagenet_lt"], TAIL_OF_GENIE, {"levels": (0.5, 0.6, 0.7, 0.8, 0.9), "top_confused": 4}),
    (spread("genie_ada", FINE, ("1shot",)), {"per_class": 19}, {"levels": (0.5, 0.6, 0.7, 0.8, 0.9)}),
    (["img2img@imagenet_lt_light"], TAIL_OF_GENIE, {"strength": 0.3, "num_inference_steps": 50}),
    (["img2img@imagenet_lt_heavy"], TAIL_OF_GENIE, {"strength": 0.7, "num_inference_steps": 50}),
    (["txt2img@imagenet_lt"], TAIL_OF_GENIE, {"num_inference_steps": 50, "sampler": "dpm"}),
    (
        spread("diff_mix", FOUR, FEW),
        {"per_image": 5},
        {"strengths": (0.5, 0.7, 0.9), "gamma": 0.5, "soft_scaler": 1.0, "num_inference_steps": 25},
    ),
    (
        spread("diff_mix", FOUR, FEW, "_code"),
        {"per_image": 5},
        {"strengths": (0.3, 0.5, 0.7, 0.9), "gamma": 0.5, "soft_scaler": 0.9},
    ),
    (
        spread("diff_mix", ("cub", "aircraft", "cars", "flowers"), ("full",)),
        {"per_image": 5},
        {"strengths": (0.7,), "gamma": 0.8, "soft_scaler": 1.0},
    ),
    (
        spread("diff_mix", ("cub", "aircraft", "cars", "flowers"), ("full",), "_code"),
        {"per_image": 5},
        {"strengths": (0.8,), "gamma": 0.8, "soft_scaler": 0.9},
    ),
    (
        spread("diff_mix", ("cub", "flowers"), TAILS),
        {"per_image": 5},
        {"strengths": (0.5, 0.7, 0.9), "sources": "images", "targets": "even"},
    ),
    (spread("real_mix", FOUR, FEW), {"per_image": 5}, {"strengths": (0.5, 0.7, 0.9), "gamma": 0.5}),
    (spread("real_gen", ("cub", "flowers"), TAILS), {"per_image": 5}, {"targets": "even", "num_inference_steps": 25}),
    (spread("diff_gen", FOUR, FEW), {"per_image": 5}, {"num_inference_steps": 25, "guidance_scale": 7.5}),
    (spread("diff_aug", FOUR, FEW), {"per_image": 5}, {"strengths": (1.0,), "num_inference_steps": 25}),
    (spread("real_guidance", FOUR, FEW), {"per_image": 5}, {"strength": 0.1, "num_inference_steps": 25}),
    (spread("real_guidance", FOUR, FEW, "_da_fusion"), {"per_image": 5}, {"strength": 0.5, "prompt": "a photo"}),
    *[
        ([f"real_guidance@eurosat_{shots}shot"], {"per_class": 800}, {"strength": t / 100, "num_inference_steps": 100})
        for shots, t in ((16, 15), (8, 20), (4, 35), (2, 40), (1, 50))
    ],
    (
        spread("da_fusion", ("flowers", "caltech256"), FEW),
        {"per_image": 10, "backbone.id": "CompVis/stable-diffusion-v1-4"},
        {"strengths": (0.25, 0.5, 0.75, 1.0), "num_inference_steps": 50, "sampler": "plms"},
    ),
    (spread("da_fusion", FOUR, FEW), {"per_image": 5}, {"strengths": (0.25, 0.5, 0.75, 1.0)}),
    (
        spread("diffusion_inversion", ("cifar10", "cifar100"), ("full",)),
        {"backbone.height": 128, "backbone.id": "CompVis/stable-diffusion-v1-4"},
        {**INVERSION, "embeddings.vectors": 5, "embeddings.steps": 3000, "embeddings.batch": 50, "embeddings.lr": 0.03},
    ),
    (
        spread("diffusion_inversion", ("stl10", "imagenette"), ("full",)),
        {"backbone.height": 256},
        {**INVERSION, "embeddings.group": 100, "embeddings.steps": 3000},
    ),
    (
        spread("diffusion_inversion", ("cifar10", "cifar100"), ("full",), "_code"),
        {"backbone.height": 128},
        {**INVERSION, "embeddings.steps": 8000},
    ),
    (["retrieval@imagenet_10pct"], {"per_class": 390}, {"query": "text", "prompt": "A photo of {name}"}),
]


def value_at(thing: Any, path: str) -> Any:
    """`a.b` of an object."""
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family[0][0])
def test_presets_carry_the_published_numbers(family: Family) -> None:
    names, of_recipe, of_config = family
    for name in names:
        recipe = config_recipe(name)
        assert {key: value_at(recipe, key) for key in of_recipe} == of_recipe, name
        assert {key: value_at(recipe.method_config, key) for key in of_config} == of_config, name


def test_no_preset_is_missing_in_the_table() -> None:
    typed = [name for names, _, _ in TABLE for name in names]
    assert sorted(typed) == sorted(presets())


def test_a_preset_takes_changes_as_a_config_name_does() -> None:
    recipe = config_recipe("diff_ii@cub_5shot_code", config={"split_ratio": 0.5}, per_image=2)
    assert (recipe.config["split_ratio"], recipe.config["inversion_steps"], recipe.per_image) == (0.5, 200, 2)


def test_unknown_presets_name_those_of_the_method() -> None:
    with pytest.raises(RecipeError, match="'genie@cub_2shot': no such preset; expected genie@imagenet_lt, "):
        config_recipe("genie@cub_2shot")
    with pytest.raises(RecipeError, match="'geni@cub': no such preset; expected one of da_fusion, "):
        config_recipe("geni@cub")


def test_the_page_says_what_is_at_second_hand(diffaug: Command) -> None:
    page = diffaug("methods", "retrieval").out
    assert "retrieval@imagenet_10pct" in page and "per_class, query, prompt" in page
    assert "reconstruction: no code was released" in page and "@article{burg2023retrieval" in page


def test_a_preset_is_copied_and_planned(diffaug: Command, tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    assert diffaug("cp", "diff_mix@cub_5shot_code", file).code == 0
    assert "soft_scaler: 0.9" in file.read_text()

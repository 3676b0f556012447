"""Settings that nothing reads under the others: refused where a plan is made, no matter to plans that are kept."""

from typing import Any

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.new_run import price_plan, refuse_idle
from diffaug_datasets.planning.presets import presets

INSTRUCTED = {"editor": "instruct"}
UNREAD = [
    ("alia", INSTRUCTED | {"final": "zero"}, "final: got 'zero', .* editor is instruct"),
    ("alia", INSTRUCTED | {"encode": "sample"}, "encode: got 'sample', .* editor is instruct"),
    ("alia", INSTRUCTED | {"sampler": "ddim"}, "sampler: got 'ddim', .* editor is instruct"),
    ("alia", INSTRUCTED | {"strength": 0.5}, "strength: got 0.5, .* editor is instruct"),
    ("alia", {"image_guidance_scale": 1.3}, "image_guidance_scale: got 1.3, .* editor is noised"),
    ("saspa", {"encode": "sample"}, "encode: got 'sample', .* images begin at noise"),
    ("saspa", {"subject_name": "car"}, "subject_name: got 'car', .* subject is none"),
    ("saspa", {"subject": "blip_diffusion", "painted": 0.2}, "painted: got 0.2, .* subject is blip_diffusion"),
    ("diffusemix", INSTRUCTED | {"strength": 0.5}, "strength: got 0.5, .* editor is instruct"),
    ("diffusemix", {"image_guidance_scale": 2.0}, "image_guidance_scale: got 2.0, .* editor is noised"),
    ("diffusemix", {"fractal_weight": 0, "fractals": "mine"}, "fractals: got '.*mine', .* fractal_weight is 0"),
    (
        "img2img",
        {"guidance_scale": 1, "negative_prompt": "blur"},
        "negative_prompt: got 'blur', .* guidance_scale is 1",
    ),
    ("diffii", {"guidance_scale": 1, "negative_prompt": "x"}, "negative_prompt: got 'x', .* guidance_scale is 1"),
    ("genie", {"top_confused": 3}, "top_confused: got 3, .* sources is others"),
    ("genieada", {"top_confused": 3}, "top_confused: got 3, .* sources is others"),
    ("txt2img", {"prompts": "clip", "prompt": "a {name}"}, "prompt: got 'a {name}', .* prompts is set"),
    ("dreamda", {"scope": "dataset"}, "scope: got 'dataset', .* lora is null"),
    ("dreamda", {"lora": {"warmup": 7}}, "lora.warmup: got 7, .* lr_schedule is constant"),
    ("diffii", {"start": "noise", "arc": "short"}, "arc: got 'short', .* start is noise"),
    ("diffii", {"start": "noise", "minimum_psnr": 20}, "minimum_psnr: got 20.0, .* start is noise"),
    ("diffii", {"fallback_strength": 0.5}, "fallback_strength: got 0.5, .* single_image_policy is not diff_aug"),
    ("diffinversion", {"prompt": "a {name}"}, "prompt: got 'a {name}', .* embeddings.start is not prompt"),
    ("diffinversion", {"embeddings": {"clusters": 5, "group": 7}}, "embeddings.group: got 7, .* clusters is set"),
    ("dafusion", {"concepts": {"lr_lora": 1e-3}}, "concepts.lr_lora: got 0.001, .* tokens are learned alone"),
    ("timix", {"concepts": {"lora_start": "uniform"}}, "concepts.lora_start: got 'uniform', .* learned alone"),
    ("retrieval", {"query": "image", "prompt": "a {name}"}, "prompt: got 'a {name}', .* query is image"),
]
READ = [
    ("alia", INSTRUCTED | {"strength": 0.6, "image_guidance_scale": 1.3}),
    ("saspa", {"subject": "blip_diffusion", "subject_name": "car", "painted": 0}),
    ("diffusemix", {"strength": 0.5}),
    ("genie", {"sources": "confused", "top_confused": 3}),
    ("dreamda", {"lora": {"lr_schedule": "cosine", "warmup": 7}, "scope": "dataset"}),
    ("diffii", {"single_image_policy": "diff_aug", "fallback_strength": 0.5}),
    ("diffinversion", {"embeddings": {"start": "prompt"}, "prompt": "a {name}"}),
    ("diffmix", {"concepts": {"rank": 0}}),
]


@pytest.mark.parametrize(("slug", "config", "told"), UNREAD)
def test_a_setting_that_nothing_reads_is_refused_before_a_plan_is_drawn(
    slug: str, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^config\.{told}; take it out\.$"):
        price_plan(config_recipe(f"fashion_2shot_{slug}", config=config))


@pytest.mark.parametrize(("slug", "config"), READ)
def test_a_setting_that_is_read_and_one_at_its_default_are_taken(slug: str, config: dict[str, Any]) -> None:
    refuse_idle(config_recipe(f"fashion_2shot_{slug}", config=config))


def test_no_preset_and_no_default_sets_anything_in_vain() -> None:
    for name in presets():
        refuse_idle(config_recipe(name))
    for method in discover_methods().values():
        if method.NAME != "toy":
            refuse_idle(config_recipe(f"fashion_2shot_{method.SLUG}"))
            refuse_idle(config_recipe(f"imagenet_lt_{method.SLUG}"))


def test_a_kept_recipe_that_holds_such_a_setting_is_read_as_ever() -> None:
    recipe = config_recipe("fashion_2shot_genie", config={"top_confused": 3})
    assert Recipe.from_dict(recipe.model_dump(mode="json", by_alias=True)).identity() == recipe.identity()

"""What edits share: pictures that come back at their source's size, and the settings behind every config name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.core.method import Generated, discover_methods
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.methods._editing import Editing, restored
from diffaug_datasets.planning.catalogue import config_name, config_recipe
from diffaug_datasets.run.context import WorkContext, to_uint8
from diffaug_datasets.sources.real import builder_facts, discover_builders

ROW = PlanRow.model_construct(source_ids=("a",))


def context(width: int, height: int) -> Any:
    """A real context whose one source has this size."""
    ctx = WorkContext(Recipe.model_validate({"builder": "toy", "method": "real_mix"}), Path(), lambda _: b"")
    ctx.__dict__["_decoded"] = lambda _: Image.new("RGB", (width, height))
    return ctx


def test_a_wide_source_gets_a_wide_image() -> None:
    pixels = torch.rand(48, 48, 3, generator=torch.Generator().manual_seed(0))
    made = restored(Generated(pixels, {"m": 1}), ROW, Editing(resize="bicubic"), context(60, 20))
    assert made.pixels.shape == (20, 60, 3) and made.measured == {"m": 1}
    wanted = Image.fromarray(to_uint8(pixels)).resize((60, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(to_uint8(made.pixels), np.array(wanted))


@pytest.mark.parametrize("config", [{"restore_size": False}, {"resize": "crop"}])
def test_where_it_is_not_asked_for_the_image_stays(config: dict[str, Any]) -> None:
    image = Generated(torch.rand(48, 48, 3))
    assert restored(image, ROW, Editing(**config), context(60, 20)) is image


def test_an_image_that_is_not_finite_is_left_for_the_worker_to_judge() -> None:
    image = Generated(torch.full((48, 48, 3), float("nan")))
    assert restored(image, ROW, Editing(), context(60, 20)) is image


@pytest.mark.parametrize("builder", sorted(discover_builders()))
def test_every_method_is_a_config_of_every_builder(builder: str) -> None:
    fixed = builder_facts(builder).protocol
    for method in discover_methods().values():
        for protocol in [fixed] if fixed else ["full", "5shot", "lt100_seed1"]:
            name = "_".join(part for part in (builder, protocol, method.SLUG) if part != fixed)
            recipe = config_recipe(name)
            assert (recipe.builder, recipe.method) == (builder, method.NAME)
            assert config_name(recipe.builder, recipe.protocol, recipe.method) == name


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    (
        "cub_5shot_diffmix",
        {"strengths": (0.5, 0.7, 0.9), "gamma": 0.5, "sources": "classes", "targets": "proportional"},
    ),
    ("cub_full_diffmix", {"strengths": (0.7,), "gamma": 0.8}),
    ("cub_lt100_diffmix", {"strengths": (0.5, 0.7, 0.9), "gamma": 0.5, "sources": "images", "targets": "even"}),
    ("flowers_lt10_realmix", {"sources": "images", "targets": "even"}),
    ("flowers_lt10_realgen", {"targets": "even", "num_inference_steps": 25}),
    ("cub_5shot_diffaug", {"strengths": (1.0,)}),
    ("cub_5shot_realguidance", {"strength": 0.1, "num_inference_steps": 25, "guidance_scale": 7.5}),
    ("cub_5shot_dafusion", {"strengths": (0.25, 0.5, 0.75, 1.0), "sampler": "plms", "num_inference_steps": 50}),
]


@pytest.mark.parametrize(("name", "wanted"), SETTINGS)
def test_settings_are_the_authors(name: str, wanted: dict[str, Any]) -> None:
    config = config_recipe(name).method_config
    assert {key: getattr(config, key) for key in wanted} == wanted


def test_concepts_are_balanced_on_long_tails_alone() -> None:
    for protocol, balanced in (("5shot", False), ("lt100", True)):
        for slug in ("diffii", "diffmix", "diffaug", "diffgen"):
            config: Any = config_recipe(f"cub_{protocol}_{slug}").method_config
            assert (config.concepts.class_balanced, config.concepts.rank, config.concepts.steps) == (
                balanced,
                10,
                35_000,
            )
    assert config_recipe("cub_5shot_dafusion").per_image == 10

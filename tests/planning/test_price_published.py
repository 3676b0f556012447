"""What a set would cost, counted on stand-ins for images that are not here."""

from pathlib import Path

import pytest

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.protocols import frequency_groups
from diffaug_datasets.planning.new_run import find_recipe, price_plan
from diffaug_datasets.planning.published import class_sizes, price_published, published_counts
from diffaug_datasets.sources.real import builder_facts

REQUESTS = ("store_writes", "store_listings", "store_reads")
COUNTED = ("rows", "real", "shards", "evaluations", "idle", "fit_evaluations", "fits", *REQUESTS)


@pytest.mark.parametrize("name", ["fashion_5shot_genie", "fashion_5shot_diffmix", "fashion_5way1shot_genie"])
def test_stand_ins_cost_what_the_images_cost(tmp_path: Path, name: str) -> None:
    recipe = find_recipe(name, {"per_class": 3, "include_test": False})
    counted, real = price_published(recipe, tmp_path / "run"), price_plan(recipe, tmp_path / "run").price
    assert {key: getattr(counted, key) for key in COUNTED} == {key: getattr(real, key) for key in COUNTED}
    assert list(counted.images_per_class.values()) == list(real.images_per_class.values())
    assert counted.gpu_hours == real.gpu_hours and counted.plan_id == "" and not (tmp_path / "run").exists()


def test_the_birds_by_hand(tmp_path: Path) -> None:
    """200 classes of 5 images, 5 rows an image, 25 steps with and without the prompt; 31.4 such steps take a second."""
    price = price_published(find_recipe("cub_5shot_diffmix"), tmp_path)
    assert (price.real, price.test, price.rows) == (1000, 5794, 5000)
    assert price.shards == 20  # of 256 rows
    steps = price.evaluations / 2 + 3 * price.fit_evaluations / 2
    assert price.gpu_hours == pytest.approx(steps / 31.4 / 3600, rel=0.01)
    assert "31.4 guided steps" in price.assumption


def test_counts_of_sets_without_a_split_are_halves_of_every_class() -> None:
    assert published_counts(builder_facts("flowers")) == (4080, 4109)  # 29 classes of 81 images, 73 of 80
    assert published_counts(builder_facts("cub")) == (5994, 5794)
    with pytest.raises(SourceError, match=r"^imagenet100: no number of classes and training images is published"):
        published_counts(builder_facts("imagenet100"))


def test_a_long_tail_is_as_long_as_it_is_published() -> None:
    facts = builder_facts("imagenet_lt")
    sizes = class_sizes(facts, facts.official["train"])
    assert (sum(sizes), len(sizes)) == (115_846, 1000)
    groups = frequency_groups(sizes, *facts.groups)
    assert tuple(map(len, (groups.many, groups.medium, groups.few))) == (385, 479, 136)


@pytest.mark.full
def test_the_tail_of_imagenet_lt(tmp_path: Path) -> None:
    """As GeNIe's authors augment it: 50 images of each of the 136 classes with fewer than 20."""
    price = price_published(find_recipe("genie@imagenet_lt"), tmp_path)
    assert (price.rows, price.real, set(price.images_per_class.values())) == (6800, 115_846, {0, 50})


def test_weights_that_are_not_here_need_no_revision(tmp_path: Path) -> None:
    backbone = {"id": "somebody/somewhat", "revision": None}
    price = price_published(find_recipe("pets_5shot_txt2img", {"per_class": 1, "backbone": backbone}), tmp_path)
    assert (price.real, price.rows, price.weights_here) == (185, 37, False)

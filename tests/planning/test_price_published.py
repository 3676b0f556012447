"""What a set would cost, counted on stand-ins for images that are not here."""

from pathlib import Path

import pytest

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.planning.new_run import find_recipe, price_plan
from diffaug_datasets.planning.published import price_published, published_counts
from diffaug_datasets.sources.real import builder_facts

COUNTED = ("rows", "real", "shards", "evaluations", "idle", "fit_evaluations", "fits", "store_writes", "store_reads")


@pytest.mark.parametrize("name", ["fashion_5shot_genie", "fashion_5shot_diffmix"])
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

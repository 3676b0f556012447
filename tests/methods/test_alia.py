"""ALIA's plans: pairs of images and domains, and the presets' domains. Pictures: `tests/run/test_published.py`."""

from collections import Counter
from typing import Any

import pytest

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import PlanSpec
from diffaug_datasets.core.rows import PlanRow
from diffaug_datasets.core.sources import Source, SourceTable
from diffaug_datasets.methods import alia
from diffaug_datasets.planning.catalogue import config_recipe
from diffaug_datasets.planning.prepare import prepare

DOMAINS = ("on a branch.", "in the water.", "flying.")


def table(*counts: int) -> SourceTable:
    names = tuple(f"class {i}" for i in range(len(counts)))
    sources = tuple(Source(f"{i:02d}{j:02d}" * 16, i, f"{i}/{j}") for i, n in enumerate(counts) for j in range(n))
    return SourceTable("toy", "train", names, names, "bird", sources)


def planned(
    counts: tuple[int, ...], per_class: int, domains: tuple[str, ...] = DOMAINS, **config: Any
) -> list[PlanRow]:
    spec = PlanSpec(seed=0, backbone="m", per_class=per_class, suffixes=domains)
    return list(alia.plan(alia.Config(**config), table(*counts), spec))


def test_every_pair_of_image_and_domain_comes_once_before_any_repeats() -> None:
    rows = [(row.source_ids[0], row.prompt) for row in planned((4, 0), 15)]
    assert len(set(rows[:12])) == 12 and set(rows[12:]) <= set(rows[:12])
    assert Counter(prompt for _, prompt in rows[:12]) == {f"a photo of a class 0 bird {text}": 4 for text in DOMAINS}
    assert len({source for source, _ in rows[:4]}) == 4 and len({prompt for _, prompt in rows[:4]}) > 1


def test_strength_and_sampler_are_the_authors() -> None:
    [row] = planned((1,), 1)
    assert (row.num_inference_steps, row.start_step, row.guidance_scale) == (50, 20, 7.5)
    assert row.strength == pytest.approx(0.6)
    assert alia.evaluations(alia.Config(), row) == 2 * 31  # PLMS takes its first step twice


def test_without_domains_no_plan() -> None:
    with pytest.raises(RecipeError, match=r"config\.suffixes: no shipped list fits .* `diffaug captions` writes"):
        planned((1,), 1, ())


def test_domains_come_from_a_list_a_file_or_the_recipe() -> None:
    shipped = prepare(config_recipe("fashion_5shot_alia", per_class=3)).plan.rows
    assert all(row.prompt and row.prompt.startswith("a photo of a ") and row.prompt.endswith(".") for row in shipped)
    texts = prepare(config_recipe("fashion_5shot_alia", per_class=3, config={"suffixes": ["outdoors"]})).plan.rows
    assert all(row.prompt and row.prompt.endswith(" outdoors") for row in texts)
    assert len(config_recipe("alia@cub_full_code").method_config.requirements.suffixes) == 7

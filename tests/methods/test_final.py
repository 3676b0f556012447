"""`final` reaches every method with a sampler, moves no plan that does not name it, and is part of those that do."""

from typing import Any

import pytest
from test_plans import plan_of

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.method import discover_methods, find_method
from diffaug_datasets.core.recipe import Recipe

WITH_SAMPLER = sorted(m.NAME for m in discover_methods().values() if "sampler" in m.Config.model_fields)


def recipe_of(method: str, **config: Any) -> Recipe:
    return Recipe.from_dict({"builder": "toy", "method": method, "config": config})


@pytest.mark.parametrize("method", WITH_SAMPLER)
def test_where_sampling_ends_counts_once_it_is_said(method: str) -> None:
    assert plan_of(method, final=None).id == plan_of(method).id != plan_of(method, final="alpha_bar_0").id
    assert recipe_of(method, final="alpha_bar_0").identity()["config"]["final"] == "alpha_bar_0"  # type: ignore[index]
    config = find_method(method).Config(final="zero")  # type: ignore[call-arg]
    assert config.model_dump()["final"] == "zero" and "final" not in find_method(method).Config().model_dump()


def test_genie_and_its_baselines_have_it() -> None:
    assert {"genie", "genie_ada", "img2img", "txt2img", "da_fusion", "diff_mix", "diffusion_inversion"} <= {
        *WITH_SAMPLER
    }


def test_another_end_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"config\.final: got 'one', input should be 'zero' or 'alpha_bar_0'"):
        recipe_of("genie", final="one")

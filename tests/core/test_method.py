"""The cost of a method in words, also of one that cannot be planned from invented images."""

from dataclasses import replace
from typing import Any

import pytest

from diffaug_datasets.core.method import MethodConfig, find_method
from diffaug_datasets.core.method_facts import cost, method_facts


class Demanding(MethodConfig):
    """A key without a default."""

    folder: str


COSTS = {"genie": "80", "genie_ada": "350", "diffusion_inversion": "200", "retrieval": "0", "gif": "90 (in fits)"}


@pytest.mark.parametrize(("name", "expected"), COSTS.items())
def test_cost_is_that_of_the_specification(name: str, expected: str) -> None:
    """Section 13, two rows per step with guidance; Diffusion Inversion by DDIM."""
    assert cost(find_method(name)) == expected


@pytest.mark.parametrize("change", [{"Config": Demanding}, {"plan": lambda *_: iter(())}])
def test_a_method_that_cannot_be_planned_here_still_has_a_page(change: dict[str, Any]) -> None:
    assert method_facts(replace(find_method("txt2img"), **change)).cost == "as `diffaug plan` says"

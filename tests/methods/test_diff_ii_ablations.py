"""Diff-II without interpolation, and with one strength for every pair: settings that leave other plans as they were."""

import json
import math

import pytest
import torch
from test_plans import SPEC, plan_of, table

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.identity import RowKey
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.methods import diff_ii
from diffaug_datasets.numerics.interpolation import angle, circle, turn


def draws(**config: object) -> list[float]:
    return [json.loads(row.draw)["u"] for row in plan_of("diff_ii", **config).rows]


def test_an_ablation_that_is_not_chosen_is_no_part_of_a_plan() -> None:
    assert plan_of("diff_ii", start="circle", interpolation_strength=None).id == plan_of("diff_ii").id
    dumped = diff_ii.Config().model_dump()
    assert "start" not in dumped and "interpolation_strength" not in dumped and dumped["arc"] == "full"
    chosen = {plan_of("diff_ii", start="noise").id, plan_of("diff_ii", interpolation_strength=0.5).id}
    assert len({*chosen, plan_of("diff_ii").id}) == 3


def test_without_interpolation_no_image_is_inverted_and_one_image_is_enough() -> None:
    plan = plan_of("diff_ii", (1, 3), start="noise", single_image_policy="error")
    assert [row.source_ids for row in plan.rows] == [()] * 8
    assert all(row.prompt_first and row.fallback is None for row in plan.rows)
    assert [fit.kind for fit in plan.fits] == ["concepts"]
    with_images = plan_of("diff_ii", (3, 3))
    assert {fit.kind for fit in with_images.fits} == {"concepts", "inversions"}


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_fixed_strength_is_equation_5(strength: float) -> None:
    """sin((1 - x) alpha) / sin(alpha) a + sin(x alpha) / sin(alpha) b, written here once more."""
    [u] = set(draws(interpolation_strength=strength, arc="short"))
    a, b = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alpha = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    wanted = math.sin((1 - strength) * alpha) / math.sin(alpha) * a + math.sin(strength * alpha) / math.sin(alpha) * b
    found = circle(a, b, turn(u, angle(a, b), "short"), "paper")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_drawn_strengths_differ_and_another_attempt_keeps_a_fixed_one() -> None:
    assert len(set(draws())) == len(draws())
    cfg = diff_ii.Config(interpolation_strength=0.25)
    [row] = list(diff_ii.plan(cfg, table((2,)), SPEC))[:1]
    again = diff_ii.redraw(row, RowKey(0, "diff_ii", 0, 0, 1), cfg)
    assert json.loads(again.draw)["u"] == 0.25 and again.seed != row.seed


def test_a_strength_without_interpolation_is_refused() -> None:
    with pytest.raises(RecipeError, match="interpolation_strength: nothing is interpolated where start is noise"):
        Recipe.from_dict(
            {"builder": "toy", "method": "diff_ii", "config": {"start": "noise", "interpolation_strength": 0.5}}
        )

"""GeNIe-Ada's rule: projections on the source-target line and the level after the largest jump."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffaug_datasets.numerics.selection import largest_jump, projections


def test_projections_run_from_source_to_target():
    source, target = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 5.0, 4.0])
    levels = torch.stack([source, target, (source + target) / 2, source + torch.tensor([9.0, 0.0, 0.0])])
    d = projections(levels, source, target)
    assert d.dtype == torch.float64
    assert d.tolist() == pytest.approx([0.0, 5.0, 2.5, 0.0])


def test_projections_take_half_precision_features():
    levels, source, target = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).half().split([5, 1, 1])
    d = projections(levels, source[0], target[0])
    torch.testing.assert_close(d, projections(levels.double(), source[0].double(), target[0].double()), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [1.0, math.nan, math.inf])
def test_no_line_no_projection(wrong):
    with pytest.raises(ValueError, match="the line between them needs a finite length"):
        projections(torch.ones(5, 3), torch.ones(3), torch.full((3,), wrong))


@pytest.mark.parametrize(
    ("d", "index"),
    [
        ([0, 0.1, 0.2, 0.9, 1.0], 3),
        ([0.5, 0.5, 0.5, 0.5], 1),
        ([0, 1, 2, 3], 1),
        ([1.0, 0.2, 0.9], 1),
        ([0.0, 0.1, -0.9, 0.1], 2),
        ([0.0, 1.0], 1),
    ],
)
def test_the_level_after_the_largest_jump(d, index):
    assert largest_jump(d) == index
    assert largest_jump(torch.tensor(d, dtype=torch.float64)) == index


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8))
def test_the_first_of_the_largest_jumps_wins(d):
    k = largest_jump(d)
    jumps = [abs(after - before) for before, after in pairwise(d)]
    assert k == jumps.index(max(jumps)) + 1


@pytest.mark.parametrize("d", [[], [0.5], [0.1, math.nan, 0.3]])
def test_a_jump_needs_two_finite_levels(d):
    with pytest.raises(ValueError, match="a jump needs two or more finite levels"):
        largest_jump(d)

"""Diff-Mix's soft label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaug_datasets.methods.real_mix import diff_mix_label


@pytest.mark.parametrize(
    ("strength", "gamma", "of_target"),
    [
        (0.5, 0.5, 0.707),
        (0.7, 0.5, 0.837),
        (0.9, 0.5, 0.949),
        (0.5, 0.8, 0.574),
        (0.7, 0.8, 0.752),
        (0.9, 0.8, 0.919),
    ],
)
def test_weights_of_the_specification(strength, gamma, of_target):
    (source, rest), (target, weight) = diff_mix_label(3, 8, strength, gamma)
    assert (source, target) == (3, 8)
    assert weight == pytest.approx(of_target, abs=5e-4)
    assert rest == pytest.approx(1 - of_target, abs=5e-4)


def test_the_ends_are_one_hot():
    assert diff_mix_label(3, 8, 0.0, 0.5) == ((3, 1.0),)
    assert diff_mix_label(3, 8, 1.0, 0.5) == ((8, 1.0),)
    assert diff_mix_label(3, 3, 0.7, 0.5) == ((3, 1.0),)
    assert diff_mix_label(3, 3, 0.7, 0.5, scaler=0.9) == ((3, 0.9),)


@given(
    source=st.integers(0, 5),
    target=st.integers(0, 5),
    strength=st.floats(0, 1),
    gamma=st.floats(0.01, 4),
    scaler=st.floats(0.1, 1),
)
def test_weights_are_positive_and_sum_to_the_scaler(source, target, strength, gamma, scaler):
    label = diff_mix_label(source, target, strength, gamma, scaler)
    assert sum(weight for _, weight in label) == pytest.approx(scaler)
    assert all(weight > 0 for _, weight in label)
    assert len({name for name, _ in label}) == len(label)


@pytest.mark.parametrize(
    ("strength", "gamma", "scaler"), [(1.1, 0.5, 1.0), (-0.1, 0.5, 1.0), (0.5, 0.0, 1.0), (0.5, 0.5, 1.2)]
)
def test_numbers_out_of_range_are_refused(strength, gamma, scaler):
    with pytest.raises(ValueError, match=r"give strength in \[0, 1\], gamma above 0 and scaler in \(0, 1\]"):
        diff_mix_label(0, 1, strength, gamma, scaler)

"""The dtype that steps compute in, and one number per row."""

import pytest
import torch

from diffaug_datasets.numerics.schedule import per_row, widened


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_steps_compute_in_float32_or_wider(given, computed):
    assert widened(torch.zeros(2, dtype=given)).dtype == computed


def test_one_number_per_row_broadcasts_over_the_rest():
    like = torch.zeros(3, 4, 5, 6, dtype=torch.float64)
    column = per_row([0.1, 0.2, 0.3], like)
    assert column.shape == (3, 1, 1, 1)
    assert column.flatten().tolist() == [0.1, 0.2, 0.3]
    assert per_row([True, False, True], like, torch.bool).flatten().tolist() == [True, False, True]
    assert per_row(torch.tensor([1.0, 2.0, 3.0]), like).dtype == torch.float64


@pytest.mark.parametrize("values", [[0.1], [0.1] * 4, torch.zeros(3, 1)])
def test_any_other_count_is_refused(values):
    with pytest.raises(ValueError, match="give one for each of 3 rows"):
        per_row(values, torch.zeros(3, 4))

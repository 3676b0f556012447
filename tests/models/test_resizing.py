"""Resizing on a device against Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.models.resizing import FILTERS, resized


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", [(28, 28), (64, 48), (37, 90), (32, 20)])
def test_it_is_pillows_within_one_level(kind: str, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wanted = Image.fromarray(levels).resize(size, getattr(Image.Resampling, kind.upper()))
    made = resized(torch.from_numpy(levels.astype(np.float32) / 255), size, kind)
    gap = np.abs(np.asarray(wanted).astype(int) - (made * 255).round().numpy().astype(int))
    assert gap.shape == (size[1], size[0], 3)
    assert gap.max() <= 1
    assert gap.mean() < 0.15  # Pillow's weights are whole numbers


def test_what_is_not_finite_stays_so() -> None:
    pixels = torch.full((8, 8, 3), 0.5)
    pixels[3, 3, 0] = float("nan")
    assert not resized(pixels, (16, 16), "bilinear").isfinite().all()


def test_another_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="torch has bilinear and bicubic"):
        resized(torch.zeros(2, 2, 3), (4, 4), "lanczos")

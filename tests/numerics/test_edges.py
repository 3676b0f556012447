"""Canny edges are OpenCV's, bit for bit: digests of what `cv2.Canny` 5.0.0 gave for pictures that a formula makes."""

import hashlib

import numpy as np
import pytest

from diffaug_datasets.numerics.edges import canny

GOLDEN = {
    # kind, channels, low, high: edge pixels, digest
    ("rings", 3, 120, 200): (631, "69fde6b657692cb6"),
    ("rings", 1, 60, 120): (136, "154aa6e4ec4e2141"),
    ("grains", 3, 300, 700): (782, "500d63424428d060"),
    ("grains", 1, 120, 200): (739, "af100ed8fee39519"),
    ("steps", 3, 100, 200): (662, "17f6b5a7315575a6"),
    ("steps", 1, 50, 150): (298, "96ec5d0993faf794"),
    ("flat", 3, 0, 0): (0, "505b89d1b3dab87d"),
}


def picture(kind: str, channels: int) -> np.ndarray:
    """61 x 47 pixels: rings, grains (a congruence), steps of few levels, or a flat one."""
    y, x, c = np.mgrid[:61, :47, :channels].astype(np.int64)
    rings = ((x - 20) ** 2 + 2 * (y - 31) ** 2 + 97 * c * x) // 9 % 256
    grains = (1103515245 * (x + 47 * y + 2867 * c) + 12345) // 65536 % 256
    made = {"rings": rings, "grains": grains, "steps": rings // 64 * 64, "flat": np.full_like(x, 90)}[kind]
    return made.astype(np.uint8) if channels > 1 else made[..., 0].astype(np.uint8)


@pytest.mark.parametrize("case", GOLDEN)
def test_edges_are_opencv_s(case) -> None:
    kind, channels, low, high = case
    edges = canny(picture(kind, channels), low, high)
    assert edges.dtype == np.uint8 and set(np.unique(edges)) <= {0, 255}
    assert (int((edges > 0).sum()), hashlib.sha256(edges.tobytes()).hexdigest()[:16]) == GOLDEN[case]


def test_thresholds_change_places_and_are_rounded_down() -> None:
    image = picture("rings", 3)
    assert np.array_equal(canny(image, 200, 120), canny(image, 120, 200))
    assert np.array_equal(canny(image, 120.9, 200.9), canny(image, 120, 200))
    assert canny(image, 60, 120).sum() > canny(image, 120, 200).sum() > canny(image, 200, 400).sum()


def test_a_weak_ridge_stays_where_a_chain_of_neighbours_leads_to_a_strong_one() -> None:
    """A step that fades from left to right: all of it from the strong part on, none of it alone."""
    image = np.zeros((12, 40), dtype=np.uint8)
    image[6:] = np.linspace(60, 26, 40).round().astype(np.uint8)
    edges = canny(image, 110, 200) > 0
    assert edges.any(axis=0)[1:30].all()
    assert not canny(image[:, 20:], 110, 200).any()

"""Augmentations against the papers' formulas, and label shares against pixels that were counted."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from diffaug_datasets.core.images import pixel_sha256
from diffaug_datasets.evaluate import views
from diffaug_datasets.evaluate.draws import Images, Labelled
from diffaug_datasets.evaluate.views import (
    RANDAUGMENT,
    Augmentation,
    Blended,
    by_inverse_count,
    draw_blend,
    effective_weights,
    randoms,
    seen,
    seen_through,
    smoothed,
)


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def flat(level: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, (level,) * 3)


def images(pictures: list[Image.Image], labels: list[int], classes: int = 2) -> Images:
    labelled = Labelled.hard(labels, classes, [[f"id{i}"] for i in range(len(labels))])
    return Images(labelled, tuple(pixel_sha256(p) for p in pictures), lambda i: pictures[i])


class Given(random.Random):
    """Gives lambda and a centre that a test chose."""

    def __init__(self, share: float, y: int, x: int) -> None:
        super().__init__(0)
        self.share, self.places = share, [y, x]

    def betavariate(self, alpha: float, beta: float) -> float:
        return self.share

    def randrange(self, stop: int) -> int:  # type: ignore[override]
        return self.places.pop(0)


def papers_box(width: int, height: int, share: float, x: int, y: int) -> tuple[float, list[int]]:
    """CutMix, equation 2 and its code: sides times the root of 1 - lambda, cut at the border, lambda counted again."""
    ratio = np.sqrt(1.0 - share)
    wide, tall = int(width * ratio), int(height * ratio)
    x1, y1 = np.clip(x - wide // 2, 0, width), np.clip(y - tall // 2, 0, height)
    x2, y2 = np.clip(x + wide // 2, 0, width), np.clip(y + tall // 2, 0, height)
    return 1 - ((x2 - x1) * (y2 - y1) / (width * height)), [y1, x1, y2, x2]


@pytest.mark.parametrize("kind", ["cutmix", "cmo"])
def test_a_box_is_the_papers(kind) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        share, y, x = float(rng.random()), int(rng.integers(17)), int(rng.integers(31))
        found = draw_blend(kind, 17, 31, Given(share, y, x))
        expected_share, box = papers_box(31, 17, share, x, y)
        assert found.share == pytest.approx(expected_share) and list(found.box) == box


def counted_share(blended: Blended) -> float:
    """What the other image takes of one, by its pixels."""
    own, other = np.zeros((17, 31, 3), np.float32), np.ones((17, 31, 3), np.float32)
    return float(blended.pixels(own, other).mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "cmo"])
def test_a_label_is_shared_as_the_pixels_are(kind) -> None:
    shares = []
    for i in range(300):
        blended = draw_blend(kind, 17, 31, randoms(kind, i))
        target = blended.targets(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
        assert target[1] == pytest.approx(counted_share(blended), abs=1e-6)
        assert target.sum() == pytest.approx(1)
        shares.append(blended.share)
    assert len(set(shares)) > 100


def test_a_share_that_the_border_did_not_correct_is_noticed() -> None:
    wrong = replace(draw_blend("cutmix", 17, 31, Given(0.5, 0, 0)), share=0.5)  # three quarters of the box lie outside
    assert abs(wrong.targets(np.array([1.0, 0.0]), np.array([0.0, 1.0]))[1] - counted_share(wrong)) > 0.3


def test_lambda_is_of_the_papers_distribution() -> None:
    shares = np.array([draw_blend("mixup", 8, 8, randoms(i)).share for i in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005)  # of Beta(.8, .8)


def test_mixup_is_a_weighted_mean() -> None:
    own, other = (np.asarray(noise(i), np.float32) for i in (0, 1))
    np.testing.assert_allclose(Blended(0.3).pixels(own, other), 0.3 * own + 0.7 * other, rtol=1e-5)


def test_foregrounds_come_from_all_classes_alike() -> None:
    labels = [0] * 90 + [1] * 9 + [2]
    weights = np.diff([0.0, *by_inverse_count(labels)])
    assert [weights[np.array(labels) == label].sum() for label in range(3)] == pytest.approx([1, 1, 1])


def test_deferred_weights_are_those_of_effective_numbers() -> None:
    counts = [5000, 500, 7, 1]
    plain = [(1 - 0.9999) / (1 - 0.9999**n) for n in counts]
    expected = [w / sum(plain) * 4 for w in plain]
    np.testing.assert_allclose(effective_weights(np.array(counts, float)), expected, rtol=1e-9)
    with_none = effective_weights(np.array([10.0, 0.0, 10.0]))
    assert with_none.tolist() == pytest.approx([1, 0, 1])


def test_smoothing_gives_the_rest_to_the_other_classes() -> None:
    one_hot = np.eye(5)[[3]]
    assert smoothed(one_hot, 0.1)[0].tolist() == pytest.approx([0.025, 0.025, 0.025, 0.9, 0.025])
    assert smoothed(one_hot, 0) is one_hot
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5, 0.1]])
    ours = -(torch.from_numpy(smoothed(one_hot, 0.1)) * logits.double().log_softmax(1)).sum()
    torchs = torch.nn.functional.cross_entropy(logits, torch.tensor([3]), label_smoothing=0.1 * 5 / 4)
    assert float(ours) == pytest.approx(float(torchs), abs=1e-6)
    assert smoothed(np.array([[0.2, 0.5, 0.3]]), 0.3).sum() == pytest.approx(1)


def test_weak_is_a_mirrored_and_moved_image() -> None:
    picture = noise(3, (24, 16))
    padded = [np.pad(a, ((2, 2), (3, 3), (0, 0))) for a in (np.asarray(picture), np.asarray(picture)[:, ::-1])]
    possible = {
        p[y : y + 16, x : x + 24].tobytes(): (m, y, x) for m, p in enumerate(padded) for y in range(5) for x in range(7)
    }
    found = [possible[np.asarray(seen(picture, "weak", randoms(i))).tobytes()] for i in range(400)]
    assert set(Counter(m for m, _, _ in found)) == {0, 1} and len(set(found)) > 60


@pytest.mark.parametrize("look", ["none", "weak", "strong", "classic", "resized_crop"])
def test_the_same_words_give_the_same_pixels(look) -> None:
    picture = noise(1)
    looks = [seen(picture, look, randoms("a", i)) for i in range(20)]
    assert all(one.size == picture.size and one.mode == "RGB" for one in looks)
    again = [seen(picture, look, randoms("a", i)) for i in reversed(range(20))]
    assert [one.tobytes() for one in looks] == [one.tobytes() for one in reversed(again)]
    assert (len({one.tobytes() for one in looks}) > 10) == (look != "none")


def test_randaugment_has_the_papers_operations() -> None:
    told = "identity auto_contrast equalize rotate solarize color posterize contrast brightness sharpness"
    assert set(RANDAUGMENT) == {*told.split(), "shear_x", "shear_y", "translate_x", "translate_y"}
    picture = noise(2)
    for name in sorted(set(RANDAUGMENT) - {"auto_contrast", "equalize", "solarize"}):
        assert RANDAUGMENT[name](picture, 0.0, 1).tobytes() == picture.tobytes(), name
        changed = RANDAUGMENT[name](picture, 1.0, 1).tobytes() != picture.tobytes()
        assert changed == (name != "identity"), name


def test_operations_go_as_far_as_autoaugments_ranges() -> None:
    picture, pixels = noise(2, (331, 331)), np.asarray(noise(2, (331, 331)))
    assert (np.asarray(RANDAUGMENT["translate_x"](picture, 1.0, 1))[:, :181] == pixels[:, 150:]).all()
    assert (np.asarray(RANDAUGMENT["translate_y"](picture, 1.0, -1))[150:] == pixels[:181]).all()
    assert RANDAUGMENT["rotate"](picture, 1.0, -1).tobytes() == picture.rotate(-30).tobytes()
    assert (np.asarray(RANDAUGMENT["posterize"](picture, 1.0, 1)) == pixels & 0b11110000).all()
    assert (np.asarray(RANDAUGMENT["solarize"](picture, 1.0, 1)) == 255 - pixels).all()
    assert np.abs(np.asarray(RANDAUGMENT["brightness"](picture, 1.0, -1)) - 0.1 * pixels).max() <= 1


def test_a_resized_crop_shows_a_part_of_the_papers_sizes() -> None:
    """By the slope of a ramp, which is flatter the smaller the part is."""
    along = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, 0).repeat(3, 2)
    widths, heights = [], []
    for i in range(300):
        for sides, pixels in ((widths, along), (heights, along.swapaxes(0, 1))):
            levels = np.asarray(seen(Image.fromarray(pixels), "resized_crop", randoms(i)), float)[..., 0]
            sides.append((levels.max() - levels.min() + 1) / 200)
    areas, aspects = np.array(widths) * heights, np.array(widths) / heights
    assert 0.19 < areas.min() < 0.25 and areas.max() > 0.85
    assert 0.74 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.36
    assert areas.mean() == pytest.approx(0.57, abs=0.05)  # of .2 to 1, less those that do not fit


def test_classic_changes_light_within_bounds() -> None:
    picture = flat(100)
    centres = [seen(picture, "classic", randoms(i)).getpixel((12, 8))[0] for i in range(300)]
    assert min(centres) >= 0.3 * 100 and max(centres) <= 1.45 * 100 and len(set(centres)) > 30


def test_a_line_decides_how_it_is_seen() -> None:
    assert Augmentation.of("none") == Augmentation("none")
    assert Augmentation.of("none", "randaugment_cutmix") == Augmentation("strong", "cutmix")
    assert Augmentation.of("weak", "classic") == Augmentation("classic")
    assert Augmentation.of("none", None, "cmo_drw") == Augmentation("none", "cmo", reweighted=True)
    assert Augmentation.of("weak", None, "strong") == Augmentation("strong")


def test_cmo_rests_at_both_ends_and_on_half_of_the_steps() -> None:
    steps = [Augmentation("weak", "cmo").blends_at(i / 2000, randoms(i)) for i in range(2000)]
    assert not any(steps[:30]) and not any(steps[1970:])
    assert sum(steps[30:1970]) / 1940 == pytest.approx(0.5, abs=0.04)
    assert all(Augmentation("weak", "cutmix").blends_at(i / 20, randoms(i)) for i in range(20))


@pytest.mark.parametrize("view", ["classic", "randaugment_cutmix"])
def test_materialised_views_hang_on_no_order(view) -> None:
    pictures = [noise(i) for i in range(6)]
    one = seen_through(images(pictures, [0, 1] * 3), view, 4, seed=1)
    other = seen_through(images(pictures, [0, 1] * 3).select([5, 4, 3, 2, 1, 0]), view, 4, seed=1)
    assert len(one) == 24 and len(set(one.keys)) == 24
    assert [one.read(i).tobytes() for i in range(6)] == [p.tobytes() for p in pictures]
    places = {key: i for i, key in enumerate(other.keys)}
    assert set(one.keys) == set(places)
    for i, key in enumerate(one.keys):
        assert one.read(i).tobytes() == other.read(places[key]).tobytes()
        assert one.labelled.soft[i].tolist() == other.labelled.soft[places[key]].tolist()
        assert sorted(one.labelled.source_ids[i]) == sorted(other.labelled.source_ids[places[key]])
    again = seen_through(images(pictures, [0, 1] * 3), view, 4, seed=2)
    assert set(one.keys) & set(again.keys) == set(one.keys[:6])


def test_materialised_labels_are_shared_as_the_pixels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "seen", lambda image, look, draws: image)
    looks = seen_through(images([flat(0), flat(255, (50, 40))], [0, 1]), "randaugment_cutmix", 30, seed=0)
    white = [np.asarray(looks.read(i)).mean() / 255 for i in range(len(looks))]
    np.testing.assert_allclose(looks.labelled.soft[:, 1], white, atol=1e-6)
    assert len(set(np.round(white, 6))) > 10


def test_draws_belong_to_their_words() -> None:
    numbers = [randoms("look", 0, 0, i).random() for i in range(50)]
    assert numbers == [randoms("look", 0, 0, i).random() for i in range(50)]
    assert all(a != b for a, b in pairwise(sorted(numbers)))
    assert abs(np.mean(numbers) - 0.5) < 4 * sqrt(1 / 12 / 50)

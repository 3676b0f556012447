"""Exact search, assignment and look-alikes against plain loops, numpy and scipy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffaug_datasets.core.images import perceptual_hash
from diffaug_datasets.numerics import nearest
from diffaug_datasets.numerics.nearest import LikenessRule, Looks, Sieve, assign, exact_neighbours


def vectors(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_search_in_blocks_is_a_whole_sort(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(nearest, "BLOCK", block)
    queries, pool = vectors(4), vectors(50, seed=1)
    found = exact_neighbours(queries, pool, 9)
    cosines = (queries.numpy() @ pool.numpy().T).astype(np.float64)
    assert found.place.tolist() == [np.argsort(-row, kind="stable")[:9].tolist() for row in cosines]
    assert exact_neighbours(queries, pool, 80).cosine.shape == (4, 50)


def test_equal_cosines_come_in_the_order_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "BLOCK", 3)
    assert exact_neighbours(vectors(1), vectors(1).expand(8, -1), 5).place.tolist() == [[0, 1, 2, 3, 4]]


def test_an_image_goes_to_the_query_that_it_is_most_similar_to() -> None:
    queries, pool, counts = vectors(3), vectors(12, seed=2), [4, 4, 4]
    got = assign(lambda k: exact_neighbours(queries, pool, k), counts, 12, lambda: lambda place: False)
    cosines = queries @ pool.T
    owner = {match.place: query for query, matches in enumerate(got) for match in matches}
    assert sorted(owner) == list(range(12))
    for place, query in owner.items():  # stable: no query and image would both rather have each other
        for other in set(range(3)) - {query}:
            worst = min(match.cosine for match in got[other])
            assert not (cosines[other, place] > cosines[query, place] and cosines[other, place] > worst)
    for matches in got:
        assert [m.cosine for m in matches] == sorted((m.cosine for m in matches), reverse=True)


def test_the_depth_of_the_search_decides_nothing() -> None:
    queries, pool = vectors(5), vectors(300, seed=3)
    depths: list[int] = []

    def shallow_first(k: int) -> nearest.Neighbours:
        depths.append(k)
        return exact_neighbours(queries, pool, k)

    def odd() -> "object":
        return lambda place: place % 3 > 0

    one = assign(shallow_first, [30] * 5, 300, odd)  # type: ignore[arg-type]
    whole = assign(lambda k: exact_neighbours(queries, pool, 300), [30] * 5, 300, odd)  # type: ignore[arg-type]
    assert one == whole
    assert len(depths) > 1
    assert sum(map(len, one)) == 100  # a third of the pool is all there is


def looks(*levels: float) -> Looks:
    angles = torch.tensor(levels)
    bits = torch.arange(64)[None] < (angles * 60)[:, None]
    return Looks(bits, torch.stack([angles.cos(), angles.sin()], 1))


def test_likeness_by_either_and_by_both() -> None:
    one, near, far = looks(0.0), looks(0.1), looks(1.0)
    assert LikenessRule(6, None).alike(one, near)
    assert not LikenessRule(5, None).alike(one, near)
    assert LikenessRule(None, 0.99).alike(one, near)
    assert not LikenessRule(None, 0.999).alike(one, near)
    assert LikenessRule(5, 0.99, "either").alike(one, near)
    assert not LikenessRule(5, 0.99, "both").alike(one, near)
    assert LikenessRule(6, 0.99, "both").alike(one, near)
    assert not LikenessRule(6, 0.99).alike(one, far)
    assert not LikenessRule(None, None).alike(one, one)
    assert not LikenessRule(64, -1).alike(one, Looks(one.bits[:0], one.features[:0]))


def test_the_sieve_says_why() -> None:
    pool = looks(0.0, 0.01, 0.5, 0.51, 1.0)
    sieve = Sieve(pool, {0: "same bytes as a test"}, {"test": looks(0.0)}, LikenessRule(1, None), room=5)
    assert [sieve(place) for place in (4, 0, 1, 2, 3)] == [False, True, True, False, True]
    assert sieve.refused == {"same bytes as a test": {0}, "looks like a test": {1}, "looks like a row": {3}}


def test_perceptual_hash_is_the_sign_of_scipys_cosine_transform() -> None:
    scipy_fft = pytest.importorskip("scipy.fft")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = scipy_fft.dctn(grey, type=2)[:8, :8].ravel()
    assert (perceptual_hash(image) == (low > np.median(low[1:]))).all()


def test_perceptual_hash_survives_what_it_says(tmp_path: Path) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    image = Image.fromarray(rough).resize((128, 128), Image.Resampling.BICUBIC).convert("RGB")
    image.save(tmp_path / "a.jpg", quality=50)
    other = Image.open(tmp_path / "a.jpg").resize((300, 200))
    assert (perceptual_hash(image) != perceptual_hash(other)).sum() <= 5
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert (perceptual_hash(image) != perceptual_hash(turned)).sum() > 10

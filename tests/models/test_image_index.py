"""The real faiss against exact search, on vectors of real images."""

from importlib.resources import files

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from diffaug_datasets.core.images import decode_image
from diffaug_datasets.models import image_index
from diffaug_datasets.models.image_index import searcher
from diffaug_datasets.sources.pools import TINY_POOL

NEAREST = 20


@pytest.fixture(scope="module")
def vectors() -> Tensor:
    """Unit-norm vectors [8000 49] of the packaged pool's images and of the same moved by a pixel: 4 x 4 means."""
    table = pq.read_table(str(files("diffaug_datasets") / TINY_POOL))
    encoded = [image["bytes"] for image in table.column("image").to_pylist()[::3]][:1000]
    pixels = np.stack([np.asarray(decode_image(data).convert("L").resize((28, 28)), np.float32) for data in encoded])
    moved = [np.roll(pixels, (down, right), (1, 2)) for down in (-1, 0) for right in (-2, -1, 0, 1)]
    means = np.concatenate(moved).reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49)
    means -= means.mean(0)
    return torch.nn.functional.normalize(torch.from_numpy(means), dim=1)


def recall(found: Tensor, exact: Tensor) -> float:
    """The share of the exact neighbours that were found."""
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist(), strict=True)) / exact.numel()


def test_faiss_finds_nearly_all_neighbours_and_states_their_cosines(
    vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = vectors[::80]
    exact, found = (searcher(queries, vectors, how)(NEAREST) for how in ("exact", "faiss"))
    assert found.place.shape == (100, NEAREST)
    assert recall(found.place, exact.place) >= 0.995
    cosines = (queries[:, None] * vectors[found.place]).sum(-1)
    assert torch.allclose(found.cosine, cosines, atol=1e-5) and bool((found.cosine.diff(dim=1) <= 1e-6).all())
    monkeypatch.setattr(image_index, "LISTS_SEARCHED", 1)
    assert recall(searcher(queries, vectors, "faiss")(NEAREST).place, exact.place) < 0.9


def test_auto_turns_to_faiss_past_its_limit(vectors: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = vectors[:5]
    monkeypatch.setattr(image_index, "_inverted_lists", lambda _pool: pytest.fail("faiss was asked"))
    assert searcher(queries, vectors, "auto")(3).place[:, 0].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    monkeypatch.setattr(image_index, "EXACT_UP_TO", len(vectors) - 1)
    monkeypatch.setattr(image_index, "exact_neighbours", lambda *_: pytest.fail("it was searched exactly"))
    assert searcher(queries, vectors, "auto")(3).place[:, 0].tolist() == [0, 1, 2, 3, 4]

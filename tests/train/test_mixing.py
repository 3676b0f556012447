"""Replacement rules of the papers against their stated distributions, and streams that resume at the exact item."""

import math
from collections import Counter
from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from diffaug_datasets import MixedDataset, MixedStream
from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.run.shards import features
from diffaug_datasets.train.mixing import shuffled
from diffaug_datasets.train.replacement import Replacer, Rows

NAMES = ("bag", "boot", "coat")
REAL = Rows([0] * 9 + [1] * 4 + [2], [[f"r{i}"] for i in range(14)])
SYNTHETIC = Rows([0, 0, 1, 1, 1, 2], [["r0"], ["r1", "r0"], ["r9"], ["r9"], ["r10"], ["r13"]])
DRAWS = 4000


def shares(replacer: Replacer, index: int) -> dict[int | None, float]:
    """How often each synthetic row replaces a real one, over many epochs."""
    counts = Counter(replacer.choose(epoch, index) for epoch in range(DRAWS))
    return {row: count / DRAWS for row, count in counts.items()}


def close(found: dict[int | None, float], expected: dict[int | None, float]) -> None:
    """Within five standard deviations of a binomial share."""
    assert set(found) == set(expected)
    for row, share in expected.items():
        assert abs(found[row] - share) <= 5 * math.sqrt(share * (1 - share) / DRAWS) + 1e-12, (row, found[row], share)


@pytest.mark.parametrize(
    ("rule", "index", "expected"),
    [
        ("global", 0, dict.fromkeys(range(6), 0.3 / 6)),
        ("class", 0, {0: 0.15, 1: 0.15}),
        ("class", 10, {2: 0.1, 3: 0.1, 4: 0.1}),
        ("index", 0, {0: 0.15, 1: 0.15}),
        ("index", 9, {2: 0.15, 3: 0.15}),
        ("index", 5, {}),
    ],
)
def test_rules_have_their_distributions(rule: Any, index: int, expected: dict[int | None, float]) -> None:
    left = 1 - sum(expected.values())
    close(shares(Replacer(REAL, SYNTHETIC, rule, 0.3, 7), index), {**expected, None: left})


def test_rare_classes_are_drawn_by_the_inverse_of_their_count() -> None:
    """Weights 1/10, 1/5, 1/2 of counts 9, 4, 1; the class of the real row does not matter."""
    total = 1 / 10 + 1 / 5 + 1 / 2
    rows = [1 / 10 / 2] * 2 + [1 / 5 / 3] * 3 + [1 / 2]
    expected: dict[int | None, float] = {row: weight / total for row, weight in enumerate(rows)}
    for index in (0, 13):
        close(shares(Replacer(REAL, SYNTHETIC, "lt_inverse", 1.0), index), expected)


def test_edges() -> None:
    assert {Replacer(REAL, SYNTHETIC, "class", 0.0).choose(e, 0) for e in range(50)} == {None}
    assert {Replacer(REAL, Rows([]), rule, 1.0).choose(0, 0) for rule in ("global", "class", "lt_inverse")} == {None}
    for words, reason in (({"replacement": "any"}, "expected one of global"), ({"probability": 1.5}, "from 0 to 1")):
        with pytest.raises(RecipeError, match=reason):
            Replacer(REAL, SYNTHETIC, **words)
    with pytest.raises(RecipeError, match="got no real row"):
        Replacer(Rows([]), SYNTHETIC)


def test_the_order_is_a_permutation_that_seed_and_epoch_decide() -> None:
    orders = [shuffled(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    """14 real rows and 6 synthetic ones; one has a soft label."""
    names = features(NAMES)
    blank = dict.fromkeys(names) | {"image": Image.new("RGB", (4, 4)), "source_labels": [], "adapters": []}
    made = []
    for kind, table in ((False, REAL), (True, SYNTHETIC)):
        for place, label in enumerate(table.labels):
            soft = (
                {"class": [0, 2], "weight": [0.25, 0.75]}
                if kind and place == 5
                else {"class": [label], "weight": [1.0]}
            )
            told = {"label": label, "source_ids": table.source_ids[place], "is_synthetic": kind, "soft_label": soft}
            made.append({**blank, **told, "row_id": f"{'s' if kind else 'r'}{place}"})
    return datasets.Dataset.from_list(made, features=names)


def ids(items: Any) -> list[str]:
    return [item["row_id"] for item in items]


def test_a_mixed_dataset_follows_the_rule(rows: datasets.Dataset) -> None:
    mixed = MixedDataset(rows, "class", 0.5, seed=3, soft_scale=0.9)
    assert len(mixed) == 14
    replacer = Replacer(REAL, SYNTHETIC, "class", 0.5, 3)
    for epoch in (0, 5):
        mixed.set_epoch(epoch)
        chosen = [replacer.choose(epoch, index) for index in range(14)]
        expected = [f"r{index}" if row is None else f"s{row}" for index, row in enumerate(chosen)]
        assert ids(mixed[i] for i in range(14)) == expected
    assert mixed[-1]["row_id"] == mixed[13]["row_id"]
    with pytest.raises(IndexError):
        mixed[14]
    soft = next(item for epoch in range(40) if (item := mixed.item(epoch, 13))["is_synthetic"])["soft_label"]
    assert torch.equal(soft, torch.tensor([0.25, 0, 0.75]) * 0.9)
    assert soft.dtype == torch.float32


def test_batches(rows: datasets.Dataset) -> None:
    mixed = MixedDataset(rows, transform=lambda image: torch.tensor(image.size))
    [batch] = DataLoader(mixed, batch_size=14)
    assert batch["soft_label"].shape == (14, 3)
    assert batch["label"].dtype == torch.int64


def test_a_stream_resumes_at_the_exact_item(rows: datasets.Dataset) -> None:
    whole = MixedStream(MixedDataset(rows, "global", seed=1))
    expected = [*ids(whole), *ids(whole)]
    assert len(expected) == 28
    assert expected[:14] != expected[14:]
    for stop in (0, 1, 13, 14, 20):
        first, second = (MixedStream(MixedDataset(rows, "global", seed=1)) for _ in range(2))
        seen: list[str] = []
        while len(seen) < stop:
            seen += ids(islice(first, stop - len(seen)))
        second.load_state_dict(first.state_dict())
        assert [*seen, *ids(second)] == expected[: 14 if stop < 14 else 28]


def test_workers_share_an_epoch_without_losing_or_doubling(rows: datasets.Dataset) -> None:
    stream = MixedStream(MixedDataset(rows, "class", 0.0))
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(ids(loader)) == sorted(f"r{i}" for i in range(14))


def test_a_state_of_another_set_is_refused(rows: datasets.Dataset) -> None:
    stream = MixedStream(MixedDataset(rows))
    with pytest.raises(RecipeError, match="expected one of a stream over 14 real rows"):
        stream.load_state_dict({**stream.state_dict(), "rows": 15})

"""What large sets ask of drawing: the same rows as by the plain definitions, without a pass over all images per row."""

import hashlib
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest

from diffaug_datasets.core.method import PlanSpec, find_method
from diffaug_datasets.core.sources import PoolTable, Source, SourceTable
from diffaug_datasets.methods.diff_ii import Pairs
from diffaug_datasets.methods.genie import first_sources

CLASSES = 5


class CountingTable(SourceTable):
    """Counts how often it is grouped by class."""

    groupings = 0

    def by_class(self) -> Mapping[int, tuple[Source, ...]]:
        CountingTable.groupings += 1
        return super().by_class()


def table_of(images: int) -> CountingTable:
    names = tuple(f"class {i}" for i in range(CLASSES))
    ids = (hashlib.sha256(bytes([i % 251, i // 251])).hexdigest() for i in range(images))
    sources = tuple(Source(id, i % CLASSES, str(i)) for i, id in enumerate(ids))
    return CountingTable("toy", "train", names, names, "", sources)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 31, 100])
def test_pairs_are_all_combinations_in_their_order(count: int) -> None:
    images = table_of(count).sources
    pairs, wanted = Pairs(images), list(combinations(images, 2))
    assert len(pairs) == len(wanted)
    assert list(pairs) == wanted
    with pytest.raises(IndexError):
        pairs[len(wanted)]
    with pytest.raises(IndexError):
        pairs[-1]


@pytest.mark.parametrize("confused", [None, ((1, 2), (0, 4), (0,), (1,), (2,))])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_sources_of_another_class_come_in_the_order_of_their_digests(
    confused: tuple[tuple[int, ...], ...] | None, count: int
) -> None:
    table, spec = table_of(60), PlanSpec(9, "b", confused=confused)
    for target in range(CLASSES):
        allowed = confused[target] if confused else [label for label in range(CLASSES) if label != target]
        digests = {
            hashlib.sha256(f"9|genie|{target}|source|{s.id}|{s.label}".encode()).hexdigest(): s
            for s in table.sources
            if s.label in allowed
        }
        wanted = [source for _, source in sorted(digests.items())][:count]
        assert first_sources("genie", table, spec, target, count) == wanted


@pytest.mark.parametrize(
    ("name", "config"),
    [("txt2img", {}), ("genie", {}), ("diff_ii", {}), ("img2img", {}), ("retrieval", {"pool": "p", "query": "image"})],
)
def test_a_table_is_grouped_as_often_for_many_rows_as_for_few(name: str, config: dict[str, Any]) -> None:
    method, pool = find_method(name), PoolTable.of(f"{i:064x}" for i in range(40))
    needed = []
    for rows in (1, 50):
        spec = PlanSpec(0, "b", per_class=rows, suffixes=("in the rain",), pool=pool)
        CountingTable.groupings = 0
        assert len(list(method.plan(method.Config(**config), table_of(30), spec))) == rows * CLASSES
        needed.append(CountingTable.groupings)
    assert needed[0] == needed[1]

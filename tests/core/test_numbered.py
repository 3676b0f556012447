"""Patterns match what they stand for, in order, and nothing else."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaug_datasets.core import numbered
from diffaug_datasets.core.numbered import listed

quick = settings(max_examples=50, deadline=None)


def names(first: int, count: int, total: int, width: int = 5) -> list[str]:
    """Files of a split, numbered on."""
    return [f"data/x-1/train-{i:0{width}d}-of-{total:0{width}d}.arrow" for i in range(first, first + count)]


def matched(patterns: list[str], there: list[str]) -> list[str]:
    """The files that patterns match, pattern by pattern, each pattern's in the order of their names."""
    return [path for pattern in patterns for path in sorted(there) if fnmatchcase(path, pattern)]


@pytest.fixture(autouse=True, scope="module")
def _few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbered, "MOST_LISTED", 3)
        yield


def test_a_few_files_are_named() -> None:
    assert listed(names(7, 3, 10)) == names(7, 3, 10)


@quick
@given(st.integers(0, 940), st.integers(4, 60))
def test_patterns_match_the_numbers_that_they_stand_for(first: int, count: int) -> None:
    around = names(max(0, first - 11), count + 22, 999)
    patterns = listed(paths := names(first, count, 999))
    assert matched(patterns, around) == paths
    assert len(patterns) < 30


@quick
@given(st.integers(4, 60), st.integers(0, 30), st.integers(1, 60))
def test_what_lies_between_two_stretches_is_matched_by_neither(count: int, gap: int, more: int) -> None:
    paths = [*names(0, count, 999), *names(count + gap + 1, more, 999)]
    assert matched(listed(paths), names(0, count + gap + more + 9, 999)) == paths


def test_ten_thousand_are_a_few_patterns() -> None:
    assert listed(names(0, 10_000, 10_000)) == ["data/x-1/train-0[0-9][0-9][0-9][0-9]-of-10000.arrow"]
    assert len(listed(names(17, 10_000, 10_017))) < 20


def test_other_names_stand_as_they_are() -> None:
    own = ["shards/synthetic-00012-0123456789abcdef.arrow", "shards/[a]-00013.arrow", "shards/[a]-00014.arrow"]
    real, made = ([f"shards/{kind}-{i:05d}.arrow" for i in range(12)] for kind in ("real", "synthetic"))
    patterns = [f"shards/{kind}-{part}.arrow" for kind in ("real", "synthetic") for part in ("0000[0-9]", "0001[0-1]")]
    assert listed([*real, *made, *own]) == [*patterns, *own]
    mixed = ["a-1.arrow", "a-1.arrow", "a-3.arrow", "a-2.arrow"]
    assert listed(mixed) == mixed

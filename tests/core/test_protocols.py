"""Protocols: their texts, and draws that equal the published code's, draw for draw."""

import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaug_datasets.core.errors import RecipeError
from diffaug_datasets.core.protocols import (
    FORMS,
    FrequencyGroups,
    Protocol,
    draw_subset,
    episode,
    few_shot,
    frequency_groups,
    half_split,
    long_tail,
    long_tail_counts,
    parse_protocol,
    percent,
)
from diffaug_datasets.core.sources import Listed, Listing, Source, SourceTable

LABELS = st.lists(st.integers(0, 6), max_size=60)


def table(labels) -> SourceTable:
    names = tuple(f"class {i}" for i in range(max(labels, default=0) + 1))
    sources = tuple(Source(f"{i:064x}", label, f"{i}.png") for i, label in enumerate(labels))
    return SourceTable("x", "train", names, names, "", sources)


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("full", Protocol("full", 0, 0)),
        ("5shot", Protocol("shots", 5, 0)),
        ("10shot_seed2", Protocol("shots", 10, 2)),
        ("lt100", Protocol("long_tail", 100, 0)),
        ("10pct_seed1", Protocol("percent", 10, 1)),
        ("full_seed3", Protocol("full", 0, 3)),
        ("5way1shot", Protocol("shots", 1, 0, 5)),
        ("20way5shot_seed12", Protocol("shots", 5, 12, 20)),
    ],
)
def test_protocols_are_read_and_written_the_same(text, protocol):
    assert parse_protocol(text) == protocol
    assert protocol.name == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "5 shot", "05shot", "0shot", "5shots", "lt", "pct10", "5shot_seed0", "5shot_seed", "Full", "-5shot"),
        *("5shot\n", "\u0665shot", "5shot_seed1_seed2", "lt1.5", "1way5shot", "05way1shot", "5way", "5waylt10"),
    ],
)
def test_other_texts_are_refused_with_the_allowed_forms(text):
    with pytest.raises(RecipeError) as error:
        parse_protocol(text)
    assert str(error.value).startswith(f"protocol: got {text!r}, expected one of {FORMS}")


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("5-shot", "5shot"),
        ("10 Shots", "10shot"),
        ("shot5", "5shot"),
        ("Full", "full"),
        ("all", "full"),
        ("10%", "10pct"),
        ("10percent", "10pct"),
        ("long_tail_100", "lt100"),
        ("banana", None),
    ],
)
def test_a_text_that_is_near_to_a_form_gets_it_named(text, guess):
    with pytest.raises(RecipeError) as error:
        parse_protocol(text)
    assert str(error.value).endswith(f"; did you mean {guess!r}?" if guess else f"{FORMS}.")


@pytest.mark.parametrize(("text", "allowed"), [("lt1", "2 or more"), ("101pct", "1 to 100")])
def test_numbers_outside_their_range_are_refused(text, allowed):
    with pytest.raises(RecipeError, match=f"got '{text}', expected a number of {allowed} there; forms: full, 5shot"):
        parse_protocol(text)


def reference_few_shot(labels, k, seed):
    """The published rule, with the global generator."""
    random.seed(seed)
    groups = defaultdict(list)
    for place, label in enumerate(labels):
        groups[label].append(place)
    return [place for items in groups.values() for place in random.sample(items, k)]


@settings(max_examples=60, deadline=None)
@given(st.permutations([label for label in range(5) for _ in range(4)]), st.integers(1, 4), st.integers(0, 9))
def test_few_shot_is_draw_for_draw_the_published_rule(labels, k, seed):
    assert few_shot(labels, k, seed) == reference_few_shot(labels, k, seed)


def test_few_shot_is_golden_and_leaves_the_global_generator_alone():
    random.seed(1)
    state = random.getstate()
    assert few_shot([1, 0, 1, 0, 1, 0, 1, 0], 2, seed=0) == [6, 2, 1, 3]
    assert random.getstate() == state


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 8), st.integers(0, 3))
def test_a_small_class_keeps_every_image_once(labels, k, seed):
    chosen = few_shot(labels, k, seed)
    assert len(set(chosen)) == len(chosen)
    assert Counter(labels[i] for i in chosen) == {label: min(n, k) for label, n in Counter(labels).items()}


CUB_TOTALS = {100: 1242, 50: 1427, 20: 1798, 10: 2238}
FLOWER_TOTALS = {100: 847, 50: 976, 20: 1238, 10: 1532}


@pytest.mark.parametrize("imbalance", [100, 50, 20, 10])
def test_long_tail_totals_are_those_of_the_published_code(imbalance):
    assert sum(long_tail_counts(5994, 200, imbalance)) == CUB_TOTALS[imbalance]
    assert sum(long_tail_counts(4069, 102, imbalance)) == FLOWER_TOTALS[imbalance]


def test_long_tail_heads_tails_and_groups():
    counts = long_tail_counts(5994, 200, 100)
    assert (counts[:6], counts[-4:], counts.count(1)) == ([29, 29, 28, 27, 27, 26], [1, 1, 1, 1], 83)
    ten = long_tail_counts(5994, 200, 10)
    assert (ten[:6], ten[-4:]) == ([29, 29, 29, 28, 28, 28], [3, 3, 2, 2])
    groups = frequency_groups(counts, many=20, few=5)
    assert [len(group) for group in (groups.many, groups.medium, groups.few)] == [16, 61, 123]


@pytest.mark.parametrize(("n", "classes", "counts"), [(7, 1, [7]), (10, 2, [5, 1]), (3, 5, [1] * 5), (9, 3, [3, 1, 1])])
def test_long_tail_of_few_classes(n, classes, counts):
    assert long_tail_counts(n, classes, 100) == counts


def test_long_tail_ranks_by_count_with_ties_in_order_of_appearance():
    labels = [2] * 10 + [0] * 30 + [1] * 10
    chosen = [labels[i] for i in long_tail(labels, 2, seed=0)]
    assert list(dict.fromkeys(chosen)) == [0, 2, 1]
    assert Counter(chosen) == {0: 16, 2: 8, 1: 4}


def test_long_tail_draws_as_the_published_rule():
    labels = [place % 4 for place in range(80)]
    random.seed(3)
    groups = [[i for i in range(80) if i % 4 == label] for label in range(4)]
    counts = long_tail_counts(80, 4, 10)
    assert long_tail(labels, 10, 3) == [i for g, n in zip(groups, counts, strict=True) for i in random.sample(g, n)]


def test_long_tail_of_nothing_is_nothing():
    assert long_tail([], 100, 0) == []


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(1, 100), st.integers(0, 3))
def test_percent_takes_its_share_of_every_class(labels, value, seed):
    chosen = percent(labels, value, seed)
    expected = {label: max((n * value + 50) // 100, 1) for label, n in Counter(labels).items()}
    assert Counter(labels[i] for i in chosen) == expected


def test_frequency_groups_at_their_edges():
    assert frequency_groups([101, 100, 20, 19, 0]) == FrequencyGroups((0,), (1, 2), (3, 4))


def test_half_split_cuts_every_class_in_half_as_the_published_code_does():
    items = [Listed(f"image_{i:05d}.jpg", i % 3) for i in range(20)]
    halves = half_split(Listing(("a", "b", "c"), tuple(items[10:]), tuple(items[:10])), seed=0)
    rng = np.random.default_rng(0)
    groups = [[item for item in items if item.label == label] for label in range(3)]
    orders = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    assert halves.train == tuple(item for order in orders for item in order[: len(order) // 2])
    assert set(halves.train) | set(halves.test) == set(items)
    assert (len(halves.train), len(halves.test)) == (9, 11)


def test_a_subset_freezes_ids_and_digest():
    labels = [0, 1] * 6
    subset = draw_subset(parse_protocol("2shot"), table(labels))
    chosen = table(labels).subset(subset.indices)
    assert subset.ids == tuple(source.id for source in chosen.sources)
    assert subset.warnings == ()
    content = json.loads(subset.to_json())
    assert content["sha256"] == subset.digest
    assert content["protocol"] == "2shot"
    assert [image["id"] for image in content["images"]] == list(subset.ids)
    assert draw_subset(parse_protocol("2shot_seed1"), table(labels)).digest != subset.digest


def test_full_takes_everything_in_order_and_seeds_change_nothing():
    assert draw_subset(parse_protocol("full_seed1"), table([1, 0, 1])).indices == (0, 1, 2)


def test_shortfalls_are_warnings_not_duplicates():
    subset = draw_subset(parse_protocol("3shot"), table([0, 0, 0, 0, 2]))
    assert len(set(subset.indices)) == 4
    assert subset.warnings == (
        "class 1: asked for 3 images, found 0; all are kept, none twice.",
        "class 2: asked for 3 images, found 1; all are kept, none twice.",
    )


def test_a_long_tail_larger_than_a_class_warns():
    labels = [0] * 91 + [1] * 3 + [2] * 3 + [3] * 3
    subset = draw_subset(parse_protocol("lt2"), table(labels))
    assert subset.warnings[0] == "class 1: asked for 17 images, found 3; all are kept, none twice."
    assert Counter(subset.labels) == {0: 25, 1: 3, 2: 3, 3: 3}


def listing(counts, test=None) -> Listing:
    """So many training images per class, and as many test images per class if asked for."""
    names = tuple(f"class {i}" for i in range(len(counts)))
    train = tuple(Listed(f"{i}/{j}", i) for i, n in enumerate(counts) for j in range(n))
    tests = tuple(Listed(f"test/{i}/{j}", i) for i in range(len(counts)) for j in range(test)) if test else None
    return Listing(names, train, tests)


def test_an_episode_has_its_own_classes_and_queries():
    whole = listing([30] * 20)
    drawn = episode(whole, parse_protocol("5way5shot_seed3"))
    assert len(drawn.class_names) == 5 and list(drawn.class_names) == sorted(
        drawn.class_names, key=whole.class_names.index
    )
    assert Counter(item.label for item in drawn.test) == dict.fromkeys(range(5), 16)
    assert Counter(item.label for item in drawn.train) == dict.fromkeys(range(5), 14)
    seen, asked = ({item.key for item in split} for split in (drawn.train, drawn.test))
    assert not seen & asked
    for item in (*drawn.train, *drawn.test):
        assert drawn.class_names[item.label] == f"class {item.key.partition('/')[0]}"
    assert episode(whole, parse_protocol("5way5shot_seed3")) == drawn
    others = [episode(whole, parse_protocol(f"5way5shot_seed{seed}")).class_names for seed in range(1, 9)]
    assert len(set(others)) > 4 and {name for names in others for name in names} <= set(whole.class_names)


def test_an_official_test_split_is_kept_and_small_classes_keep_their_support():
    drawn = episode(listing([30] * 8, test=3), parse_protocol("4way1shot"))
    assert len(drawn.train) == 120 and Counter(item.label for item in drawn.test) == dict.fromkeys(range(4), 3)
    small = episode(listing([7, 5, 2]), parse_protocol("3way5shot"))
    assert Counter(item.label for item in small.train) == {0: 5, 1: 5, 2: 2}
    assert Counter(item.label for item in small.test) == {0: 2}
    assert episode(listing([5, 5]), parse_protocol("2way5shot")).test is None


def test_an_episode_without_enough_classes_is_refused_and_other_protocols_are_none():
    with pytest.raises(RecipeError, match="5way1shot needs 5 classes, found 3; ask for fewer"):
        episode(listing([4] * 3), parse_protocol("5way1shot"))
    assert episode(listing([4] * 3), parse_protocol("1shot")) == listing([4] * 3)
